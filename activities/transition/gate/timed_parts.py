"""Parts whose live replicas are timed: their snapshots in a new generation and in the serving one.

If the hardware kinds of a part serve different snapshots, each pair of snapshots is timed on its own kinds.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from activities.state.facts import ancestors
from ipnext.model.gate.live import JudgedRound
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.optimization import REPLAY_FILE
from ipnext.model.registry.registry import Generation, Snapshot
from ipnext.store.repository import Repository


@dataclass(frozen=True, eq=False)
class TimedPart:
    """One part, as stored, on hardware kinds that serve the same snapshots."""

    name: str
    new: Snapshot
    serving: Snapshot | None
    replay: Snapshot | None
    """The snapshot that brings the replay set: the new one, that which it was derived from, or the newest one that it
    is a delta of."""
    kinds: frozenset[str] = frozenset()
    """Its hardware kinds; empty: all."""

    @property
    def has_changed(self) -> bool:
        """Whether there is something to compare."""
        return self.serving is not None and self.serving.digest != self.new.digest

    @property
    def on(self) -> str:
        """Its kinds, for people; empty if it is timed on any."""
        return f" ({', '.join(sorted(self.kinds))})" if self.kinds else ""

    def is_on(self, hardware: str) -> bool:
        """Return whether it is timed on a hardware kind."""
        return not self.kinds or hardware in self.kinds

    def rounds_of(self, rounds: Iterable[JudgedRound]) -> list[JudgedRound]:
        """Return its own ones of these rounds."""
        return [each for each in rounds if each.part == self.name and self.is_on(each.hardware)]


def read_timed_parts(
    repository: Repository, new: Generation, serving: Generation | None, parts: Iterable[PartSpec]
) -> tuple[TimedPart, ...]:
    """Return these parts as both generations have them, once for each pair of snapshots."""
    found = [
        (
            part.name,
            repository.snapshot(new.model, part.name, one),
            None if other is None else repository.snapshot(new.model, part.name, other),
            kinds,
        )
        for part in parts
        for (one, other), kinds in _pairs(part, new, serving)
    ]
    known = ancestors(repository, [one for _, one, _, _ in found])
    return tuple(
        TimedPart(name, one, other, _find_bearer(_published(repository, one), known), kinds)
        for name, one, other, kinds in found
    )


def _published(repository: Repository, snapshot: Snapshot) -> Snapshot:
    """Return the snapshot that one was derived from, which has its replay set; a published one itself."""
    number = snapshot.derived_from
    return snapshot if number is None else repository.snapshot(snapshot.model, snapshot.part, number)


def _pairs(
    part: PartSpec, new: Generation, serving: Generation | None
) -> Iterator[tuple[tuple[int, int | None], frozenset[str]]]:
    """Yield the numbers in the new and the serving generation, with the kinds that have them; no kinds: all."""
    both = [new] if serving is None else [new, serving]
    if not any(part.name in numbers for each in both for numbers in each.by_hardware.values()):
        yield (new.optimized[part.name], None if serving is None else serving.optimized.get(part.name)), frozenset()
        return
    pairs: dict[tuple[int, int | None], set[str]] = {}
    for kind in (option.kind for option in part.hardware):
        former = None if serving is None else serving.optimized_on(kind).get(part.name)
        pairs.setdefault((new.optimized_on(kind)[part.name], former), set()).add(kind)
    yield from ((pair, frozenset(kinds)) for pair, kinds in pairs.items())


def _find_bearer(snapshot: Snapshot, known: Mapping[tuple[str, str], Snapshot]) -> Snapshot | None:
    """Return the snapshot that brings the replay set: itself, else the newest one that it is a delta of."""
    found: Snapshot | None = snapshot
    while found is not None and not any(file.path == REPLAY_FILE for file in found.manifest.files):
        found = known.get((found.part, found.manifest.parent or ""))
    return found
