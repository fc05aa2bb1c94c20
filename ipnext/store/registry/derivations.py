"""Derivations: finished steps on snapshots, and what they derived for generations."""

from collections.abc import Collection
from dataclasses import dataclass

from ipnext.errors import Conflict
from ipnext.model.registry.optimization import AccuracyReport, Derivatives
from ipnext.model.registry.registry import Generation, Snapshot, SnapshotSource
from ipnext.model.wire import decode
from ipnext.store.registry.generations import Generations, read_generation
from ipnext.store.tables.registry import DerivationRow, SnapshotRow
from ipnext.store.unit_of_work import document


@dataclass(frozen=True, slots=True)
class Derivation:
    """A finished step: its report, and the snapshot that it derived; None if a limit was broken."""

    snapshot: Snapshot | None
    report: AccuracyReport


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
    ) -> Snapshot | None:
        """Store a finished step on a snapshot, with the snapshot that it derived; None if it broke a limit.

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
        """Return a finished step on the snapshot with the digest `parent`; None if there is none.

        One whose derived snapshot was collected counts as none.
        """
        row = self._get(DerivationRow, (model, part, parent, recipe))
        if row is None:
            return None
        made = None if row.snapshot is None else self.snapshot(model, part, row.snapshot)
        if made is not None and self._is_collected(made):
            return None
        return Derivation(snapshot=made, report=decode(AccuracyReport, row.report))

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
