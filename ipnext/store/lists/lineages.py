"""Lineage of snapshots: where they come from, what follows from them, and where they run."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import select, tuple_

from ipnext.model.api.lineage import (
    Derivation,
    HoldView,
    LineageGeneration,
    LineagePlacement,
    RelatedSnapshot,
    SnapshotLineage,
    TrainingRun,
)
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import GenerationState, SplitLayout
from ipnext.model.registry.sources import SnapshotOrigin
from ipnext.model.wire import decode, decode_frozen
from ipnext.store.registry.generations import GENERATIONS
from ipnext.store.registry.snapshots import SNAPSHOTS
from ipnext.store.tables.changes import DeploymentRow, RouteShareRow
from ipnext.store.tables.registry import SnapshotHoldRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork, batches, plain

MOST_GENERATIONS: Final = 20
"""Generations of one snapshot that are shown, the newest."""
LOOKED_AT: Final = 2000
"""Generations of a model, the newest, among which those of a snapshot are."""
MOST_DERIVED: Final = 200
"""Snapshots of one parent that are shown, the newest."""

Key = tuple[str, int]

_HOLDS = METADATA.tables[SnapshotHoldRow.__tablename__]
_DEPLOYMENTS = METADATA.tables[DeploymentRow.__tablename__]
_SHARES = METADATA.tables[RouteShareRow.__tablename__]
_FACTS = (
    *(SNAPSHOTS.c.part, SNAPSHOTS.c.number, SNAPSHOTS.c.digest, SNAPSHOTS.c.parent, SNAPSHOTS.c.is_delta),
    *(SNAPSHOTS.c.created_at, SNAPSHOTS.c.size_bytes, SNAPSHOTS.c.collected_at, SNAPSHOTS.c.origin),
    *(SNAPSHOTS.c.derived_from, SNAPSHOTS.c.hardware),
)
_GENERATIONS = (
    *(GENERATIONS.c.number, GENERATIONS.c.state, GENERATIONS.c.created_at, GENERATIONS.c.serving_at),
    *(GENERATIONS.c.snapshots, GENERATIONS.c.derived, GENERATIONS.c.layout),
)


class _Served(NamedTuple):
    """A generation, the snapshots that it names, and the segments into which these are cut."""

    view: LineageGeneration
    named: frozenset[Key]
    segments: Mapping[Key, frozenset[Key]]
    """Snapshot -> its segments; of a published one, those of what was derived from it, too."""

    def names(self, key: Key) -> bool:
        """Return whether the generation has a snapshot, or a segment."""
        return key in self.named or any(key in cut for cut in self.segments.values())


class Lineages(UnitOfWork):
    """Lineage of the snapshots of one model."""

    def lineages(self, model: str, keys: Collection[Key]) -> tuple[SnapshotLineage, ...]:
        """Return the lineage of each of these snapshots (part, number) that exists, in their order."""
        rows = {(row.part, row.number): row for row in self._facts(model, keys)}
        digests = {row.digest for row in rows.values()}
        children, parents = self._children(model, digests), self._numbers(model, rows.values())
        holds, served, placed = self._holds_of(model), self._served_by(model), self._placed(model)
        wholes = _wholes(served)
        return tuple(
            SnapshotLineage(
                model=model,
                part=row.part,
                number=row.number,
                digest=row.digest,
                created_at=row.created_at,
                size_bytes=row.size_bytes,
                collected_at=row.collected_at,
                held=holds.get(key),
                training_run=_training_run(row.origin),
                parent=_parent(row, parents, wholes),
                derived=(*children.get((row.part, row.digest), ()), *self._cut(model, key, served)),
                generations=_generations_of(key, served),
                placements=tuple(placed.get(key, ())),
            )
            for key, row in ((key, rows[key]) for key in keys if key in rows)
        )

    def _facts(self, model: str, keys: Collection[Key]) -> Sequence[Any]:
        place = tuple_(SNAPSHOTS.c.model, SNAPSHOTS.c.part, SNAPSHOTS.c.number)
        wanted = [(model, *key) for key in keys]
        return [row for some in batches(wanted) for row in self._run(select(*_FACTS).where(place.in_(some)))]

    def _children(self, model: str, digests: Collection[str]) -> Mapping[tuple[str, str], Sequence[RelatedSnapshot]]:
        """Map (part, digest) of a parent to the snapshots that name it, the newest first."""
        found: dict[tuple[str, str], list[RelatedSnapshot]] = defaultdict(list)
        query = select(*_FACTS).where(SNAPSHOTS.c.model == model).order_by(SNAPSHOTS.c.number.desc())
        for some in batches(digests):
            for row in self._run(query.where(SNAPSHOTS.c.parent.in_(some))):
                of = found[row.part, row.parent]
                if len(of) < MOST_DERIVED:
                    of.append(_related(row.part, row.number, row.digest, _derivation(row), _hardware(row)))
        return found

    def _numbers(self, model: str, rows: Collection[Any]) -> Mapping[tuple[str, str], int]:
        """Map (part, digest) of each parent to its newest number."""
        wanted = {row.parent for row in rows if row.parent is not None}
        query = select(SNAPSHOTS.c.part, SNAPSHOTS.c.digest, SNAPSHOTS.c.number).where(SNAPSHOTS.c.model == model)
        query = query.order_by(SNAPSHOTS.c.number)
        return {
            (row.part, row.digest): row.number
            for some in batches(wanted)
            for row in self._run(query.where(SNAPSHOTS.c.digest.in_(some)))
        }

    def _holds_of(self, model: str) -> Mapping[Key, HoldView]:
        rows = self._run(select(_HOLDS).where(_HOLDS.c.model == model))
        return {(row.part, row.number): HoldView(**row._mapping) for row in rows}  # noqa: SLF001 - the row's own form

    def _served_by(self, model: str) -> Sequence[_Served]:
        """Return the newest generations of a model, with what they name."""
        users: dict[int, dict[str, float]] = defaultdict(dict)
        for row in self._run(select(_SHARES).where(_SHARES.c.model == model)):
            users[row.generation][row.region] = users[row.generation].get(row.region, 0.0) + row.fraction
        query = select(*_GENERATIONS).where(GENERATIONS.c.model == model)
        rows = self._run(query.order_by(GENERATIONS.c.number.desc()).limit(LOOKED_AT))
        return [_served(row, users.get(row.number, {})) for row in rows]

    def _placed(self, model: str) -> Mapping[Key, Sequence[LineagePlacement]]:
        found: dict[Key, list[LineagePlacement]] = defaultdict(list)
        for row in self._run(select(_DEPLOYMENTS).where(_DEPLOYMENTS.c.model == model)):
            for held in json.loads(row.deployment)["holds"]:
                placement = LineagePlacement(
                    part=row.part,
                    region=row.region,
                    hardware=row.hardware,
                    replicas=row.replicas,
                    generations=tuple(held["generations"]),
                )
                found[held["part"] or row.part, held["snapshot"]].append(placement)
        return {key: sorted(each, key=lambda one: (one.region, one.hardware)) for key, each in found.items()}

    def _cut(self, model: str, key: Key, served: Sequence[_Served]) -> Sequence[RelatedSnapshot]:
        """Return the segments into which a snapshot was cut."""
        segments = {segment for one in served for segment in one.segments.get(key, ())}
        rows = self._facts(model, sorted(segments))
        return sorted(
            (_related(row.part, row.number, row.digest, "cut", _hardware(row)) for row in rows),
            key=lambda one: (one.part, one.number),
        )


def _served(row: Any, users_in: Mapping[str, float]) -> _Served:
    view = LineageGeneration(
        number=row.number,
        state=GenerationState(row.state),
        created_at=row.created_at,
        serving_at=row.serving_at,
        users_in={region: users_in[region] for region in sorted(users_in)},
    )
    layout = None if row.layout is None else decode_frozen(SplitLayout, row.layout)
    derived = None if row.derived is None else decode_frozen(Derivatives, row.derived)
    published = plain(row.snapshots)
    segments = {} if layout is None else _segments(layout, published, derived)
    return _Served(view, frozenset(published.items()) | (derived.named if derived else frozenset()), segments)


def _segments(
    layout: SplitLayout, published: Mapping[str, int], derived: Derivatives | None
) -> Mapping[Key, frozenset[Key]]:
    """Map each snapshot of the part that is cut to its segments."""
    part = layout.source
    others = {} if derived is None else derived.by_hardware
    found: dict[Key, frozenset[Key]] = {}
    for kind, cut in layout.by_hardware.items():
        if part in others.get(kind, {}):
            found[part, others[kind][part]] = frozenset({**layout.numbers, **cut.segments}.items())
    default = published[part] if derived is None else derived.parts.get(part, published[part])
    found[part, default] = frozenset(layout.numbers.items())
    found[part, published[part]] = layout.named
    return found


def _wholes(served: Sequence[_Served]) -> Mapping[Key, set[str]]:
    """Map each segment to the parts that it was cut from."""
    found: dict[Key, set[str]] = defaultdict(set)
    for one in served:
        for (part, _), cut in one.segments.items():
            for segment in cut:
                found[segment].add(part)
    return found


def _generations_of(key: Key, served: Sequence[_Served]) -> tuple[LineageGeneration, ...]:
    return tuple(one.view for one in served if one.names(key))[:MOST_GENERATIONS]


def _training_run(origin: str | None) -> TrainingRun | None:
    return None if origin is None else TrainingRun(**dict(decode(SnapshotOrigin, origin)))


def _parent(
    row: Any, numbers: Mapping[tuple[str, str], int], wholes: Mapping[Key, Collection[str]]
) -> RelatedSnapshot | None:
    if row.parent is None:
        return None
    for part in sorted(wholes.get((row.part, row.number), ())):
        if (part, row.parent) in numbers:
            return _related(part, numbers[part, row.parent], row.parent, "cut")
    return _related(row.part, numbers.get((row.part, row.parent)), row.parent, _derivation(row))


def _derivation(row: Any) -> Derivation:
    if row.derived_from is not None:
        return "optimized"
    return "delta" if row.is_delta else "trained on"


def _hardware(row: Any) -> tuple[str, ...]:
    return () if row.hardware is None else tuple(plain(row.hardware))


def _related(
    part: str, number: int | None, digest: str, derivation: Derivation, hardware: tuple[str, ...] = ()
) -> RelatedSnapshot:
    return RelatedSnapshot(part=part, number=number, digest=digest, derivation=derivation, hardware=hardware)
