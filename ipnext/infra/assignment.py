"""Desired snapshots of hosts: from a deployment, and in the change from one set to another. Pure functions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment
from ipnext.model.deployment.host_control import HeldGeneration, HostedSnapshot, HostFailure, HostHolds, HostState
from ipnext.model.deployment.replica import LoadFailure
from ipnext.model.deployment.router_table import PartEndpoint

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ReplicaSet:
    """Processes with the same desired snapshots. `own`: a process that lacks any of them may not join the set."""

    replicas: int
    holds: tuple[AssignedSnapshot, ...]
    own: bool = False
    apart: frozenset[str] = frozenset()
    """Contents of snapshots that only a shadow has: a process with any of them may not join the set."""

    @property
    def digests(self) -> frozenset[str]:
        """Contents of the snapshots, each of which a process must have to answer for it."""
        return frozenset(held.content for held in self.holds)


def replica_sets(deployment: Deployment) -> tuple[ReplicaSet, ...]:
    """Return one set of all snapshots, or one for each generation if generations have separate processes.

    Generations of exactly the same snapshots share a set, which has the processes of all of them. Shadows have sets of
    their own, and come last: a process that fits both answers clients.
    """
    if not deployment.shadow:
        return _clients_sets(deployment)
    holds = _of_generations(deployment, deployment.clients_generations)
    clients = deployment.model_copy(update={"replicas": deployment.clients_replicas, "holds": holds, "shadow": {}})
    shadows = tuple(
        ReplicaSet(count, _of_generations(deployment, (generation,)), own=True)
        for generation, count in sorted(deployment.shadow.items())
    )
    apart = frozenset[str]().union(*(one.digests for one in shadows)) - {held.content for held in holds}
    return (*(replace(one, apart=apart) for one in _clients_sets(clients)), *shadows)


def _clients_sets(deployment: Deployment) -> tuple[ReplicaSet, ...]:
    if not deployment.own:
        return (ReplicaSet(deployment.replicas, deployment.holds),)
    groups: dict[frozenset[tuple[str, int]], list[int]] = {}
    for generation in sorted(deployment.own):
        groups.setdefault(deployment.snapshots_of(generation), []).append(generation)
    return tuple(
        ReplicaSet(sum(deployment.own[g] for g in alike), _of_generations(deployment, alike), own=True)
        for alike in groups.values()
    )


def _of_generations(deployment: Deployment, wanted: Collection[int]) -> tuple[AssignedSnapshot, ...]:
    """Return the snapshots of these generations alone."""
    found = ((held, tuple(g for g in held.generations if g in wanted)) for held in deployment.holds)
    return tuple(held.model_copy(update={"generations": kept}) for held, kept in found if kept)


def assign_processes(
    sets: Sequence[ReplicaSet], staying: Iterable[tuple[R, frozenset[str]]], *, swap: bool = False
) -> tuple[list[list[R]], list[R]]:
    """Return the processes of each set, and those for which no set has a place.

    `staying` are processes, the most valuable first, with the digests that they have or load. A set with `own` takes
    only processes that have all of its snapshots: otherwise it gets new processes, and the others end. With `swap`,
    surplus processes, the least valuable ones, are hot swapped to the sets that lack some.
    """
    members: list[list[R]] = [[] for _ in sets]
    rest: list[R] = []
    for process, digests in staying:
        fitting = (
            found
            for found, wanted in zip(members, sets, strict=True)
            if len(found) < wanted.replicas
            and (not wanted.own or wanted.digests <= digests)
            and wanted.apart.isdisjoint(digests)
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


def host_holds(deployment: Deployment, holds: Iterable[AssignedSnapshot] | None = None) -> HostHolds:
    """Return the desired snapshots of each host of a deployment; only those of `holds`, if given."""
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
                is_cut_from_signed=held.is_cut_from_signed,
                denied=held.denied,
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
    """Return all generations of the holds."""
    return frozenset(generation for held in holds.holds for generation in held.generations)


def needs_swap(told: HostHolds, wanted: HostHolds) -> bool:
    """Return whether a process with the holds `told` has to take another snapshot for `wanted`."""
    return bool(told.holds) and not digests(wanted.holds) <= digests(told.holds)


def digests(holds: Iterable[HostedSnapshot]) -> frozenset[str]:
    """Return the contents of all snapshots."""
    return frozenset(held.digest for held in holds)


def adapters_of(*told: HostHolds | None) -> frozenset[str]:
    """Return the adapter parts among the holds, which are loaded into another part's engines."""
    holds = (held for one in told if one is not None for held in (*one.holds, *one.coming))
    return frozenset(held.part for held in holds if held.adapter_of is not None)


def with_both(told: HostHolds, wanted: HostHolds) -> HostHolds:
    """Return all of `wanted`, and the holds that only `told` has: new snapshots load while old ones still answer.

    A generation of a part or segment has one snapshot, the one of `wanted`.
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
    """Return the holds without some snapshots, each named by part or segment and number."""
    kept = tuple(held for held in holds.holds if (held.part, held.snapshot) not in snapshots)
    return HostHolds(holds=kept, coming=tuple(h for h in holds.coming if (h.part, h.snapshot) not in snapshots))


def differs(state: HostState, sent: HostHolds) -> bool:
    """Return whether a host has more or less than it was sent. Failed loads count as present."""
    asked = {(h.model, h.part, h.snapshot, generation) for h in sent.holds for generation in h.generations}
    has = {(h.model, h.part, h.snapshot, h.generation) for h in (*state.ready, *state.loading)}
    failed = {(f.model, f.part, f.snapshot, generation) for f in state.failures for generation in f.generations}
    return bool(asked - has - failed or has - asked)


def routable(ready: tuple[HeldGeneration, ...], wanted: HostHolds) -> tuple[int, ...]:
    """Return the generations, ascending, that a host should answer for and whose desired snapshots are all ready."""
    lacking = _pairs(wanted) - {(held.part, held.generation) for held in ready}
    return tuple(sorted(generations(wanted) - {generation for _, generation in lacking}))


def pieces(holds: HostHolds, ready: Collection[int]) -> dict[str, tuple[int, ...]]:
    """Return, for each part or segment, the generations in `ready` that a graph may call it for.

    Empty if none is ready.
    """
    found: dict[str, set[int]] = {}
    for held in holds.holds:
        found.setdefault(held.part, set()).update(g for g in held.generations if g in ready)
    return {part: tuple(sorted(numbers)) for part, numbers in found.items()}


def by_url(
    part: str, ready: Collection[int], engines: Mapping[tuple[str, int], str], host: str
) -> dict[str, tuple[int, ...]]:
    """Map each URL to the generations of a part that it serves: its engine's if that serves by itself, else the host's.

    A part without a ready generation has the host's URL.
    """
    found: dict[str, list[int]] = {}
    for generation in sorted(ready):
        found.setdefault(engines.get((part, generation), host), []).append(generation)
    return {url: tuple(numbers) for url, numbers in found.items()} or {host: ()}


def endpoints(
    wanted: HostHolds, answered: Collection[int], ready: Iterable[HeldGeneration], *, host: str
) -> tuple[PartEndpoint, ...]:
    """Return the endpoints of the parts that a host should serve; routers send only generations in `answered` there."""
    found = [one for one in ready if one.url]
    engines = {(one.part, one.generation): one.url for one in found if one.url}
    names = {one.url: one.answers_as for one in found}
    return tuple(
        PartEndpoint(part=part, url=url, generations=numbers, answers_as=names.get(url))
        for part, held in pieces(wanted, answered).items()
        for url, numbers in by_url(part, held, engines, host).items()
    )


def load_failures(failures: Iterable[HostFailure], adapters: Collection[str]) -> tuple[LoadFailure, ...]:
    """Return the load failures of a host as the port reports them; `adapters` are the parts that are adapters."""
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
    """Map each generation to the URL of the engine that serves a part by itself."""
    return {held.generation: held.url for held in ready if held.url and held.part == part}


def _pairs(holds: HostHolds) -> frozenset[tuple[str, int]]:
    return frozenset((held.part, generation) for held in holds.holds for generation in held.generations)
