"""Derivations: finished steps on snapshots, and what they derived for generations."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import and_, func
from sqlalchemy import select as sa_select

from ipnext.errors import Conflict
from ipnext.model.registry.optimization import AccuracyReport, Derivatives
from ipnext.model.registry.registry import Generation, Snapshot, SnapshotSource
from ipnext.model.wire import decode
from ipnext.store.registry.generations import Generations, read_generation
from ipnext.store.tables.registry import DerivationRow, SnapshotRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches, document, plain


@dataclass(frozen=True, slots=True)
class Derivation:
    """A finished step: its report, and the snapshot that it derived; None if a limit was broken."""

    snapshot: Snapshot | None
    report: AccuracyReport


@dataclass(frozen=True, slots=True)
class ListedDerivation:
    """A finished step, for lists."""

    model: str
    part: str
    parent: int | None
    """Number of the snapshot that it derives from; None if none has its digest any more."""
    parent_digest: str
    report: AccuracyReport
    created_at: datetime
    snapshot: int | None
    """Number of the derived snapshot; None if a limit was broken."""
    published: int | None
    hardware: tuple[str, ...]
    is_collected: bool


_STEPS: Final = METADATA.tables[DerivationRow.__tablename__]
_MADE: Final = METADATA.tables[SnapshotRow.__tablename__].alias()
_PARENT: Final = METADATA.tables[SnapshotRow.__tablename__].alias()
_JOINED: Final = _STEPS.outerjoin(
    _MADE, and_(_MADE.c.model == _STEPS.c.model, _MADE.c.part == _STEPS.c.part, _MADE.c.number == _STEPS.c.snapshot)
)
_LISTED: Final = sa_select(
    *(_STEPS.c[name] for name in ("model", "part", "parent", "snapshot", "report", "created_at")),
    _MADE.c.derived_from,
    _MADE.c.hardware,
    _MADE.c.collected_at,
    sa_select(func.min(_PARENT.c.number))
    .where(_PARENT.c.model == _STEPS.c.model, _PARENT.c.part == _STEPS.c.part, _PARENT.c.digest == _STEPS.c.parent)
    .correlate(_STEPS)
    .scalar_subquery()
    .label("parent_number"),
)


class Derivations(Generations):
    """Steps on snapshots, each stored once for its recipe."""

    def add_derivation(
        self,
        source: Snapshot,
        recipe: str,
        report: AccuracyReport,
        derived: SnapshotSource | None,
        *,
        hardware: Collection[str] = (),
        is_repeated: bool = False,
    ) -> Snapshot | None:
        """Store a finished step on a snapshot, with the snapshot that it derived; None if it broke a limit.

        `is_repeated`: it is kept for people only; another attempt judges the step again.

        `hardware`: the kinds that it was derived for; empty: all. If the step was stored before and its snapshot is
        kept, that one stays.
        """
        self._writing_model(source.model)
        known = self.derivation(source.model, source.part, source.digest, recipe)
        if known is not None and known.snapshot is not None and not self._is_collected(known.snapshot):
            return known.snapshot
        made = None if derived is None else self._add_derived(source, derived, hardware)
        row = self._get(DerivationRow, (source.model, source.part, source.digest, recipe))
        if row is None:
            row = DerivationRow(
                model=source.model,
                part=source.part,
                parent=source.digest,
                recipe=recipe,
                report="",
                created_at=self._now(),
            )
        row.snapshot, row.report = None if made is None else made.number, document(report)
        row.is_repeated, row.created_at = is_repeated, self._now()
        self._add(row)
        return made

    def _add_derived(self, source: Snapshot, derived: SnapshotSource, hardware: Collection[str]) -> Snapshot:
        number = self._next_snapshot(source.model, source.part)
        published = source.derived_from or source.number
        self._add_snapshot(source.model, source.part, derived, number=number, derived_from=published, hardware=hardware)
        return self.snapshot(source.model, source.part, number)

    def _is_collected(self, snapshot: Snapshot) -> bool:
        row = self._get(SnapshotRow, (snapshot.model, snapshot.part, snapshot.number))
        return row is None or row.collected_at is not None

    def derivation(self, model: str, part: str, parent: str, recipe: str) -> Derivation | None:
        """Return a finished step on the snapshot with the digest `parent`; None if there is none to use again.

        One whose derived snapshot was collected counts as none.
        """
        row = self._get(DerivationRow, (model, part, parent, recipe))
        if row is None or row.is_repeated:
            return None
        made = None if row.snapshot is None else self.snapshot(model, part, row.snapshot)
        if made is not None and self._is_collected(made):
            return None
        return Derivation(snapshot=made, report=decode(AccuracyReport, row.report))

    def recent_derivations(self, models: Collection[str], *, limit: int) -> Mapping[str, tuple[ListedDerivation, ...]]:
        """Map each of these models to its newest finished steps, newest first. Models without one are left out."""
        by_age = (_STEPS.c.created_at.desc(), _STEPS.c.parent, _STEPS.c.recipe)
        place = func.row_number().over(partition_by=_STEPS.c.model, order_by=by_age).label("place")
        found: dict[str, list[ListedDerivation]] = defaultdict(list)
        for some in batches(models):
            ranked = sa_select(*_STEPS.primary_key, place).where(self._among(_STEPS.c.model, some)).subquery()
            same = and_(*(_STEPS.c[key.name] == ranked.c[key.name] for key in _STEPS.primary_key))
            query = _LISTED.select_from(_JOINED.join(ranked, same)).where(ranked.c.place <= limit)
            for row in self._connection.execute(query.order_by(_STEPS.c.model, ranked.c.place)):
                found[row.model].append(_listed(row))
        return {model: tuple(steps) for model, steps in found.items()}

    def set_derived(self, model: str, number: int, derived: Derivatives | None) -> Generation:
        """Store the derived snapshots of a generation, before it first serves: Conflict later. Raises NotFound."""
        self._writing_model(model)
        row = self._generation_row(model, number)
        text = None if derived is None else document(derived)
        if row.serving_at is not None and row.derived != text:
            msg = f"generation {number} of model {model!r} has served: its snapshots stay; publish a new one"
            raise Conflict(msg)
        row.derived = text
        self._add(row)
        return read_generation(row)


def _listed(row: Any) -> ListedDerivation:
    return ListedDerivation(
        model=row.model,
        part=row.part,
        parent=row.parent_number,
        parent_digest=row.parent,
        report=decode(AccuracyReport, row.report),
        created_at=row.created_at,
        snapshot=row.snapshot,
        published=row.derived_from or row.parent_number,
        hardware=() if row.hardware is None else tuple(plain(row.hardware)),
        is_collected=row.collected_at is not None,
    )
