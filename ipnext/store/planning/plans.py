"""Plans, and which one is in force."""

from collections.abc import Collection
from typing import Any, cast

from sqlalchemy import delete, update
from sqlalchemy import select as sa_select
from sqlalchemy.orm import defer
from sqlmodel import col, select

from ipnext.errors import NotFound, StaleWrite
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import Plan, PlanDiff, Problem
from ipnext.model.wire import decode
from ipnext.store.database import dialects
from ipnext.store.planning.placements import Placements, PreparedPlan
from ipnext.store.records import PlanDocuments, PlanEntry, PlanOutcome, PlanRecord, SolveUse
from ipnext.store.tables.planning import PlanInForceRow, PlanRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches, rows

IN_FORCE = 1

_HEAVY: tuple[Any, ...] = (PlanRow.problem, PlanRow.plan, PlanRow.diff)
_LINE = tuple(defer(column, raiseload=True) for column in _HEAVY)
"""Every column except the documents, which may be megabytes."""

_HELD = col(PlanRow.plan).is_not(None)
"""Whether a plan still has its documents."""

_LINES = select(PlanRow, _HELD).options(*_LINE)

PLANS = METADATA.tables[PlanRow.__tablename__]
POINTER = METADATA.tables[PlanInForceRow.__tablename__]

_LINE_IN_FORCE = (
    sa_select(
        *(column for column in PLANS.c if column.name not in {"problem", "plan", "diff"}),
        PLANS.c.plan.is_not(None).label("has_documents"),
    )
    .join(POINTER, POINTER.c.plan_id == PLANS.c.id)
    .where(POINTER.c.id == IN_FORCE)
)

_LOCKED = sa_select(POINTER.c.plan_id).where(POINTER.c.id == IN_FORCE).with_for_update()


class Plans(Placements):
    """Plans. One is in force at a time; an adopted one never changes again."""

    def save_plan(self, plan: PreparedPlan) -> PlanEntry:
        """Store a plan that is not in force; the same id again replaces it unless it was adopted.

        Returns the stored entry.
        """
        self._writing_any()
        return self._upsert_plan(plan.record.id, self._columns_of(plan))

    def save_failure(self, entry: PlanEntry) -> PlanEntry:
        """Store the entry of a replan that found no plan; a plan of the same id stays."""
        self._writing_any()
        if self._line(entry.id) is not None:
            return self.plan_entry(entry.id)
        return self._upsert_plan(entry.id, _failure_columns(entry))

    def plan(self, plan_id: str) -> PlanRecord:
        """Return one plan with its documents. NotFound, also if only its entry is kept."""
        row = self._plan_row(plan_id)
        found = _documents(row)
        return PlanRecord(
            id=row.id,
            trigger=row.trigger,
            scope=row.scope,
            outcome=cast("PlanOutcome", row.outcome),
            reason=Reason(row.reason),
            message=row.message,
            based_on=row.based_on,
            input_digest=row.input_digest,
            problem=decode(Problem, found.problem),
            plan=decode(Plan, found.plan),
            diff=decode(PlanDiff, found.diff),
            use=_use(row),
            created_at=row.created_at,
        )

    def plan_entry(self, plan_id: str) -> PlanEntry:
        """Return the entry of one plan. Raises NotFound."""
        entry = self._first(_LINES.where(PlanRow.id == plan_id))
        if entry is None:
            raise _unknown(plan_id)
        return entry

    def scope_of_plan(self, plan_id: str) -> tuple[bool, str | None]:
        """Return whether there is such a plan, and the one model that it places; None for a plan of the fleet."""
        found = self._session.exec(select(PlanRow.scope).where(PlanRow.id == plan_id)).all()
        return bool(found), found[0] if found else None

    def plan_documents(self, plan_id: str) -> PlanDocuments:
        """Return a plan's documents as text. NotFound, also if only its entry is kept."""
        return _documents(self._plan_row(plan_id))

    def plan_diff(self, plan_id: str) -> PlanDiff:
        """Return a plan's changes against the one before it. NotFound, also if only its entry is kept."""
        found = self._session.exec(select(PlanRow.diff).where(PlanRow.id == plan_id)).first()
        if found is None:
            self.plan_entry(plan_id)
            raise _plan_gone(plan_id)
        return decode(PlanDiff, found)

    def plans(self, *, limit: int = 20, fleet_only: bool = False) -> tuple[PlanEntry, ...]:
        """Return the entries of plans, newest first."""
        query = _LINES.where(col(PlanRow.scope).is_(None)) if fleet_only else _LINES
        found = self._session.exec(query.order_by(col(PlanRow.ordinal).desc()).limit(rows(limit)))
        return tuple(_entry(row, has_documents=held) for row, held in found)

    def newest_fleet_plan(self, *, outcomes: Collection[str]) -> PlanEntry | None:
        """Return the entry of the newest plan of the whole fleet with one of these outcomes, if there is one."""
        query = _LINES.where(col(PlanRow.scope).is_(None), col(PlanRow.outcome).in_(tuple(outcomes)))
        return self._first(query.order_by(col(PlanRow.ordinal).desc()).limit(1))

    def fleet_plans(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of the plans that are of the whole fleet."""
        query = select(PlanRow.id).where(col(PlanRow.scope).is_(None))
        found = (self._session.exec(query.where(self._among(col(PlanRow.id), some))) for some in batches(ids))
        return frozenset(plan_id for each in found for plan_id in each)

    def plan_in_force(self) -> PlanEntry | None:
        """Return the entry of the plan adopted last; None before the first.

        `placements` has its content for each model.
        """
        row = self._run(_LINE_IN_FORCE).first()
        return None if row is None else _entry(row, has_documents=row.has_documents)

    def plan_in_force_id(self) -> str | None:
        """Return the id of the plan adopted last."""
        row = self._get(PlanInForceRow, IN_FORCE)
        return None if row is None else row.plan_id

    def lock_plan_in_force(self) -> str | None:
        """Return the id of the plan adopted last.

        Until this unit ends, others neither adopt plans nor admit transitions. Placements, and the transitions under
        way, are stable from here on; those of other models may end.
        """
        dialects.lock_plan(self.connection())  # before the first plan there is no row to lock
        self._forget_read()  # rows that were read before the lock may have changed
        found: str | None = self._run(_LOCKED).scalar()
        return found

    def adopt_plan(self, plan: PreparedPlan, *, expected: str | None, keeping: Collection[str] = ()) -> PlanEntry:
        """Store a plan and put it in force after `expected` (None: there was none).

        No change if it is already in force. A plan of the whole fleet replaces every placement except those of
        `keeping`; a plan of one model only that model's. StaleWrite if another plan is in force than expected. A plan
        of one model is adopted in a unit of that model, one of the whole fleet in a unit that names the plan.
        """
        record = plan.record
        self._writing(record.scope or record.id)
        current = self.lock_plan_in_force()
        if current == record.id:
            return self.plan_entry(record.id)
        if current != expected:
            msg = f"plan {current!r} is in force, the write expects {expected!r}; plan again from the one in force"
            raise StaleWrite(msg)
        self._place(plan, keeping=keeping)
        adopted = plan.with_record(outcome="adopted", based_on=expected)
        self._upsert_plan(record.id, {**self._columns_of(adopted), **self._figures()})
        pointer = self._get(PlanInForceRow, IN_FORCE)
        if pointer is None:
            pointer = PlanInForceRow(id=IN_FORCE, plan_id=record.id, adopted_at=self._now())
        pointer.plan_id, pointer.adopted_at = record.id, self._now()
        self._add(pointer)
        return self.plan_entry(record.id)

    def prune_plans(self, *, keep: int) -> int:
        """Prune old plans of the whole fleet, all except the newest `keep`. Returns the number of changed rows.

        Plans that were never adopted are deleted; adopted ones keep their entry. The documents of the fleet plan
        adopted last stay however old it is. Plans of one model are small and stay. Only replans write these rows, one
        at a time.
        """
        self._writing_any()
        fleet = select(PlanRow.ordinal).where(col(PlanRow.scope).is_(None)).order_by(col(PlanRow.ordinal).desc())
        oldest = self._session.exec(fleet.offset(max(keep, 1) - 1).limit(1)).first()
        if oldest is None:
            return 0
        last = self.newest_fleet_plan(outcomes=("adopted",))
        old = (col(PlanRow.scope).is_(None), col(PlanRow.ordinal) < oldest)
        connection = self._connection
        gone = connection.execute(delete(PlanRow).where(*old, col(PlanRow.outcome) != "adopted"))
        adopted = update(PlanRow).where(
            *old, col(PlanRow.plan).is_not(None), col(PlanRow.id) != (last.id if last else "")
        )
        emptied = connection.execute(adopted.values(problem=None, plan=None, diff=None))
        self._forget_read()
        return int(gone.rowcount + emptied.rowcount)

    def _upsert_plan(self, plan_id: str, columns: dict[str, Any]) -> PlanEntry:
        """Insert a plan, or replace one that was not adopted."""
        row = self._find_plan(plan_id)
        if row is None:
            row = PlanRow(id=plan_id, **columns)
        elif row.outcome != "adopted":
            for name, value in columns.items():
                setattr(row, name, value)
        self._add(row)
        return _entry(row, has_documents=row.plan is not None)

    def _columns_of(self, plan: PreparedPlan) -> dict[str, Any]:
        """Return a plan as columns.

        The figures are of the fleet: for a plan of one model, all other models are added.
        """
        record = plan.record
        cost, unmet = record.plan.cost_per_hour, sum(item.qps for item in record.plan.unmet)
        if record.scope is not None:
            others = self._figures(but=record.scope)
            cost, unmet = others["cost_per_hour"] + cost, others["unmet_qps"] + unmet
        return {**_columns(plan), "cost_per_hour": cost, "unmet_qps": unmet}

    def _first(self, lines: Any) -> PlanEntry | None:
        found = self._session.exec(lines).first()
        return None if found is None else _entry(found[0], has_documents=found[1])

    def _holding(self, ids: Collection[str]) -> frozenset[str]:
        """Return those of the plans that still have their documents."""
        query = select(PlanRow.id).where(col(PlanRow.id).in_(tuple(ids)), col(PlanRow.plan).is_not(None))
        return frozenset(self._session.exec(query))

    def _line(self, plan_id: str) -> PlanRow | None:
        query = select(PlanRow).options(*_LINE).where(PlanRow.id == plan_id)
        return self._session.exec(query).first()

    def _find_plan(self, plan_id: str) -> PlanRow | None:
        return self._session.exec(select(PlanRow).where(PlanRow.id == plan_id)).first()

    def _plan_row(self, plan_id: str) -> PlanRow:
        row = self._find_plan(plan_id)
        if row is None:
            raise _unknown(plan_id)
        return row


def _unknown(plan_id: str) -> NotFound:
    msg = f"plan {plan_id!r} is not known"
    return NotFound(msg)


def _plan_gone(plan_id: str) -> NotFound:
    msg = f"of plan {plan_id!r} only its line is kept (no plan was found, or it is too old)"
    return NotFound(msg)


def _documents(row: PlanRow) -> PlanDocuments:
    if row.problem is None or row.plan is None or row.diff is None:
        raise _plan_gone(row.id)
    return PlanDocuments(problem=row.problem, plan=row.plan, diff=row.diff)


def _columns(prepared: PreparedPlan) -> dict[str, Any]:
    record = prepared.record
    plan, use = record.plan, record.use
    return {
        **prepared.documents.model_dump(),
        "trigger": record.trigger,
        "scope": record.scope,
        "outcome": record.outcome,
        "reason": record.reason.value,
        "message": record.message,
        "based_on": record.based_on,
        "input_digest": record.input_digest,
        "status": plan.status,
        "method": plan.solver.method,
        "objective": plan.objective,
        "bound": plan.bound,
        "bound_covers": plan.bound_covers,
        "gap": plan.gap,
        "moves": record.diff.moves,
        "wall_seconds": use.wall_seconds if use else None,
        "cpu_seconds": use.cpu_seconds if use else None,
        "peak_memory_bytes": use.peak_memory_bytes if use else None,
        "created_at": record.created_at,
    }


def _failure_columns(entry: PlanEntry) -> dict[str, Any]:
    use = entry.use
    return {
        **entry.model_dump(exclude={"id", "use", "has_documents", "reason"}),
        "reason": entry.reason.value,
        "wall_seconds": use.wall_seconds if use else None,
        "cpu_seconds": use.cpu_seconds if use else None,
        "peak_memory_bytes": use.peak_memory_bytes if use else None,
    }


def _use(row: Any) -> SolveUse | None:
    if row.wall_seconds is None or row.cpu_seconds is None:
        return None
    return SolveUse(wall_seconds=row.wall_seconds, cpu_seconds=row.cpu_seconds, peak_memory_bytes=row.peak_memory_bytes)


def _entry(row: Any, *, has_documents: bool) -> PlanEntry:
    return PlanEntry(
        id=row.id,
        trigger=row.trigger,
        scope=row.scope,
        outcome=cast("PlanOutcome", row.outcome),
        reason=Reason(row.reason),
        message=row.message,
        based_on=row.based_on,
        input_digest=row.input_digest,
        status=row.status,
        method=row.method,
        objective=row.objective,
        bound=row.bound,
        bound_covers=row.bound_covers,
        gap=row.gap,
        cost_per_hour=row.cost_per_hour,
        unmet_qps=row.unmet_qps,
        moves=row.moves,
        use=_use(row),
        has_documents=has_documents,
        created_at=row.created_at,
    )
