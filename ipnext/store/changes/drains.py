"""Drains of regions: requests and progress. They are not part of the fleet's manifest: applying it keeps them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import select as sa_select
from sqlalchemy import union
from sqlmodel import col, func, or_, select

from ipnext import names
from ipnext.errors import InvalidInput, NotFound
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.regions.drain import Drain, DrainState, HeldModel
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import TransitionState
from ipnext.store.tables.changes import (
    ChangeRow,
    ConditionRow,
    DeploymentRow,
    DrainRow,
    RouteRow,
    RouteShareRow,
    TransitionRow,
)
from ipnext.store.tables.planning import PlacedReplicasRow, PlacementRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork, batches

LONGEST_REASON = 500
"""Characters of a reason."""

_OVER = tuple(state.value for state in DrainState if state.over)

_OPEN_TRANSITIONS = (TransitionState.PLANNED.value, TransitionState.RUNNING.value)

DRAINS = METADATA.tables[DrainRow.__tablename__]

_OUT_OF_SERVICE = (
    sa_select(DRAINS)
    .where(
        DRAINS.c.ordinal.in_(sa_select(func.max(DRAINS.c.ordinal)).group_by(DRAINS.c.region)),
        DRAINS.c.state.not_in(_OVER),
    )
    .order_by(DRAINS.c.region)
)

_TAKEN = _OUT_OF_SERVICE.where(DRAINS.c.told, DRAINS.c.state != DrainState.DRAINED.value)


class Drains(UnitOfWork):
    """The journal of drains; the newest of each region is in force."""

    def add_drain(self, region: str, *, disaster: bool = False, force: bool = False, reason: str = "") -> Drain:
        """Record a drain. If one is under way, it is returned and submitted to the workflow engine again.

        A disaster, or `force`, extends it. A drain whose region is being restored starts again. The caller checks that
        a region remains.
        """
        self._writing(None)
        if len(reason) > LONGEST_REASON:
            msg = f"reason: at most {LONGEST_REASON} characters, got {len(reason)}"
            raise InvalidInput(msg, field="reason", value=reason[:LONGEST_REASON])
        row = self._newest_drain(region)
        if row is None or DrainState(row.state).over:
            return self._new_drain(region, disaster=disaster, force=force, reason=reason)
        back = row.state == DrainState.RETURNING.value
        worse = disaster and not row.disaster
        if back or worse or (force and not row.force):
            row.disaster, row.force = row.disaster or disaster, row.force or force
            row.reason = reason or row.reason
            row.state, row.message, row.told, row.finished_at = DrainState.RECORDED.value, "", False, None
            row.updated_at = self._now()
            if row.disaster and (back or worse):
                row.lost_after_change = self._newest_change()
            self._add(row)
        else:
            self._resubmit(row)
        return _drain(row)

    def ask_return(self, region: str, *, reason: str = "") -> Drain:
        """Request to restore a drained region; a repeated request submits it to the workflow engine again.

        NotFound if it is not drained.
        """
        self._writing(None)
        row = self._newest_drain(region)
        if row is None or DrainState(row.state).over:
            msg = f"region {region!r} is not drained"
            raise NotFound(msg)
        if row.state != DrainState.RETURNING.value:
            row.state, row.told, row.finished_at = DrainState.RETURNING.value, False, None
            row.message = f"asked back: {reason}" if reason else "asked back"
            row.updated_at = self._now()
            if row.disaster:
                row.lost_after_change = self._newest_change()
            self._add(row)
        else:
            self._resubmit(row)
        return _drain(row)

    def was_lost_since(self, change_id: str, regions: Iterable[str]) -> bool:
        """Return whether any region was declared lost, or requested back after that, since a change was recorded.

        Compared by the order in which the store recorded them: the writers' clocks may differ. False if the change is
        unknown.
        """
        recorded = select(ChangeRow.ordinal).where(ChangeRow.id == change_id).scalar_subquery()
        query = select(DrainRow.ordinal).where(self._among(col(DrainRow.region), sorted(set(regions))))
        return self._session.exec(query.where(col(DrainRow.lost_after_change) >= recorded).limit(1)).first() is not None

    def drain(self, region: str) -> Drain | None:
        """Return the newest drain of a region."""
        row = self._newest_drain(region)
        return None if row is None else _drain(row)

    def drains(self) -> tuple[Drain, ...]:
        """Return the newest drain of each region that is out of service, by region."""
        return self._once("drains", lambda: tuple(_read(dict(row)) for row in self._run(_OUT_OF_SERVICE).mappings()))

    def unsubmitted_drains(self) -> tuple[Drain, ...]:
        """Return the drains that are not yet submitted to the workflow engine, oldest first."""
        query = select(DrainRow).where(col(DrainRow.told).is_(False)).order_by(col(DrainRow.ordinal))
        return tuple(_drain(row) for row in self._session.exec(query))

    def claimed_drains(self) -> tuple[Drain, ...]:
        """Return the drains that the workflow engine has started and whose run has not ended, by region.

        Each needs a run.
        """
        return tuple(_read(dict(row)) for row in self._run(_TAKEN).mappings())

    def mark_submitted(self, found: Collection[Drain]) -> None:
        """Mark these drains as submitted, unless they were updated since: later requests are still to be submitted."""
        self._writing(None)
        for drain in found:
            row = self._session.exec(select(DrainRow).where(DrainRow.id == drain.id)).one()
            if row.updated_at == drain.updated_at:
                row.told = True
                self._add(row)

    def update_drain(self, drain_id: str, **changes: Any) -> Drain:
        """Write the progress of a drain. A state that is over, or drained, has an end time. Raises NotFound."""
        self._writing(None)
        row = self._session.exec(select(DrainRow).where(DrainRow.id == drain_id)).first()
        if row is None:
            msg = f"drain {drain_id!r} is not known"
            raise NotFound(msg)
        for name, value in changes.items():
            setattr(row, name, value.value if isinstance(value, DrainState | Reason) else value)
        state = DrainState(row.state)
        if state.over or state is DrainState.DRAINED:
            row.finished_at = row.finished_at or self._now()
        self._add(row)
        return _drain(row)

    def find_remaining(self, region: str) -> tuple[frozenset[str], int]:
        """Return the models with replicas or planned placements in a region, and its number of desired replicas."""
        held = self._session.exec(
            select(DeploymentRow.model, DeploymentRow.replicas).where(
                DeploymentRow.region == region, DeploymentRow.replicas > 0
            )
        ).all()
        placed = self._session.exec(
            select(PlacedReplicasRow.model).where(PlacedReplicasRow.region == region, PlacedReplicasRow.count > 0)
        ).all()
        return frozenset({model for model, _ in held} | set(placed)), sum(count for _, count in held)

    def find_held(self, region: str) -> tuple[HeldModel, ...]:
        """Return the models that use a region, now or by their plan, and whose changes are blocked, by name."""
        held = select(DeploymentRow.model).where(DeploymentRow.region == region, DeploymentRow.replicas > 0)
        placed = select(PlacedReplicasRow.model).where(PlacedReplicasRow.region == region, PlacedReplicasRow.count > 0)
        sent = select(RouteShareRow.model).where(RouteShareRow.to == region, RouteShareRow.fraction > 0)
        uses = union(held, placed, sent)
        frozen = select(ChangeRow).where(
            ChangeRow.state == ChangeState.RUNNING.value,
            ChangeRow.reason == Reason.FROZEN.value,
            col(ChangeRow.model).in_(uses),
        )
        blocked = select(ConditionRow).where(
            ConditionRow.type == ConditionType.PROGRESSING.value,
            ConditionRow.status == "False",
            col(ConditionRow.model).in_(uses),
        )
        found = {
            row.model: HeldModel(
                model=row.model,
                reason=Reason.FROZEN,
                message=f"{row.kind} {row.id} is {row.message}",
                change_id=row.id,
            )
            for row in self._session.exec(frozen)
        }
        for row in self._session.exec(blocked):
            found[row.model] = HeldModel(model=row.model, reason=Reason(row.reason), message=row.message)
        return tuple(found[model] for model in sorted(found))

    def find_models_in(self, region: str) -> frozenset[str]:
        """Return the models that use a region.

        They have replicas or a planned placement there, traffic of or to it, or an open transition that names it.
        """
        placed, _ = self.find_remaining(region)
        sent = select(RouteShareRow.model).where(
            or_(col(RouteShareRow.region) == region, col(RouteShareRow.to) == region), RouteShareRow.fraction > 0
        )
        moved = select(TransitionRow.model).where(
            col(TransitionRow.state).in_(_OPEN_TRANSITIONS),
            col(TransitionRow.transition).contains(f'"{region}"', autoescape=True),
        )
        return placed | {*self._session.exec(sent), *self._session.exec(moved)}

    def models_routed_to(self, region: str) -> tuple[str, ...]:
        """Return the models with a route table to or in the region, the most important first."""
        own = select(RouteRow.model).where(RouteRow.region == region)
        sent = select(RouteShareRow.model).where(RouteShareRow.to == region)
        found = {*self._session.exec(own), *self._session.exec(sent)}
        priorities = self._priorities(found)
        return tuple(sorted(found, key=lambda model: (-priorities.get(model, 0.0), model)))

    def _priorities(self, models: Collection[str]) -> dict[str, float]:
        """Return the priorities of models in the plan in force."""
        query = select(PlacementRow.model, PlacementRow.priority)
        return {
            model: priority
            for some in batches(models)
            for model, priority in self._session.exec(query.where(self._among(col(PlacementRow.model), some)))
        }

    def _new_drain(self, region: str, *, disaster: bool, force: bool, reason: str) -> Drain:
        now = self._now()
        count = self._session.exec(select(func.count()).select_from(DrainRow).where(DrainRow.region == region)).one()
        row = DrainRow(
            id=names.drain_id(region, count + 1),
            region=region,
            disaster=disaster,
            force=force,
            reason=reason,
            state=DrainState.RECORDED.value,
            cause=Reason.PENDING.value,
            message="",
            models_left=0,
            replicas_left=0,
            traffic_left_qps=0.0,
            replans=0,
            told=False,
            lost_after_change=self._newest_change() if disaster else None,
            created_at=now,
            updated_at=now,
        )
        self._add(row)
        return _drain(row)

    def _resubmit(self, row: DrainRow) -> None:
        """Submit a drain that continues to the workflow engine once more: its run may have been terminated."""
        if row.told and row.state != DrainState.DRAINED.value:
            row.told = False
            self._add(row)

    def _newest_change(self) -> int:
        """Return the ordinal of the newest change of all models, 0 before the first.

        This unit is of all models, so no other change is recorded during it.
        """
        return self._session.exec(select(func.max(ChangeRow.ordinal))).one() or 0

    def _newest_drain(self, region: str) -> DrainRow | None:
        query = select(DrainRow).where(DrainRow.region == region).order_by(col(DrainRow.ordinal).desc())
        return self._session.exec(query.limit(1)).first()


def _drain(row: DrainRow) -> Drain:
    return _read(row.model_dump())


def _read(row: Mapping[str, Any]) -> Drain:
    left_out = {"ordinal", "told", "lost_after_change"}
    found = {name: value for name, value in row.items() if name not in left_out}
    return Drain(**found | {"state": DrainState(row["state"]), "cause": Reason(row["cause"])})
