"""The store's facts of models, read in one unit of work, for status, explanation, metrics and page.

The number of statements does not depend on the number of models.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.status import Condition
from ipnext.model.manifest.derived.profiled import throughputs, wants_profiles
from ipnext.model.planning.plan import Unmet
from ipnext.model.registry.profile import PartThroughput
from ipnext.model.registry.registry import SplitLayout
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository

RECENT_CHANGES = 20

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The store's facts of one model. `changes` are the newest, newest first."""

    record: ModelRecord
    conditions: tuple[Condition, ...] = ()
    routes: tuple[RouteTable, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    changes: tuple[Change, ...] = ()
    plan_id: str | None = None
    """The plan that decided the model's placement."""
    unmet: tuple[Unmet, ...] = ()
    """Demand that this plan leaves unserved."""
    layout: SplitLayout | None = None
    """Layout of the serving generation, if it is cut."""


def facts_of(unit: Repository, records: Sequence[ModelRecord]) -> tuple[ModelFacts, ...]:
    """Read the facts of these models, in their order."""
    names = [record.name for record in records]
    conditions, plans = unit.conditions_of(names), unit.plans_of(names)
    changes = unit.recent_changes(names, limit=RECENT_CHANGES)
    routes = _by_model(unit.routes_of(names), lambda table: table.model)
    deployments = _by_model(unit.deployments_of(names), lambda deployment: deployment.key.model)
    layouts = unit.serving_layouts(names)
    return tuple(
        ModelFacts(
            record=record,
            conditions=conditions.get(record.name, ()),
            routes=routes.get(record.name, ()),
            deployments=deployments.get(record.name, ()),
            changes=changes.get(record.name, ()),
            plan_id=plans[record.name][0] if record.name in plans else None,
            unmet=plans[record.name][1] if record.name in plans else (),
            layout=layouts.get(record.name),
        )
        for record in records
    )


def model_facts(unit: Repository, name: str) -> ModelFacts:
    """Return the facts of one model, retired or not. Raises NotFound."""
    return facts_of(unit, [unit.model(name)])[0]


def throughputs_of(unit: Repository, facts: Sequence[ModelFacts]) -> Mapping[str, tuple[PartThroughput, ...]]:
    """Map each model to the throughput that plans assume for its replicas. All needed profiles are read at once."""
    records = [each.record for each in facts]
    asking = {record.name: record.serving_generation for record in records if wants_profiles(record.manifest)}
    known = unit.profiles_of_all(asking) if asking else {}
    return {record.name: throughputs(record.manifest, known.get(record.name, {})) for record in records}


def _by_model(found: Iterable[Found], model: Callable[[Found], str]) -> Mapping[str, tuple[Found, ...]]:
    grouped: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        grouped[model(each)].append(each)
    return {name: tuple(of) for name, of in grouped.items()}
