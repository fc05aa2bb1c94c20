"""What a host shall hold: from a deployment, and on the way from one set to another. Pure functions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ipnext.model.deployment import (
    Deployment,
    HeldGeneration,
    HeldSnapshot,
    HostedSnapshot,
    HostFailure,
    HostHolds,
    HostState,
    LoadFailure,
    PartEndpoint,
)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """Processes that all hold the same. `own`: a process that lacks any of it may not become one."""

    replicas: int
    holds: tuple[HeldSnapshot, ...]
    own: bool = False

    @property
    def digests(self) -> frozenset[str]:
        """The snapshots by what a process that has them can answer for."""
        return frozenset(held.content for held in self.holds)


def replica_sets(deployment: Deployment) -> tuple[ReplicaSet, ...]:
    """One set that holds everything; or one for each generation, where these have processes of their own.

    Generations of the very same snapshots share a set, which has the processes of all of them.
    """
    if not deployment.own:
        return (ReplicaSet(deployment.replicas, deployment.holds),)
    groups: dict[frozenset[tuple[str, int]], list[int]] = {}
    for generation in sorted(deployment.own):
        groups.setdefault(deployment.snapshots_of(generation), []).append(generation)
    return tuple(
        ReplicaSet(sum(deployment.own[g] for g in alike), _of_generations(deployment, alike), own=True)
        for alike in groups.values()
    )


def _of_generations(deployment: Deployment, wanted: Collection[int]) -> tuple[HeldSnapshot, ...]:
    """What is held for these generations alone."""
    found = ((held, tuple(g for g in held.generations if g in wanted)) for held in deployment.holds)
    return tuple(held.model_copy(update={"generations": kept}) for held, kept in found if kept)


def assigned(
    sets: Sequence[ReplicaSet], staying: Iterable[tuple[R, frozenset[str]]], *, swap: bool = False
) -> tuple[list[list[R]], list[R]]:
    """The processes of each set, and those that no set has a place for.

    `staying` are processes, those worth most first, with the digests that they hold or load. A set of its own takes only
    processes that have all of it: it comes up in new ones, and the others end. With `swap`, those that are left over, worth least,
    go over to the sets that lack some.
    """
    members: list[list[R]] = [[] for _ in sets]
    rest: list[R] = []
    for process, digests in staying:
        fitting = (
            found
            for found, wanted in zip(members, sets, strict=True)
            if len(found) < wanted.replicas and (not wanted.own or wanted.digests <= digests)
        )
        next(fitting, rest).append(process)
    if swap:
        places = [
            found for found, wanted in zip(members, sets, strict=True) for _ in range(wanted.replicas - len(found))
        ]
        for found, process in zip(places, rest, strict=False):
            found.append(process)
        rest = rest[len(places) :]
    return members, rest


def host_holds(deployment: Deployment, holds: Iterable[HeldSnapshot] | None = None) -> HostHolds:
    """What each host of a deployment shall hold; of `holds` only, where they are given."""
    return HostHolds(
        holds=tuple(
            HostedSnapshot(
                model=deployment.key.model,
                part=held.part or deployment.key.part,
                engine=deployment.engine,
                snapshot=held.snapshot,
                digest=held.digest,
                uri=held.uri,
                generations=tuple(sorted(held.generations)),
                signers=held.signers,
                settings=deployment.settings,
                adapter_of=deployment.key.part if held.adapter else None,
                adapters=held.adapters,
                swap=deployment.swap,
            )
            for held in sorted(
                deployment.holds if holds is None else holds,
                key=lambda held: (held.part or "", held.snapshot, held.adapters),
            )
        )
    )


def generations(holds: HostHolds) -> frozenset[int]:
    """All generations that are held."""
    return frozenset(generation for held in holds.holds for generation in held.generations)


def goes_over(told: HostHolds, wanted: HostHolds) -> bool:
    """Whether a process that was told one thing has to take another snapshot for the other."""
    return bool(told.holds) and not digests(wanted.holds) <= digests(told.holds)


def digests(holds: Iterable[HostedSnapshot]) -> frozenset[str]:
    """What is held, by its content."""
    return frozenset(held.digest for held in holds)


def adapters_of(*told: HostHolds | None) -> frozenset[str]:
    """The parts among them that are adapters, loaded into another part's engines."""
    holds = (held for one in told if one is not None for held in (*one.holds, *one.coming))
    return frozenset(held.part for held in holds if held.adapter_of is not None)


def with_both(told: HostHolds, wanted: HostHolds) -> HostHolds:
    """Everything of `wanted`, and what `told` holds beyond it: new snapshots load while old ones still answer.

    A generation of a part or segment has one snapshot, the one that `wanted` gives it.
    """
    merged = {(held.part, held.snapshot, held.adapters): held for held in wanted.holds}
    settled = _pairs(wanted)
    for held in told.holds:
        extra = {generation for generation in held.generations if (held.part, generation) not in settled}
        if extra:
            key = (held.part, held.snapshot, held.adapters)
            kept = merged.get(key, held.model_copy(update={"generations": ()}))
            both = tuple(sorted({*kept.generations, *extra}))
            merged[key] = kept.model_copy(update={"generations": both})
    return HostHolds(holds=tuple(merged[key] for key in sorted(merged)))


def without(holds: HostHolds, snapshots: Collection[tuple[str, int]]) -> HostHolds:
    """The holds less some snapshots, each named by part or segment and number."""
    kept = tuple(held for held in holds.holds if (held.part, held.snapshot) not in snapshots)
    return HostHolds(holds=kept, coming=tuple(h for h in holds.coming if (h.part, h.snapshot) not in snapshots))


def differs(state: HostState, sent: HostHolds) -> bool:
    """Return whether a host has something else than it was sent: less, or more. Failed loads count as what it has."""
    asked = {(h.model, h.part, h.snapshot, generation) for h in sent.holds for generation in h.generations}
    has = {(h.model, h.part, h.snapshot, h.generation) for h in (*state.ready, *state.loading)}
    failed = {(f.model, f.part, f.snapshot, generation) for f in state.failures for generation in f.generations}
    return bool(asked - has - failed or has - asked)


def routable(ready: tuple[HeldGeneration, ...], wanted: HostHolds) -> tuple[int, ...]:
    """Generations that a host is meant to answer for and of which it has all that it shall hold, ascending."""
    lacking = _pairs(wanted) - {(held.part, held.generation) for held in ready}
    return tuple(sorted(generations(wanted) - {generation for _, generation in lacking}))


def pieces(holds: HostHolds, ready: Collection[int]) -> dict[str, tuple[int, ...]]:
    """Part or segment -> those of the generations in `ready` that a graph may call it for; each that is held stands there."""
    found: dict[str, set[int]] = {}
    for held in holds.holds:
        found.setdefault(held.part, set()).update(g for g in held.generations if g in ready)
    return {part: tuple(sorted(numbers)) for part, numbers in found.items()}


def by_url(
    part: str, ready: Collection[int], engines: Mapping[tuple[str, int], str], host: str
) -> dict[str, tuple[int, ...]]:
    """URL -> generations of a part that are answered there: at their engine's where it serves by itself, else at the host's.

    A part that answers for nothing yet stands there with the host's URL.
    """
    found: dict[str, list[int]] = {}
    for generation in sorted(ready):
        found.setdefault(engines.get((part, generation), host), []).append(generation)
    return {url: tuple(numbers) for url, numbers in found.items()} or {host: ()}


def endpoints(
    wanted: HostHolds, answered: Collection[int], ready: Iterable[HeldGeneration], *, host: str
) -> tuple[PartEndpoint, ...]:
    """How a router reaches the parts that a host is to hold; only generations in `answered` are sent there."""
    found = [one for one in ready if one.url]
    engines = {(one.part, one.generation): one.url for one in found if one.url}
    names = {one.url: one.answers_as for one in found}
    return tuple(
        PartEndpoint(part=part, url=url, generations=numbers, answers_as=names.get(url))
        for part, held in pieces(wanted, answered).items()
        for url, numbers in by_url(part, held, engines, host).items()
    )


def load_failures(failures: Iterable[HostFailure], adapters: Collection[str]) -> tuple[LoadFailure, ...]:
    """What a host could not load, as the port reports it; `adapters` are the parts that are adapters."""
    return tuple(
        LoadFailure(
            snapshot=failure.snapshot,
            generations=failure.generations,
            code=failure.code,
            message=failure.message,
            adapter=failure.part if failure.part in adapters else None,
        )
        for failure in failures
    )


def engines_of(part: str, ready: Iterable[HeldGeneration]) -> dict[int, str]:
    """Generation -> URL of the engine that answers for a part by itself."""
    return {held.generation: held.url for held in ready if held.url and held.part == part}


def _pairs(holds: HostHolds) -> frozenset[tuple[str, int]]:
    return frozenset((held.part, generation) for held in holds.holds for generation in held.generations)
