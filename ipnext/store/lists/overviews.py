"""Facts of many models at once: one statement for each kind of fact, whatever the number of models."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import Column, Select, Table, tuple_
from sqlalchemy import func as sa_func
from sqlalchemy import select as sa_select
from sqlmodel import col, func, select

from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.lifecycle.status import Condition, ConditionType, Reason, with_ready
from ipnext.model.planning.plan import Unmet
from ipnext.model.registry.registry import Generation, SplitLayout
from ipnext.model.wire import decode, decode_plain
from ipnext.store.changes.changes import _change
from ipnext.store.changes.transitions import _transition
from ipnext.store.paging import clamp_limit
from ipnext.store.records import ModelRecord, TransitionRecord
from ipnext.store.registry.generations import read_generation
from ipnext.store.registry.models import _model
from ipnext.store.tables.changes import DeploymentRow, RouteRow
from ipnext.store.tables.planning import PlacedReplicasRow, PlacementRow
from ipnext.store.tables.registry import ModelRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork, batches, plain

Item = TypeVar("Item")

MODELS = METADATA.tables["models"]
CONDITIONS = METADATA.tables["conditions"]
DEPLOYMENTS = METADATA.tables["deployments"]
ROUTES = METADATA.tables["routes"]
CHANGES = METADATA.tables["changes"]
GENERATIONS = METADATA.tables["generations"]
TRANSITIONS = METADATA.tables["transitions"]
REPORTS = METADATA.tables["reports"]
EVENTS = METADATA.tables["events"]

_UNCUT = [column for column in GENERATIONS.c if column.name not in {"layout", "hosting"}]
"""Columns of a generation without its layout and its hosting, which may be long."""


class Overviews(UnitOfWork):
    """Reads for pages, lists and metrics."""

    def model_counts(self) -> tuple[int, int]:
        """Count the models that are not retired, and those of them that are recorded as ready."""
        query = (
            select(ModelRow.ready, func.count())
            .where(col(ModelRow.retired).is_(False), *self._has_visible_owner())
            .group_by(col(ModelRow.ready))
        )
        counts = dict(self._session.exec(query).all())
        return sum(counts.values()), counts.get(True, 0)

    def recorded_readiness(self, names: Collection[str]) -> Mapping[str, bool]:
        """Map each of these models that is not retired to whether it is recorded as ready."""
        query = select(ModelRow.name, ModelRow.ready).where(
            col(ModelRow.retired).is_(False), *self._has_visible_owner()
        )
        return {
            name: ready
            for some in batches(names)
            for name, ready in self._session.exec(query.where(self._among(col(ModelRow.name), some)))
        }

    def served_generations_of_all(self) -> Sequence[tuple[str, bool, int | None]]:
        """Return name, recorded readiness and serving generation of every model that is not retired, by name."""
        query = select(ModelRow.name, ModelRow.ready, ModelRow.serving_generation)
        return self._session.exec(
            query.where(col(ModelRow.retired).is_(False), *self._has_visible_owner()).order_by(col(ModelRow.name))
        ).all()

    def models_named(self, names: Collection[str]) -> tuple[ModelRecord, ...]:
        """Return those of these models that exist, retired ones included, by name."""
        found = self._rows_of(names, sa_select(MODELS), MODELS.c.name)
        return tuple(sorted(map(_model, found), key=lambda record: record.name))

    def conditions_of(self, models: Collection[str]) -> Mapping[str, tuple[Condition, ...]]:
        """Map each model to its conditions in the order of a rollout's stages, with `Ready`."""
        found: dict[str, list[Condition]] = defaultdict(list)
        for row in self._rows_of(models, sa_select(CONDITIONS), CONDITIONS.c.model):
            found[row.model].append(_condition(row))
        return {model: with_ready(of) for model, of in found.items()}

    def deployments_of(self, models: Collection[str]) -> tuple[Deployment, ...]:
        """Return the desired replica sets of these models, by key."""
        rows = self._rows_of(models, sa_select(DEPLOYMENTS.c.deployment), DEPLOYMENTS.c.model)
        found = [decode(Deployment, row.deployment) for row in rows]
        return tuple(sorted(found, key=lambda d: (d.key.model, d.key.part, d.key.region, d.key.hardware)))

    def routes_of(self, models: Collection[str]) -> tuple[RouteTable, ...]:
        """Return the route tables of these models, by model and region."""
        rows = self._rows_of(models, sa_select(ROUTES.c.route_table), ROUTES.c.model)
        found = [decode(RouteTable, row.route_table) for row in rows]
        return tuple(sorted(found, key=lambda table: (table.model, table.region)))

    def recent_changes(self, models: Collection[str], *, limit: int) -> Mapping[str, tuple[Change, ...]]:
        """Map each model to its newest changes, newest first.

        A model's sequence has no gaps, so the index finds them.
        """
        return _newest_first(self._newest(models, sa_select(CHANGES), CHANGES.c.sequence, limit), "sequence", _change)

    def recent_generations(self, models: Collection[str], *, limit: int) -> Mapping[str, tuple[Generation, ...]]:
        """Map each model to its newest generations, newest first, without their layouts and hosting."""
        found = self._newest(models, sa_select(*_UNCUT), GENERATIONS.c.number, limit)
        return _newest_first(found, "number", lambda row: read_generation(row, cut=False))

    def newest_transitions(self, models: Collection[str]) -> Mapping[str, TransitionRecord]:
        """Map each model to its newest transition."""
        found = self._newest(models, sa_select(TRANSITIONS), TRANSITIONS.c.ordinal, 1)
        return {row.model: _transition(row) for row in found}

    def reports_of(self, generations: Mapping[str, int]) -> Mapping[str, ValidationReport]:
        """Map each of these models to the validation report of the given generation, if there is one."""
        key = tuple_(REPORTS.c.model, REPORTS.c.generation)
        connection = self._connection
        found = (connection.execute(sa_select(REPORTS).where(key.in_(some))) for some in batches(generations.items()))
        return {row.model: decode(ValidationReport, row.report) for rows in found for row in rows}

    def event_details(self, models: Collection[str], *, among: int) -> Mapping[str, tuple[Mapping[str, Any], ...]]:
        """Map each model to the details of those of its newest `among` events that have one, oldest first."""
        newest, named = EVENTS.alias(), clamp_limit(among)
        first = sa_select(newest.c.ordinal).where(newest.c.model == MODELS.c.name).order_by(newest.c.ordinal.desc())
        least = sa_func.coalesce(first.offset(named - 1).limit(1).scalar_subquery(), 0)
        query = sa_select(EVENTS.c.model, EVENTS.c.ordinal, EVENTS.c.detail).join(
            MODELS, EVENTS.c.model == MODELS.c.name
        )
        query = query.where(EVENTS.c.ordinal >= least, EVENTS.c.detail.is_not(None))
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in sorted(self._rows_of(models, query, MODELS.c.name), key=lambda row: row.ordinal):
            found[row.model].append(plain(row.detail))
        return {model: tuple(details) for model, details in found.items()}

    def serving_layouts(self, models: Collection[str]) -> Mapping[str, SplitLayout]:
        """Map each model to the layout of its serving generation; models without one are left out."""
        mine = (GENERATIONS.c.model == MODELS.c.name) & (GENERATIONS.c.number == MODELS.c.serving_generation)
        query = sa_select(GENERATIONS.c.model, GENERATIONS.c.layout).join(MODELS, mine)
        found = self._rows_of(models, query.where(GENERATIONS.c.layout.is_not(None)), MODELS.c.name)
        return {row.model: decode(SplitLayout, row.layout) for row in found}

    def plans_of(self, models: Collection[str]) -> Mapping[str, tuple[str, tuple[Unmet, ...]]]:
        """Map each model to the plan that decided its placement, and the demand that this leaves unserved."""
        query = select(PlacementRow.model, PlacementRow.plan_id, PlacementRow.unmet)
        return {
            model: (plan, tuple(decode_plain(Unmet, item) for item in plain(unmet)))
            for some in batches(models)
            for model, plan, unmet in self._session.exec(query.where(self._among(col(PlacementRow.model), some)))
        }

    def placed_regions(self, models: Collection[str]) -> Mapping[str, frozenset[str]]:
        """Map each model to the regions of its placement and its traffic in the plan in force."""
        found: dict[str, set[str]] = defaultdict(set)
        placed, traffic = (
            select(PlacedReplicasRow.model, PlacedReplicasRow.region),
            select(PlacementRow.model, PlacementRow.traffic),
        )
        for some in batches(models):
            for model, region in self._session.exec(placed.where(self._among(col(PlacedReplicasRow.model), some))):
                found[model].add(region)
            for model, text in self._session.exec(traffic.where(self._among(col(PlacementRow.model), some))):
                found[model].update(share["to"] for share in plain(text))
        return {model: frozenset(regions) for model, regions in found.items()}

    def replica_regions(self, models: Collection[str]) -> Mapping[str, frozenset[str]]:
        """Map each model to the regions in which replicas of it are desired."""
        found: dict[str, set[str]] = defaultdict(set)
        query = select(DeploymentRow.model, DeploymentRow.region).where(DeploymentRow.replicas > 0)
        for some in batches(models):
            for model, region in self._session.exec(query.where(self._among(col(DeploymentRow.model), some))):
                found[model].add(region)
        return {model: frozenset(regions) for model, regions in found.items()}

    def models_wanted_in(self, regions: Collection[str]) -> frozenset[str]:
        """Return the models with a desired replica in one of these regions."""
        query = select(DeploymentRow.model).where(
            col(DeploymentRow.region).in_(tuple(regions)), DeploymentRow.replicas > 0
        )
        return frozenset(self._session.exec(query.distinct())) if regions else frozenset()

    def models_unrouted(self) -> frozenset[str]:
        """Return the models with a serving generation and a region whose users are sent nowhere."""
        query = select(RouteRow.model).join(ModelRow, col(ModelRow.name) == col(RouteRow.model))
        query = query.where(col(RouteRow.sends).is_(False), col(ModelRow.serving_generation).is_not(None))
        return frozenset(self._session.exec(query.distinct()))

    def units_running(self) -> Mapping[tuple[str, str], float]:
        """Map (region, hardware) to the units of the desired deployments."""
        taken = func.sum(col(DeploymentRow.replicas) * col(DeploymentRow.units))
        query = select(DeploymentRow.region, DeploymentRow.hardware, taken)
        found = self._session.exec(query.group_by(DeploymentRow.region, DeploymentRow.hardware))
        return {(region, hardware): units for region, hardware, units in found}

    def largest_unmet(self, *, limit: int) -> tuple[Unmet, ...]:
        """Return the demand that the plan in force leaves unserved, of the `limit` models with the most."""
        query = select(PlacementRow.unmet).where(
            PlacementRow.unmet_qps > 0, *self._is_of_visible_owner(col(PlacementRow.model))
        )
        query = query.order_by(col(PlacementRow.unmet_qps).desc(), col(PlacementRow.model)).limit(clamp_limit(limit))
        return tuple(decode_plain(Unmet, item) for text in self._session.exec(query) for item in plain(text))

    def unmet_models(self) -> int:
        """Count the models with demand that the plan in force leaves unserved."""
        return self._session.exec(
            select(func.count())
            .select_from(PlacementRow)
            .where(PlacementRow.unmet_qps > 0, *self._is_of_visible_owner(col(PlacementRow.model)))
        ).one()

    def _newest(self, models: Collection[str], query: Select[Any], key: Column[Any], limit: int) -> list[Any]:
        """Return the rows of a table with the `limit` highest keys of each model.

        Keys have no gaps, or `limit` is 1.
        """
        table: Table = key.table
        older = table.alias()
        last = sa_select(sa_func.max(older.c[key.name])).where(older.c.model == MODELS.c.name).scalar_subquery()
        query = query.join(MODELS, table.c.model == MODELS.c.name).where(key > last - limit)
        return self._rows_of(models, query, MODELS.c.name)

    def _rows_of(self, names: Collection[str], query: Select[Any], column: Column[Any]) -> list[Any]:
        """Return plain rows, which cost a fifth of the objects around them."""
        connection = self._connection
        found = (connection.execute(query.where(self._among(column, some))).all() for some in batches(names))
        return [row for some in found for row in some]


def _newest_first(rows: Sequence[Any], key: str, value: Callable[[Any], Item]) -> Mapping[str, tuple[Item, ...]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: -getattr(row, key)):
        found[row.model].append(value(row))
    return {model: tuple(of) for model, of in found.items()}


def _condition(row: Any) -> Condition:
    return Condition(
        type=ConditionType(row.type),
        status=row.status,
        reason=Reason(row.reason),
        message=row.message,
        last_transition_time=row.last_transition_time,
    )
