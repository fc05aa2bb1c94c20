"""Snapshots, generations and their validation reports."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, bindparam, case, insert
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlmodel import col, func, select, tuple_

from ipnext.errors import Conflict, NotFound
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.registry.optimization import AccuracyReport, Derivatives
from ipnext.model.registry.registry import (
    Generation,
    GenerationState,
    Hosting,
    PartGraph,
    Snapshot,
    SnapshotManifest,
    SnapshotSource,
    SplitLayout,
)
from ipnext.model.wire import decode, decode_frozen
from ipnext.store.records import GenerationEnd
from ipnext.store.tables.registry import DerivationRow, GenerationRow, ReportRow, SnapshotRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import MODELS, UnitOfWork, batches, bytes_of, document, format_known, plain

GENERATIONS = METADATA.tables[GenerationRow.__tablename__]
SNAPSHOTS = METADATA.tables[SnapshotRow.__tablename__]
REPORTS = METADATA.tables[ReportRow.__tablename__]

LOOKED_AT = 20
"""Newest generations among which one with a later snapshot is searched."""

_OF_MODEL = sa_select(GENERATIONS).where(GENERATIONS.c.model == bindparam("model"))
_ONE = _OF_MODEL.where(GENERATIONS.c.number == bindparam("number"))
_ONE_IS = sa_update(GENERATIONS).where(
    GENERATIONS.c.model == bindparam("of_model"), GENERATIONS.c.number == bindparam("of_number")
)
_COOLED = (
    sa_update(GENERATIONS)
    .where(GENERATIONS.c.model == bindparam("of_model"), GENERATIONS.c.state == GenerationState.SERVING.value)
    .values(state=GenerationState.WARM.value)
)
_NUMBERS = (
    sa_select(GENERATIONS.c.number).where(GENERATIONS.c.model == bindparam("model")).order_by(GENERATIONS.c.number)
)
_IN_STATES = _NUMBERS.where(GENERATIONS.c.state.in_(bindparam("states", expanding=True)))
_SERVED = _NUMBERS.where(
    GENERATIONS.c.number.in_(bindparam("numbers", expanding=True)), GENERATIONS.c.serving_at.is_not(None)
)


def _select_cut(number: ColumnElement[int]) -> ScalarSelect[int]:
    """Return the number if the generation is cut.

    A scalar subquery is looked up for each model, whatever the statistics.
    """
    mine = (GENERATIONS.c.model == MODELS.c.name, GENERATIONS.c.number == number, GENERATIONS.c.layout.is_not(None))
    return sa_select(GENERATIONS.c.number).where(*mine).correlate(MODELS).scalar_subquery()


_CUT = sa_select(
    MODELS.c.name,
    _select_cut(MODELS.c.serving_generation).label("serving"),
    _select_cut(MODELS.c.target_generation).label("target"),
).order_by(MODELS.c.name)
_SNAPSHOT = sa_select(SNAPSHOTS).where(
    SNAPSHOTS.c.model == bindparam("model"),
    SNAPSHOTS.c.part == bindparam("part"),
    SNAPSHOTS.c.number == bindparam("number"),
)
SNAPSHOT_IS = sa_update(SNAPSHOTS).where(
    SNAPSHOTS.c.model == bindparam("of_model"),
    SNAPSHOTS.c.part == bindparam("of_part"),
    SNAPSHOTS.c.number == bindparam("of_number"),
)
REPORT_IS = (REPORTS.c.model == bindparam("of_model"), REPORTS.c.generation == bindparam("of_generation"))
REPORT = sa_select(REPORTS.c.report).where(*REPORT_IS)
_REPORT_IS = sa_update(REPORTS).where(*REPORT_IS)
_NEW_REPORT = insert(REPORTS)
_COUNTED = (
    sa_update(MODELS)
    .where(MODELS.c.name == bindparam("of_name"))
    .values(
        document_bytes=case(
            (MODELS.c.document_bytes + bindparam("more") > 0, MODELS.c.document_bytes + bindparam("more")), else_=0
        )
    )
)
_NUMBERED = _OF_MODEL.where(GENERATIONS.c.number.in_(bindparam("numbers", expanding=True)))
_FORMER = (
    _OF_MODEL.where(
        GENERATIONS.c.serving_at.is_not(None), GENERATIONS.c.number.not_in(bindparam("numbers", expanding=True))
    )
    .order_by(GENERATIONS.c.serving_at.desc(), GENERATIONS.c.number.desc())
    .limit(bindparam("limit"))
)
_SNAPSHOTS_NAMED = sa_select(SNAPSHOTS).where(
    tuple_(SNAPSHOTS.c.model, SNAPSHOTS.c.part, SNAPSHOTS.c.number).in_(bindparam("names", expanding=True))
)


@dataclass(frozen=True, slots=True)
class Derivation:
    """A finished step: its report, and the snapshot that it derived; None if a limit was broken."""

    snapshot: Snapshot | None
    report: AccuracyReport


_PUBLISHED = col(SnapshotRow.derived_from).is_(None)


class Snapshots(UnitOfWork):
    """Published snapshots and generations. Numbers rise by one from 1 and are never reused."""

    def snapshot(self, model: str, part: str, number: int) -> Snapshot:
        """Return one snapshot. NotFound names the newest number of each part."""
        return self._once(("snapshot", model, part, number), lambda: self._read_snapshot(model, part, number))

    def _read_snapshot(self, model: str, part: str, number: int) -> Snapshot:
        row = self._run(_SNAPSHOT, model=model, part=part, number=number).first()
        if row is None:
            self._check_known(model)
            newest = self._newest_snapshots(model)
            there = format_known([f"{name} 1..{snapshot.number}" for name, snapshot in sorted(newest.items())])
            msg = f"model {model!r} has no snapshot {number} of part {part!r}; {there}"
            raise NotFound(msg)
        return read_snapshot(row)

    def has_snapshot(self, model: str, part: str, digest: str | None = None) -> bool:
        """Return whether a part has a published snapshot: one with a digest, or any."""
        query = select(SnapshotRow.number).where(SnapshotRow.model == model, SnapshotRow.part == part, _PUBLISHED)
        query = query if digest is None else query.where(SnapshotRow.digest == digest)
        return self._session.exec(query.limit(1)).first() is not None

    def has_bytes(self, model: str, part: str, digest: str) -> bool:
        """Return whether a part has a snapshot with a digest whose bytes are kept."""
        query = select(SnapshotRow.number).where(
            SnapshotRow.model == model,
            SnapshotRow.part == part,
            SnapshotRow.digest == digest,
            col(SnapshotRow.collected_at).is_(None),
        )
        return self._session.exec(query.limit(1)).first() is not None

    def newest_is_collected(self, model: str, part: str) -> bool:
        """Return whether the bytes of a part's newest snapshot were released: a publish has to bring it again."""
        newest = self._newest_snapshots(model).get(part)
        return newest is not None and newest.collected_at is not None

    def snapshots(self, model: str) -> tuple[Snapshot, ...]:
        """Return all snapshots of a model by part, the newest of each part first. Raises NotFound."""
        self._model_row(model)
        found = [
            read_snapshot(row) for row in self._session.exec(select(SnapshotRow).where(SnapshotRow.model == model))
        ]
        return tuple(sorted(found, key=lambda snapshot: (snapshot.part, -snapshot.number)))

    def collected_snapshots(self, model: str) -> frozenset[tuple[str, int]]:
        """Return (part, number) of a model's snapshots whose bytes were released."""
        query = sa_select(SNAPSHOTS.c.part, SNAPSHOTS.c.number).where(
            SNAPSHOTS.c.model == bindparam("model"), SNAPSHOTS.c.collected_at.is_not(None)
        )
        return frozenset((row.part, row.number) for row in self._run(query, model=model))

    def snapshots_named(self, names: Collection[tuple[str, str, int]]) -> tuple[Snapshot, ...]:
        """Return those of these snapshots (model, part, number) that exist, sorted.

        The cost depends on their count, not on the history.
        """
        found = [read_snapshot(row) for some in batches(names) for row in self._run(_SNAPSHOTS_NAMED, names=some)]
        return tuple(sorted(found, key=lambda snapshot: (snapshot.model, snapshot.part, snapshot.number)))

    def snapshot_of(self, model: str, part: str, digest: str) -> Snapshot | None:
        """Return the newest snapshot of a part with this digest."""
        query = select(SnapshotRow).where(
            SnapshotRow.model == model, SnapshotRow.part == part, SnapshotRow.digest == digest
        )
        row = self._session.exec(query.order_by(col(SnapshotRow.number).desc()).limit(1)).first()
        return None if row is None else read_snapshot(row)

    def generation(self, model: str, number: int) -> Generation:
        """Return one generation. NotFound names the newest."""
        return self._once(("generation", model, number), lambda: self._read_generation(model, number))

    def _read_generation(self, model: str, number: int) -> Generation:
        row = self._run(_ONE, model=model, number=number).first()
        return read_generation(self._generation_row(model, number) if row is None else row)

    def generations(self, model: str) -> tuple[Generation, ...]:
        """Return all generations of a model, newest first. Raises NotFound."""
        self._model_row(model)
        query = select(GenerationRow).where(GenerationRow.model == model).order_by(col(GenerationRow.number).desc())
        return tuple(read_generation(row) for row in self._session.exec(query))

    def have_served(self, model: str, numbers: Collection[int]) -> frozenset[int]:
        """Return those of the generations that serve or have served."""
        return frozenset(self._run(_SERVED, model=model, numbers=sorted(numbers)).scalars())

    def generations_at_work(self, model: str, numbers: Collection[int], *, former: int = 0) -> tuple[Generation, ...]:
        """Return those of these generations that exist, and the `former` others that served last, by number."""
        rows = [row for some in batches(numbers) for row in self._run(_NUMBERED, model=model, numbers=some)]
        if former:
            rows += self._run(_FORMER, model=model, numbers=tuple(numbers), limit=former)
        return tuple(read_generation(row) for row in sorted(rows, key=lambda row: row.number))

    def generations_named(self, names: Collection[tuple[str, int]]) -> tuple[Generation, ...]:
        """Return those of these generations (model, number) that exist, by model and number."""
        key = tuple_(col(GenerationRow.model), col(GenerationRow.number))
        found = [
            read_generation(row)
            for some in batches(names)
            for row in self._session.exec(select(GenerationRow).where(key.in_(some)))
        ]
        return tuple(sorted(found, key=lambda generation: (generation.model, generation.number)))

    def find_newer_generation(self, model: str, part: str, number: int) -> GenerationEnd | None:
        """Return the newest generation with a later snapshot of a part than this one.

        Among the newest LOOKED_AT generations; one that was superseded counts only if there is no other.
        """
        of = GENERATIONS.c
        query = sa_select(of.number, of.snapshots, of.state, of.reason, of.message, of.serving_at)
        query = query.where(of.model == model).order_by(of.number.desc()).limit(LOOKED_AT)
        found = [row for row in self._run(query) if plain(row.snapshots).get(part, 0) > number]
        row = next((row for row in found if row.state != GenerationState.SUPERSEDED.value), next(iter(found), None))
        if row is None:
            return None
        return GenerationEnd(
            number=row.number,
            state=GenerationState(row.state),
            reason=row.reason,
            message=row.message,
            served=row.serving_at is not None,
        )

    def generation_numbers(self, model: str, *states: GenerationState) -> tuple[int, ...]:
        """Return the numbers of a model's generations in these states, ascending."""
        return tuple(self._run(_IN_STATES, model=model, states=[state.value for state in states]).scalars())

    def served_generations(self, model: str, *, limit: int) -> tuple[int, ...]:
        """Return the numbers of at most `limit` generations that have served, the last to begin first."""
        query = select(GenerationRow.number).where(
            GenerationRow.model == model, col(GenerationRow.serving_at).is_not(None)
        )
        return tuple(self._session.exec(query.order_by(col(GenerationRow.serving_at).desc()).limit(limit)))

    def newest_generation(self, model: str) -> int | None:
        """Return the number of the newest generation; None before the first publish."""
        return self._last_generation(model) or None

    def cut_generations(self) -> Mapping[str, tuple[Generation, ...]]:
        """Map each model to its serving and target generations that are cut; models without one are left out.

        Two generations of each model are looked up: the cost does not follow the number of generations ever published.
        """
        found: dict[str, tuple[Generation, ...]] = {}
        for row in self._run(_CUT):
            if cut := {number for number in (row.serving, row.target) if number is not None}:
                found[row.name] = tuple(self.generation(row.name, number) for number in sorted(cut))
        return found

    def newest_cut(self, model: str, *, limit: int) -> tuple[Generation, ...]:
        """Return the newest generations of a model that are cut, the newest first, at most `limit`."""
        query = select(GenerationRow).where(GenerationRow.model == model, col(GenerationRow.layout).is_not(None))
        found = self._session.exec(query.order_by(col(GenerationRow.number).desc()).limit(limit))
        return tuple(map(read_generation, found))

    def set_layout(self, model: str, number: int, layout: SplitLayout | None) -> Generation:
        """Store the layout of a generation, before it first serves: Conflict later. Raises NotFound."""
        self._writing_model(model)
        row = self._generation_row(model, number)
        text = None if layout is None else document(layout)
        if row.serving_at is not None and row.layout != text:
            msg = f"generation {number} of model {model!r} has served: its parts stay as they are; publish a new one"
            raise Conflict(msg)
        row.layout = text
        self._add(row)
        return read_generation(row)

    def set_graph(self, model: str, number: int, graph: PartGraph | None) -> None:
        """Store the graph by which a generation serves. Raises NotFound."""
        self._writing(model)
        if self.generation(model, number).graph != graph:
            text = None if graph is None else document(graph)
            self._write(_ONE_IS, of_model=model, of_number=number, graph=text)

    def set_hosting(self, model: str, number: int, hosting: Hosting) -> None:
        """Store the hosted parts that a generation serves with. Raises NotFound."""
        self._writing(model)
        if self.generation(model, number).hosting != hosting:
            self._write(_ONE_IS, of_model=model, of_number=number, hosting=document(hosting))

    def add_segment(self, model: str, segment: str, source: SnapshotSource) -> Snapshot:
        """Store a snapshot of a segment of a cut model; the same content of the same segment is stored once."""
        self._writing_model(model)
        known = select(SnapshotRow).where(SnapshotRow.model == model, SnapshotRow.part == segment)
        row = self._session.exec(known.where(SnapshotRow.digest == source.manifest.digest)).first()
        if row is not None:
            self._keep_again(row, source.manifest)
            return read_snapshot(row)
        number = self._next_snapshot(model, segment)
        self._add_snapshot(model, segment, source, number=number)
        return self.snapshot(model, segment, number)

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

    def add_hardware(self, snapshot: Snapshot, hardware: Collection[str]) -> None:
        """Store that a derived snapshot is for these hardware kinds, too; empty: for all."""
        wanted = tuple(sorted({*snapshot.hardware, *hardware})) if snapshot.hardware and hardware else ()
        if wanted == snapshot.hardware:
            return
        self._writing_model(snapshot.model)
        row = self._get(SnapshotRow, (snapshot.model, snapshot.part, snapshot.number))
        if row is not None:
            row.hardware = document(wanted) if wanted else None
            self._add(row)

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

    def _next_snapshot(self, model: str, part: str) -> int:
        """Return the number of a part's next snapshot, published or derived."""
        query = select(func.max(SnapshotRow.number)).where(SnapshotRow.model == model, SnapshotRow.part == part)
        return (self._session.exec(query).one() or 0) + 1

    def _published_numbers(self, model: str, part: str) -> Iterator[int]:
        """Yield the numbers of a part's published snapshots, the newest first."""
        query = select(SnapshotRow.number).where(SnapshotRow.model == model, SnapshotRow.part == part, _PUBLISHED)
        yield from self._session.exec(query.order_by(col(SnapshotRow.number).desc()))

    def set_generation_state(
        self, model: str, number: int, state: GenerationState, *, reason: str | None = None, message: str | None = None
    ) -> Generation:
        """Write the state of a generation; reason and message replace the former ones. Raises NotFound.

        SERVING sets `serving_at` when it begins, and the generation that served before becomes WARM: one generation
        serves.
        """
        self._writing(model)
        before = self.generation(model, number)
        said: dict[str, Any] = {"state": state, "reason": reason, "message": message}
        if state is GenerationState.SERVING and before.state is not GenerationState.SERVING:
            self._write(_COOLED, of_model=model)
            said["serving_at"] = self._now()
            self._note_served(before)
        self._write(_ONE_IS, of_model=model, of_number=number, **said)
        return before.model_copy(update=said)

    def save_report(self, report: ValidationReport) -> None:
        """Store the report of a generation; a later one replaces it. NotFound if the generation is unknown."""
        self._writing(report.model)
        self.generation(report.model, report.generation)
        of, text = {"of_model": report.model, "of_generation": report.generation}, document(report)
        before = self._run(REPORT, **of).scalar()
        if before is None:
            self._write(_NEW_REPORT, model=report.model, generation=report.generation, report=text)
        else:
            self._write(_REPORT_IS, **of, report=text)
        self._count_documents(report.model, bytes_of(text) - bytes_of(before or ""))

    def report(self, model: str, generation: int) -> ValidationReport | None:
        """Return the report of a generation; None before its validation."""
        row = self._get(ReportRow, (model, generation))
        return None if row is None else decode(ValidationReport, row.report)

    def _generation_row(self, model: str, number: int) -> GenerationRow:
        row = self._get(GenerationRow, (model, number))
        if row is None:
            self._model_row(model)
            newest = self._last_generation(model)
            there = f"it has 1..{newest}" if newest else "nothing is published yet"
            msg = f"model {model!r} has no generation {number}; {there}"
            raise NotFound(msg)
        return row

    def _newest_snapshots(self, model: str) -> Mapping[str, SnapshotRow]:
        """Map each part to its newest published snapshot."""
        numbers = (
            select(SnapshotRow.part, func.max(SnapshotRow.number).label("number"))
            .where(SnapshotRow.model == model, _PUBLISHED)
            .group_by(col(SnapshotRow.part))
            .subquery()
        )
        query = select(SnapshotRow).join(
            numbers, (col(SnapshotRow.part) == numbers.c.part) & (col(SnapshotRow.number) == numbers.c.number)
        )
        return {row.part: row for row in self._session.exec(query.where(SnapshotRow.model == model))}

    def _last_generation(self, model: str) -> int:
        query = select(func.max(GenerationRow.number)).where(GenerationRow.model == model)
        return self._session.exec(query).one() or 0

    def _keep_again(self, row: SnapshotRow, manifest: SnapshotManifest) -> None:
        """Record that the bytes of a released snapshot are in the artifact store again."""
        if row.collected_at is not None:
            text, before = document(manifest), row.manifest
            row.collected_at, row.manifest = None, text
            self._add(row)
            self._count_documents(row.model, bytes_of(text) - bytes_of(before))

    def _note_served(self, generation: Generation) -> None:
        """Note at each snapshot of a generation that it begins to serve."""
        for part, number in sorted(generation.named):
            of = {"of_model": generation.model, "of_part": part, "of_number": number}
            self._write(SNAPSHOT_IS, **of, served_at=self._now())

    def _count_documents(self, model: str, more: int) -> None:
        """Add to the byte count of a model's documents; `more` is below 0 if some were deleted."""
        if more:
            self.flush()
            self._write(_COUNTED, of_name=model, more=more)

    def _add_snapshot(
        self,
        model: str,
        part: str,
        source: SnapshotSource,
        *,
        number: int,
        derived_from: int | None = None,
        hardware: Collection[str] = (),
    ) -> None:
        text = document(source.manifest)
        row = SnapshotRow(
            model=model,
            part=part,
            number=number,
            digest=source.manifest.digest,
            uri=source.uri,
            manifest=text,
            created_at=self._now(),
            trained_at=None if source.trained_at is None else min(source.trained_at, self._now()),
            derived_from=derived_from,
            hardware=document(sorted(hardware)) if hardware else None,
            parent=source.manifest.parent,
            is_delta=source.manifest.is_delta,
            size_bytes=source.manifest.size_bytes,
        )
        self._add(row)
        self._count_documents(model, bytes_of(text))

    def _add_generation(self, model: str, snapshots: Mapping[str, int], adapters: Mapping[str, str]) -> GenerationRow:
        row = GenerationRow(
            model=model,
            number=self._last_generation(model) + 1,
            snapshots=document(dict(snapshots)),
            adapters=document(dict(adapters)) if adapters else None,
            state=GenerationState.PENDING.value,
            created_at=self._now(),
        )
        self._add(row)
        return row


def read_snapshot(row: Any) -> Snapshot:
    """Return the snapshot of a row."""
    return Snapshot(
        model=row.model,
        part=row.part,
        number=row.number,
        digest=row.digest,
        uri=row.uri,
        manifest=decode_frozen(SnapshotManifest, row.manifest),
        created_at=row.created_at,
        trained_at=row.trained_at,
        derived_from=row.derived_from,
        hardware=() if row.hardware is None else tuple(plain(row.hardware)),
    )


def read_generation(row: Any, *, cut: bool = True) -> Generation:
    """Return the generation of a row; `cut=False` leaves out its layout and hosting."""
    return Generation(
        model=row.model,
        number=row.number,
        snapshots=plain(row.snapshots),
        derived=None if row.derived is None else decode_frozen(Derivatives, row.derived),
        layout=None if not cut or row.layout is None else decode_frozen(SplitLayout, row.layout),
        graph=None if row.graph is None else decode_frozen(PartGraph, row.graph),
        hosting=None if not cut or row.hosting is None else decode_frozen(Hosting, row.hosting),
        adapters={} if row.adapters is None else plain(row.adapters),
        state=GenerationState(row.state),
        reason=row.reason,
        message=row.message,
        created_at=row.created_at,
        serving_at=row.serving_at,
    )
