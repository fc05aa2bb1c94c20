"""The plan in force, model by model, and its use of the supply: summed up by the database, not in Python.

A publish needs the placements of all other models. Reading their plans would take seconds at 10,000 models; these
queries take milliseconds.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import and_, bindparam, delete, insert
from sqlalchemy import select as sa_select
from sqlmodel import col, func, select

from ipnext.model.planning.plan import ModelProblem, ReplicaCount, TrafficShare, Unmet
from ipnext.model.value import canonical_json
from ipnext.model.wire import decode_frozen, decode_plain
from ipnext.store.records import FormerBasis, HeldSlot, ModelPlacement, PlanDocuments, PlanRecord
from ipnext.store.tables.changes import DeploymentRow
from ipnext.store.tables.planning import PlacedReplicasRow, PlacementRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import MODELS, UnitOfWork, batches, document, plain

Units = dict[tuple[str, str], float]
"""(region, hardware) -> units."""

PLACEMENTS = METADATA.tables[PlacementRow.__tablename__]
"""The table itself: 10,000 rows are read faster without the objects around them."""

PLACED = METADATA.tables[PlacedReplicasRow.__tablename__]
DEPLOYMENTS = METADATA.tables[DeploymentRow.__tablename__]

_ONE = sa_select(PLACEMENTS).where(PLACEMENTS.c.model == bindparam("model"))

_FORMER = sa_select(MODELS.c.former).where(MODELS.c.name == bindparam("model"))

_PLACED_SLOTS = sa_select(
    PLACED.c.model, PLACED.c.part, PLACED.c.region, PLACED.c.hardware, PLACED.c["count"], PLACED.c.units
).where(PLACED.c.model.in_(bindparam("models", expanding=True)))

_RUNNING_SLOTS = sa_select(
    DEPLOYMENTS.c.model,
    DEPLOYMENTS.c.part,
    DEPLOYMENTS.c.region,
    DEPLOYMENTS.c.hardware,
    DEPLOYMENTS.c.replicas,
    DEPLOYMENTS.c.units,
).where(DEPLOYMENTS.c.model.in_(bindparam("models", expanding=True)))

_PLACED_SUMS = (
    sa_select(PLACED.c.region, PLACED.c.hardware, func.sum(PLACED.c["count"] * PLACED.c.units))
    .where(PLACED.c.model.not_in(bindparam("but", expanding=True)))
    .group_by(PLACED.c.region, PLACED.c.hardware)
)

_NOW = DEPLOYMENTS.c.replicas * DEPLOYMENTS.c.units
_PLANNED = func.coalesce(PLACED.c["count"] * PLACED.c.units, 0.0)

_SUMS_BEYOND = (
    sa_select(DEPLOYMENTS.c.region, DEPLOYMENTS.c.hardware, func.sum(_NOW - _PLANNED))
    .join(
        PLACED,
        and_(*(PLACED.c[key] == DEPLOYMENTS.c[key] for key in ("model", "part", "region", "hardware"))),
        isouter=True,
    )
    .where(DEPLOYMENTS.c.model.not_in(bindparam("but", expanding=True)), _NOW > _PLANNED)
    .group_by(DEPLOYMENTS.c.region, DEPLOYMENTS.c.hardware)
)
"""Running units beyond the placed ones."""

_UNPLACED_SUMS = (
    sa_select(DEPLOYMENTS.c.region, DEPLOYMENTS.c.hardware, func.sum(_NOW))
    .where(DEPLOYMENTS.c.model != bindparam("but"), DEPLOYMENTS.c.model.not_in(sa_select(PLACEMENTS.c.model)))
    .group_by(DEPLOYMENTS.c.region, DEPLOYMENTS.c.hardware)
)
"""Running units of models that the plan in force does not contain."""

_OWNER_SUMS = (
    sa_select(PLACED.c.region, PLACED.c.hardware, func.sum(PLACED.c["count"] * PLACED.c.units))
    .where(PLACED.c.owner == bindparam("owner"), PLACED.c.model != bindparam("but"))
    .group_by(PLACED.c.region, PLACED.c.hardware)
)

DIGITS = 9
"""Digits of sums of fractions: the database sums them in any order, so further digits are noise."""


class Placements(UnitOfWork):
    """Placements of the models in the plan in force."""

    def placement(self, model: str) -> ModelPlacement | None:
        """Return a model's placement in the plan in force; None if the plan does not contain the model."""

        def read() -> ModelPlacement | None:
            row = self._run(_ONE, model=model).first()
            return None if row is None else _placement(row)

        placed = self._once(("placement", model), read)
        if model in self._by_former and (former := self._former(model)) is not None:
            return former
        return placed

    def _former(self, model: str) -> ModelPlacement | None:
        row = self._run(_FORMER, model=model).scalar()
        return None if row is None else decode_frozen(FormerBasis, row).placement

    def placements(self, models: Collection[str] | None = None) -> tuple[ModelPlacement, ...]:
        """Return the placements of these models, or of every model, in the plan in force, by name."""
        query, connection = sa_select(PLACEMENTS), self._connection
        named = (
            [query]
            if models is None
            else [query.where(self._among(PLACEMENTS.c.model, some)) for some in batches(models)]
        )
        found = [_placement(row) for each in named for row in connection.execute(each)]
        return tuple(sorted(found, key=lambda placement: placement.model))

    def deciding_plans(self) -> Mapping[str, str]:
        """Map each model to the plan that decided its placement."""
        return dict(self._session.exec(select(PlacementRow.model, PlacementRow.plan_id)).all())

    def unmet(self) -> tuple[Unmet, ...]:
        """Return the demand that the plan in force leaves unserved, by model."""
        query = select(PlacementRow.unmet).where(PlacementRow.unmet_qps > 0).order_by(PlacementRow.model)
        return tuple(decode_plain(Unmet, item) for text in self._session.exec(query) for item in plain(text))

    def units_entitled(self, *, but: str) -> Units:
        """Return the units that all models but one may use.

        They are those of the plan in force, or the running ones if the plan does not contain them.
        """
        return _sum_units(self._run(_PLACED_SUMS, but=[but]), self._run(_UNPLACED_SUMS, but=but))

    def units_needed(self, *, but: Collection[str]) -> Units:
        """Return the most units that all models except some need.

        For each replica set the larger of placed and running units.
        """
        left_out = sorted(but)
        return _sum_units(self._run(_PLACED_SUMS, but=left_out), self._run(_SUMS_BEYOND, but=left_out))

    def held_slots(self, models: Collection[str]) -> tuple[tuple[HeldSlot, ...], tuple[HeldSlot, ...]]:
        """Return the replica sets of these models: by the plan in force, and by the desired state now."""
        placed, running = (
            tuple(HeldSlot._make(row) for some in batches(models) for row in self._run(query, models=some))
            for query in (_PLACED_SLOTS, _RUNNING_SLOTS)
        )
        return placed, running

    def units_of_owner(self, owner: str, *, but: str) -> Units:
        """Return the units that an owner's models, except one, may use by the plan in force."""
        return _sum_units(self._run(_OWNER_SUMS, owner=owner, but=but))

    def units_placed(self) -> Units:
        """Return the units that the plan in force uses."""
        return _sum_units(self._run(_PLACED_SUMS, but=[]))

    def owner_figures(self) -> Mapping[str, tuple[float, float]]:
        """Map each owner to $/h and unmet requests per second by the plan in force."""
        row = PlacementRow
        query = select(row.owner, func.sum(row.cost_per_hour), func.sum(row.unmet_qps)).group_by(row.owner)
        if self._visible is not None:
            query = query.where(self._among(col(row.owner), self._visible))
        return {owner: (cost, unmet) for owner, cost, unmet in self._session.exec(query.order_by(row.owner))}

    def unmet_by_priority(self) -> Mapping[float, float]:
        """Map each priority to the unmet requests per second of visible models by the plan in force.

        The highest priority comes first.
        """
        row = PlacementRow
        query = select(row.priority, func.sum(row.unmet_qps)).group_by(col(row.priority))
        if self._visible is not None:
            query = query.where(self._among(col(row.owner), self._visible))
        return dict(sorted(self._session.exec(query).all(), reverse=True))

    def _figures(self, *, but: str | None = None) -> dict[str, float]:
        """Return cost and unmet demand of the plan in force, of all models or all except one."""
        row = PlacementRow
        query = select(func.coalesce(func.sum(row.cost_per_hour), 0.0), func.coalesce(func.sum(row.unmet_qps), 0.0))
        if but is not None:
            query = query.where(row.model != but)
        cost, unmet = self._session.exec(query).one()
        return {"cost_per_hour": round(cost, DIGITS), "unmet_qps": round(unmet, DIGITS)}

    def _place(self, plan: "PreparedPlan", *, keeping: Collection[str]) -> None:
        """Write a plan's placements.

        A model whose replicas and traffic are unchanged keeps the plan that decided them.
        """
        scope = plan.record.scope
        wanted = {name: placed for name, placed in plan.placements.items() if name not in keeping}
        known = self._read_placements(None if scope is None else (scope,))
        gone = sorted(known.keys() - wanted.keys() - set(keeping))
        columns = {name: plan.columns[name] for name in wanted}
        for name in columns.keys() & known.keys():
            if _same_rows(known[name], columns[name]):
                columns[name] = columns[name] | {key: known[name][key] for key in ("plan_id", "replicas", "traffic")}
        changed = sorted(name for name in columns if columns[name] != known.get(name))
        self._forget([*gone, *(name for name in changed if name in known)])
        connection = self._connection
        if changed:
            connection.execute(insert(PlacementRow), [columns[name] for name in changed])
        replicas = [row for name in changed for row in _replica_rows(wanted[name])]
        if replicas:
            connection.execute(insert(PlacedReplicasRow), replicas)

    def _read_placements(self, models: Collection[str] | None) -> dict[str, dict[str, Any]]:
        query = sa_select(PLACEMENTS)
        if models is not None:
            query = query.where(PLACEMENTS.c.model.in_(tuple(models)))
        return {row["model"]: dict(row) for row in self._connection.execute(query).mappings()}

    def _forget(self, models: Collection[str]) -> None:
        for some in batches(models):
            for table in (PlacedReplicasRow, PlacementRow):
                self._connection.execute(delete(table).where(self._among(col(table.model), some)))


@dataclass(frozen=True)
class PreparedPlan:
    """A plan with all its rows, prepared before the unit of work that writes it, since that unit blocks others."""

    record: PlanRecord
    placements: Mapping[str, ModelPlacement]
    columns: Mapping[str, dict[str, Any]]
    documents: PlanDocuments

    @classmethod
    def of(cls, record: PlanRecord) -> "PreparedPlan":
        """Prepare a plan."""
        placements = placements_of(record)
        documents = PlanDocuments(
            problem=document(record.problem), plan=document(record.plan), diff=document(record.diff)
        )
        columns = {name: _columns(placed) for name, placed in placements.items()}
        return cls(record, placements, columns, documents)

    def with_record(self, **update: Any) -> "PreparedPlan":
        """Return the same plan with other fields of its record; the placements stay."""
        record = self.record.model_copy(update=update)
        documents = self.documents
        if record.diff is not self.record.diff:
            documents = documents.model_copy(update={"diff": document(record.diff)})
        return replace(self, record=record, documents=documents)


def placements_of(record: PlanRecord) -> dict[str, ModelPlacement]:
    """Return the placement of each model in a plan's problem."""
    prices = {(item.region, item.hardware): item.unit_cost for item in record.problem.supply}
    replicas: dict[str, list[ReplicaCount]] = defaultdict(list)
    traffic: dict[str, list[TrafficShare]] = defaultdict(list)
    unmet: dict[str, list[Unmet]] = defaultdict(list)
    for row in record.plan.replicas:
        if row.count:
            replicas[row.model].append(row)
    for share in record.plan.traffic:
        if share.fraction > 0:
            traffic[share.model].append(share)
    for item in record.plan.unmet:
        unmet[item.model].append(item)
    return {
        wishes.model: ModelPlacement(
            model=wishes.model,
            plan_id=record.id,
            wishes=wishes,
            replicas=tuple(replicas[wishes.model]),
            traffic=tuple(traffic[wishes.model]),
            unmet=tuple(unmet[wishes.model]),
            cost_per_hour=_cost(wishes, replicas[wishes.model], prices),
        )
        for wishes in record.problem.models
    }


def _cost(wishes: ModelProblem, rows: Iterable[ReplicaCount], prices: Mapping[tuple[str, str], float]) -> float:
    units = wishes.units
    taken = ((row, row.count * units.get((row.part, row.hardware), 0.0)) for row in rows)
    return round(sum(used * prices.get((row.region, row.hardware), 0.0) for row, used in taken), DIGITS)


def _replica_rows(placed: ModelPlacement) -> list[dict[str, Any]]:
    units = placed.wishes.units
    return [
        {**row.model_dump(), "owner": placed.wishes.owner, "units": units.get((row.part, row.hardware), 0.0)}
        for row in placed.replicas
    ]


def _columns(placed: ModelPlacement) -> dict[str, Any]:
    return {
        "model": placed.model,
        "plan_id": placed.plan_id,
        "owner": placed.wishes.owner,
        "priority": placed.wishes.priority,
        "wishes": document(placed.wishes),
        "replicas": _dump_values(placed.replicas),
        "traffic": _dump_values(placed.traffic),
        "unmet": _dump_values(placed.unmet),
        "unmet_qps": float(sum(item.qps for item in placed.unmet)),
        "cost_per_hour": placed.cost_per_hour,
    }


def _dump_values(values: Iterable[Any]) -> str:
    return canonical_json([value.model_dump(mode="json", by_alias=True) for value in values])


def _same_rows(known: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Return whether replicas and traffic are the same, apart from noise in the shares."""
    if known["replicas"] != new["replicas"]:
        return False
    return known["traffic"] == new["traffic"] or _shares(known["traffic"]) == _shares(new["traffic"])


def _shares(text: str) -> dict[tuple[str, str], float]:
    return {(row["from"], row["to"]): round(row["fraction"], 6) for row in plain(text)}


def _placement(row: Any) -> ModelPlacement:
    return ModelPlacement(
        model=row.model,
        plan_id=row.plan_id,
        wishes=decode_frozen(ModelProblem, row.wishes),
        replicas=tuple(decode_plain(ReplicaCount, item) for item in plain(row.replicas)),
        traffic=tuple(decode_plain(TrafficShare, item) for item in plain(row.traffic)),
        unmet=tuple(decode_plain(Unmet, item) for item in plain(row.unmet)),
        cost_per_hour=row.cost_per_hour,
    )


def _sum_units(*found: Iterable[Any]) -> Units:
    total: Units = {}
    for region, hardware, units in (row for each in found for row in each):
        total[region, hardware] = round(total.get((region, hardware), 0.0) + units, DIGITS)
    return total
