"""Which live replicas of a part can be timed, and which are not ready just now. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from activities.state.wave_state import Slot
from activities.transition.gate.timed_parts import TimedPart
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase


@dataclass(frozen=True)
class ReplicaPair:
    """Ready replicas of both generations, on one hardware kind of one region."""

    region: str
    hardware: str
    new: Sequence[Replica]
    serving: Sequence[Replica]


@dataclass(frozen=True)
class ReadyCounts:
    """Ready replicas of a replica set that has to hold both generations."""

    region: str
    hardware: str
    new: int
    serving: int


@dataclass(frozen=True)
class PartReadiness:
    """What of a part can be timed now."""

    generation: int
    former: int
    pair: ReplicaPair | None
    """None: nothing."""
    counts: tuple[ReadyCounts, ...]
    """Of the replica sets that have to hold both generations; empty if none has to."""

    @property
    def may_be_timed(self) -> bool:
        """True if replicas of both generations are there, or have to be, so that waiting for them makes sense."""
        return self.pair is not None or bool(self.counts)

    @property
    def lacks_new(self) -> bool:
        """True if no replica of the new generation is ready."""
        return self.pair is None and bool(self.counts) and not any(found.new for found in self.counts)

    @property
    def text(self) -> str:
        """What is lacking, for people."""
        if self.pair is not None:
            return f"a replica ended or restarted in each round on {self.pair.hardware} in {self.pair.region}"
        number = self.generation if self.lacks_new else self.former
        places = ", ".join(f"{found.hardware} in {found.region}" for found in self.counts)
        return f"no replica of generation {number} is ready on {places or 'any hardware'}"

    @property
    def evidence(self) -> Sequence[Mapping[str, Any]]:
        """The ready replicas as JSON."""
        return [
            {"region": found.region, "hardware": found.hardware, "new": found.new, "serving": found.serving}
            for found in self.counts
        ]


def read_readiness(
    states: Iterable[RegionState], part: TimedPart, generation: int, former: int | None, *, wanted: Collection[Slot]
) -> PartReadiness:
    """Return the first hardware kind that has ready replicas of both generations of a part, or what it lacks.

    `wanted`: the replica sets that have to hold both generations.
    """
    serving, pair, counts = former or 0, None, []
    by_region = {state.region: state for state in states}
    own = {(region, hardware) for name, region, hardware in wanted if name == part.name and part.is_on(hardware)}
    seen = {
        (region, replica.key.hardware)
        for region, state in by_region.items()
        for replica in state.replicas
        if replica.key.part == part.name and part.is_on(replica.key.hardware)
    }
    for region, hardware in sorted(own | seen):
        running = _running(by_region.get(region), part.name, hardware)
        new, old = ([each for each in running if number in each.ready] for number in (generation, serving))
        if pair is None and new and old:
            pair = ReplicaPair(region, hardware, new, old)
        if (region, hardware) in own:
            counts.append(ReadyCounts(region, hardware, len(new), len(old)))
    return PartReadiness(generation, serving, pair, tuple(counts))


def is_as_before(states: Iterable[RegionState], replica: Replica, generation: int) -> bool:
    """Return whether a replica is ready for a generation, and has not restarted since it was observed."""
    found = (each for state in states for each in state.replicas if each.id == replica.id)
    return any(generation in each.ready and each.restarts == replica.restarts for each in found)


def _running(state: RegionState | None, part: str, hardware: str) -> Sequence[Replica]:
    found = () if state is None else state.replicas
    return sorted(
        (
            replica
            for replica in found
            if (replica.key.part, replica.key.hardware) == (part, hardware) and replica.phase is ReplicaPhase.RUNNING
        ),
        key=lambda replica: replica.id,
    )
