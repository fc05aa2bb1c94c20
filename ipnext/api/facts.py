"""What the store knows of one model, read in one unit of work; status, explanation, metrics and page build on it."""

from dataclasses import dataclass

from ipnext.model.deployment import Deployment, RouteTable
from ipnext.model.lifecycle import Change
from ipnext.model.status import Condition
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository

RECENT_CHANGES = 20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model as the store knows it. `changes` are the newest, newest first."""

    record: ModelRecord
    conditions: tuple[Condition, ...] = ()
    routes: tuple[RouteTable, ...] = ()
    deployments: tuple[Deployment, ...] = ()
    changes: tuple[Change, ...] = ()
    plan_id: str | None = None


def facts_of(unit: Repository, record: ModelRecord, plan_id: str | None) -> ModelFacts:
    """Read what belongs to a model."""
    name = record.name
    return ModelFacts(
        record=record,
        conditions=unit.conditions(name),
        routes=unit.routes(name),
        deployments=unit.deployments(name),
        changes=unit.changes(name, limit=RECENT_CHANGES),
        plan_id=plan_id,
    )


def model_facts(unit: Repository, name: str) -> ModelFacts:
    """Facts of one model. Raises NotFound."""
    return facts_of(unit, unit.model(name), _plan_id(unit))


def all_facts(unit: Repository) -> tuple[ModelFacts, ...]:
    """Facts of every model that is not retired, by name."""
    plan_id = _plan_id(unit)
    records = sorted((r for r in unit.models() if not r.retired), key=lambda r: r.name)
    return tuple(facts_of(unit, record, plan_id) for record in records)


def _plan_id(unit: Repository) -> str | None:
    plan = unit.plan_in_force()
    return None if plan is None else plan.id
