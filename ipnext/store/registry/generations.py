"""Generations and their validation reports."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, bindparam, insert
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlmodel import col, func, select, tuple_

from ipnext.errors import Conflict, NotFound
from ipnext.model.lifecycle.checks import ValidationReport
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import Generation, GenerationState, Hosting, PartGraph, SplitLayout
from ipnext.model.wire import decode, decode_frozen
from ipnext.store.records import GenerationEnd
from ipnext.store.registry.snapshots import SNAPSHOT_IS, Snapshots
from ipnext.store.tables.registry import GenerationRow, ReportRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import MODELS, batches, bytes_of, document, plain

GENERATIONS = METADATA.tables[GenerationRow.__tablename__]
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
REPORT_IS = (REPORTS.c.model == bindparam("of_model"), REPORTS.c.generation == bindparam("of_generation"))
REPORT = sa_select(REPORTS.c.report).where(*REPORT_IS)
_REPORT_IS = sa_update(REPORTS).where(*REPORT_IS)
_NEW_REPORT = insert(REPORTS)
_NUMBERED = _OF_MODEL.where(GENERATIONS.c.number.in_(bindparam("numbers", expanding=True)))
_FORMER = (
    _OF_MODEL.where(
        GENERATIONS.c.serving_at.is_not(None), GENERATIONS.c.number.not_in(bindparam("numbers", expanding=True))
    )
    .order_by(GENERATIONS.c.serving_at.desc(), GENERATIONS.c.number.desc())
    .limit(bindparam("limit"))
)


class Generations(Snapshots):
    """Generations of models. Numbers rise by one from 1 for each model and are never reused."""

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

    def _last_generation(self, model: str) -> int:
        query = select(func.max(GenerationRow.number)).where(GenerationRow.model == model)
        return self._session.exec(query).one() or 0

    def _note_served(self, generation: Generation) -> None:
        """Note at each snapshot of a generation that it begins to serve."""
        for part, number in sorted(generation.named):
            of = {"of_model": generation.model, "of_part": part, "of_number": number}
            self._write(SNAPSHOT_IS, **of, served_at=self._now())

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
