"""What the store knows of one model, read in one unit of work; status, explanation, metrics and page build on it."""

from dataclasses import dataclass

from ipnext.model.deployment import Deployment, RouteTable
from ipnext.model.lifecycle import Change
from ipnext.model.registry import Layout
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
    """The plan that decided where the model is placed."""
    layout: Layout | None = None
    """How the serving generation is cut."""


def facts_of(unit: Repository, record: ModelRecord, plan_id: str | None, layout: Layout | None) -> ModelFacts:
    """Read what belongs to a model."""
    name = record.name
    return ModelFacts(
        record=record,
        conditions=unit.conditions(name),
        routes=unit.routes(name),
        deployments=unit.deployments(name),
        changes=unit.changes(name, limit=RECENT_CHANGES),
        plan_id=plan_id,
        layout=layout,
    )


def model_facts(unit: Repository, name: str) -> ModelFacts:
    """Facts of one model. Raises NotFound."""
    placed = unit.placement(name)
    record = unit.model(name)
    serving = record.serving_generation
    layout = unit.generation(name, serving).layout if serving else None
    return facts_of(unit, record, placed.plan_id if placed else None, layout)


def all_facts(unit: Repository) -> tuple[ModelFacts, ...]:
    """Facts of every model that is not retired, by name."""
    placed_by = unit.placed_by()
    records = sorted((r for r in unit.models() if not r.retired), key=lambda r: r.name)
    layouts = {(g.model, g.number): g.layout for found in unit.cut_generations().values() for g in found}
    return tuple(
        facts_of(unit, record, placed_by.get(record.name), layouts.get((record.name, record.serving_generation or 0)))
        for record in records
    )
