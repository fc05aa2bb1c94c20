"""Generations with a denied snapshot that models serve or change to, of many models at a time."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import or_
from sqlalchemy import select as sa_select
from sqlmodel import tuple_

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.registry.denials import Denial
from ipnext.store.changes.retirements import NOT_FROZEN
from ipnext.store.registry.denials import DENIALS, DENIED, IN_FORCE, Denials, read_denial
from ipnext.store.registry.generations import GENERATIONS, read_generation
from ipnext.store.tables.changes import ChangeRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import MODELS, batches

_CHANGES = METADATA.tables[ChangeRow.__tablename__]
_OPEN: Final = tuple(state.value for state in ChangeState if not state.final)
_SERVING = sa_select(MODELS.c.name, MODELS.c.serving_generation).where(MODELS.c.retired.is_(False))
_UNDER_WAY = (
    sa_select(_CHANGES.c.model, _CHANGES.c.kind, _CHANGES.c.state, _CHANGES.c.generation)
    .where(_CHANGES.c.state.in_(_OPEN), or_(_CHANGES.c.kind != ChangeKind.RETIRE.value, NOT_FROZEN))
    .order_by(_CHANGES.c.ordinal)
)
_DENIED_IN_FORCE = (
    sa_select(DENIED.c.model, DENIED.c.part, DENIED.c.number.label("snapshot"), DENIALS)
    .join(DENIALS, DENIALS.c.ordinal == DENIED.c.denial)
    .where(IN_FORCE)
    .order_by(DENIALS.c.ordinal)
)

_Generation = tuple[str, int]
"""Model and number."""


class OpenChange(NamedTuple):
    """A change that has not ended."""

    kind: ChangeKind
    state: ChangeState
    generation: int | None
    denial: Denial | None
    """The oldest one that covers a snapshot of its generation."""


class DeniedUse(NamedTuple):
    """A model that serves a denied snapshot, or has an open change to a generation with one."""

    model: str
    serving: int | None
    """The serving generation."""
    denial: Denial | None
    """The oldest one that covers a snapshot of the serving generation."""
    changes: tuple[OpenChange, ...]
    """The newest one of each kind, without a retirement that waits for a freeze: the model serves on meanwhile."""


class DeniedUses(Denials):
    """One pass over all models costs a few queries for each batch of them."""

    def denied_uses(self, models: Collection[str] | None = None) -> tuple[DeniedUse, ...]:
        """Return the uses of denied snapshots, of all models or of these, by model. Retired ones have none."""
        names = self.models_denied() if models is None else models
        return tuple(use for some in batches(names) for use in self._uses_of(some))

    def _uses_of(self, models: Collection[str]) -> Iterator[DeniedUse]:
        serving = {row.name: row.serving_generation for row in self._run(_SERVING.where(self._named(MODELS, models)))}
        changes = defaultdict[str, dict[str, Any]](dict)
        for row in self._run(_UNDER_WAY.where(self._named(_CHANGES, models))):
            changes[row.model][row.kind] = row
        wanted = {(model, number) for model, number in serving.items() if number is not None}
        wanted |= {(row.model, row.generation) for of in changes.values() for row in of.values() if row.generation}
        denials = self._denials_of(wanted)
        for model, number in serving.items():
            under_way = tuple(_open_change(row, denials) for row in changes[model].values())
            denial = denials.get((model, number)) if number is not None else None
            if denial is not None or any(each.denial for each in under_way):
                yield DeniedUse(model, number, denial, under_way)

    def _denials_of(self, generations: Collection[_Generation]) -> Mapping[_Generation, Denial]:
        """Map generations that have a denied snapshot to its denial."""
        named = {key: snapshots for some in batches(generations) for key, snapshots in self._snapshots_of(some)}
        keys = {(model, *snapshot) for (model, _), snapshots in named.items() for snapshot in snapshots}
        denied: dict[tuple[str, str, int], Denial] = {}
        for row in self._run(_DENIED_IN_FORCE.where(self._named(DENIED, {model for model, _ in generations}))):
            key = (row.model, row.part, row.snapshot)
            if key in keys and key not in denied:
                denied[key] = read_denial(row)
        found = {of: [denied.get((of[0], *each)) for each in snapshots] for of, snapshots in named.items()}
        return {of: first for of, denials in found.items() if (first := next(filter(None, denials), None))}

    def _snapshots_of(self, generations: Collection[_Generation]) -> Iterable[tuple[_Generation, Collection[Any]]]:
        of = tuple_(GENERATIONS.c.model, GENERATIONS.c.number)
        for row in self._run(sa_select(GENERATIONS).where(of.in_(generations))):
            generation = read_generation(row)
            yield (row.model, generation.number), generation.named

    def _named(self, table: Any, models: Collection[str]) -> Any:
        return self._among(table.c.name if table is MODELS else table.c.model, models)


def _open_change(row: Any, denials: Mapping[_Generation, Denial]) -> OpenChange:
    denial = denials.get((row.model, row.generation)) if row.generation else None
    return OpenChange(ChangeKind(row.kind), ChangeState(row.state), row.generation, denial)
