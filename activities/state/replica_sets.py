"""Replica sets that a model's state asks for, with the snapshots that each replica holds."""

from collections.abc import Collection, Iterable, Mapping

from activities.state.desired import DesiredFacts
from activities.state.wave_state import ModelWaveState, Slot
from ipnext.errors import NotFound
from ipnext.model.deployment.deployment import (
    SERVING_ENGINES,
    STREAM_DRAIN_SECONDS,
    AssignedSnapshot,
    Deployment,
    DeploymentKey,
)
from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.derived.layout import laid_out
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.denials import Denial
from ipnext.model.registry.registry import Generation, Snapshot
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.settings.routing import host_settings


def wanted_deployments(facts: DesiredFacts, state: ModelWaveState) -> tuple[Deployment, ...]:
    """Build one deployment for each slot of the state: its replicas, and the snapshots that each of them holds.

    Engine, settings and units follow the manifest in force; in a revert those of before the transition are restored.
    """
    return tuple(_deployment(facts, state, slot) for slot in state.slots)


def shrinking_first(wanted: Iterable[Deployment], running: Mapping[DeploymentKey, int]) -> tuple[Deployment, ...]:
    """Sort replica sets for their application: those with no more processes than run now before those with more.

    The units of the former are free before the latter take any.
    """
    return tuple(sorted(wanted, key=lambda found: found.replicas > running.get(found.key, 0)))


def choose_kept_sets(
    facts: DesiredFacts, regions: Collection[str], wanted: tuple[Deployment, ...]
) -> tuple[Deployment, ...]:
    """Return the replica sets to keep.

    If a run counts on a lost region of `regions`, all that answer in the remaining ones. Their users, and those who
    were about to move to the lost one, have nothing else before a plan without it exists.
    """
    if not facts.lost.intersection(regions):
        return wanted
    left = {key: found for key, found in facts.deployments.items() if key.region not in facts.lost}
    kept = tuple(left.pop(found.key, found) for found in wanted)
    return (*kept, *left.values())


def key_of(model: str, slot: Slot) -> DeploymentKey:
    """Return the replica set of a slot."""
    part, region, hardware = slot
    return DeploymentKey(model=model, part=part, region=region, hardware=hardware)


def former_generations(facts: DesiredFacts, active: Iterable[int]) -> tuple[int, ...]:
    """Return generations that have served and are not `active`, the one that served last first."""
    busy = set(active)
    served = [(g.serving_at, g.number) for g in facts.generations.values() if g.serving_at and g.number not in busy]
    return tuple(number for _, number in sorted(served, reverse=True))


def find_running(deployments: Mapping[DeploymentKey, Deployment], key: DeploymentKey) -> Deployment | None:
    """Return the replica set of a key, else one of the same part and hardware in another region.

    The waves may take a generation by way of a region that it was never in. Its part may be in no manifest any more.
    """
    if key in deployments:
        return deployments[key]
    alike = (
        found for found in sorted(deployments, key=str) if (found.part, found.hardware) == (key.part, key.hardware)
    )
    other = next(alike, None)
    return None if other is None else deployments[other]


def _deployment(facts: DesiredFacts, state: ModelWaveState, slot: Slot) -> Deployment:
    key = key_of(facts.model, slot)
    stored = facts.deployments.get(key)
    holds = _holds(facts, state, slot)
    replicas, own = state.replicas(slot), _own(state, slot)
    swap = state.apart and facts.manifest.spec.rollout.refresh == "swap"
    restored = facts.sets_before.get(key, stored) if facts.sets_before else None
    if restored is not None:
        return restored.model_copy(update={"replicas": replicas, "own": own, "holds": holds, "swap": swap})
    part, option = _spec_of(facts, state, slot)
    if part is None or option is None:
        former = find_running(facts.deployments, key)
        if former is None:
            msg = f"the manifest of {facts.model!r} has no way to run {key}: neither the part nor the hardware is there"
            raise NotFound(msg)
        return former.model_copy(update={"key": key, "replicas": replicas, "own": own, "holds": holds})
    return Deployment(
        key=key,
        replicas=replicas,
        own=own,
        engine=part.engine,
        units=facts.placed_units.get((part.name, option.kind), option.units),
        qps=option.throughput,
        memory_bytes=part.memory_bytes,
        settings=host_settings(part.settings) if part.engine in SERVING_ENGINES else part.settings,
        drain_seconds=_drain_seconds(facts, part),
        holds=holds,
        swap=swap,
        swap_wait_seconds=facts.manifest.spec.rollout.swap_wait_seconds,
    )


def _drain_seconds(facts: DesiredFacts, part: PartSpec) -> float | None:
    chosen = facts.manifest.spec.rollout.drain_seconds
    return STREAM_DRAIN_SECONDS if chosen is None and part.engine in SERVING_ENGINES else chosen


def _own(state: ModelWaveState, slot: Slot) -> dict[int, int]:
    return (
        {generation: state.counts[slot, generation] for generation in sorted(state.generations_at(slot))}
        if state.apart
        else {}
    )


def _holds(facts: DesiredFacts, state: ModelWaveState, slot: Slot) -> tuple[AssignedSnapshot, ...]:
    """Return snapshots of the generations at work, and of former ones that are loaded here and stay warm.

    A warm generation with a part that has no host any more is of no use. If each generation has dedicated processes
    none stays warm: it would keep them all. One snapshot with and without adapters is held twice: an engine can load
    adapters only if it reserved room for them at its start.
    """
    part, _, hardware = slot
    stored = facts.deployments.get(key_of(facts.model, slot))
    loaded = set(stored.generations) if stored else set()
    hosted = {name for name, _, _ in state.slots}
    former = former_generations(facts, state.generations)[: facts.manifest.spec.rollout.keep_warm]
    warm = {number for number in former if hosted.issuperset(facts.generations[number].parts)}
    warm = {number for number in warm if facts.denied.keys().isdisjoint(facts.generations[number].named)}
    kept = set() if state.apart else loaded & warm
    pieces: dict[tuple[str, int, int], list[Generation]] = {}
    for generation in (facts.generations[number] for number in sorted(state.generations_at(slot) | kept)):
        for name, number in generation.snapshots_of(part, hardware).items():
            pieces.setdefault((name, number, len(generation.adapters_of(name))), []).append(generation)
    signers = facts.manifest.spec.validation.signers
    return tuple(
        _build_held(part, facts.snapshots[name, number], found, signers, facts.denied.get((name, number)))
        for (name, number, _), found in sorted(pieces.items())
    )


def _build_held(
    part: str, snapshot: Snapshot, generations: list[Generation], signers: SignerPolicy | None, denial: Denial | None
) -> AssignedSnapshot:
    """Build the entry of a held snapshot.

    A segment, or a derived snapshot, has no signers: the platform made it of a snapshot with a checked signature.
    """
    adapter = snapshot.part in generations[0].adapters
    is_cut = generations[0].layout is not None or snapshot.derived_from is not None
    return AssignedSnapshot(
        part=None if snapshot.part == part else snapshot.part,
        snapshot=snapshot.number,
        digest=snapshot.digest,
        uri=snapshot.uri,
        generations=tuple(generation.number for generation in generations),
        signers=None if is_cut else signers,
        is_cut_from_signed=is_cut and signers is not None,
        denied="" if denial is None else denial.text,
        adapter=adapter,
        adapters=len(generations[0].adapters_of(snapshot.part)),
    )


def _spec_of(facts: DesiredFacts, state: ModelWaveState, slot: Slot) -> tuple[PartSpec | None, HardwareOption | None]:
    """Return part and hardware of a slot, from the target, else from another generation at work."""
    name, _, hardware = slot
    numbers = sorted(
        state.generations_at(slot) & facts.generations.keys(), key=lambda number: (number != facts.target, -number)
    )
    for number in numbers:
        spec = laid_out(facts.manifest, facts.generations[number]).spec
        part = next((part for part in spec.parts if part.name == name), None)
        option = next((o for o in part.hardware if o.kind == hardware), None) if part else None
        if option is not None:
            return part, option
    return None, None
