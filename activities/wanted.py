"""From the state of a model to what the infrastructure is told: deployments with their holdings, and route tables.

Pure functions of `Facts`, which one unit of work reads.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from activities.waves import ModelState, Slot
from ipnext.errors import NotFound
from ipnext.model.deployment import (
    Deployment,
    DeploymentKey,
    HeldSnapshot,
    RouteShare,
    RouteTable,
    ServedGeneration,
    SnapshotFacts,
)
from ipnext.model.fleet import HardwareOption
from ipnext.model.layout import laid_out
from ipnext.model.manifest import ModelManifest, PartSpec
from ipnext.model.registry import Generation, PartGraph, Snapshot, single_part_graph
from ipnext.model.value import digest_of
from ipnext.store.repository import Repository


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the store knows of one model. `target` is the generation that shall serve."""

    manifest: ModelManifest
    target: int
    generations: Mapping[int, Generation]
    snapshots: Mapping[tuple[str, int], Snapshot]
    deployments: Mapping[DeploymentKey, Deployment]
    tables: Mapping[str, RouteTable]

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest.name


def read_facts(repository: Repository, model: str, target: int) -> Facts:
    """All that the functions here need. NotFound for an unknown model."""
    return Facts(
        manifest=repository.model(model).manifest,
        target=target,
        generations={g.number: g for g in repository.generations(model)},
        snapshots={(s.part, s.number): s for s in repository.snapshots(model)},
        deployments={d.key: d for d in repository.deployments(model)},
        tables={table.region: table for table in repository.routes(model)},
    )


def key_of(model: str, slot: Slot) -> DeploymentKey:
    """The replica set of a slot."""
    part, region, hardware = slot
    return DeploymentKey(model=model, part=part, region=region, hardware=hardware)


def wanted_deployments(facts: Facts, state: ModelState) -> tuple[Deployment, ...]:
    """One deployment for each slot of the state: its replicas, and the snapshots that each of them holds."""
    return tuple(_deployment(facts, state, slot) for slot in state.slots)


def former_generations(facts: Facts, active: Iterable[int]) -> tuple[int, ...]:
    """Generations that have served and are not `active`, the one that served last first."""
    busy = set(active)
    served = [(g.serving_at, g.number) for g in facts.generations.values() if g.serving_at and g.number not in busy]
    return tuple(number for _, number in sorted(served, reverse=True))


def served_generations(facts: Facts, region: str, deployments: Iterable[Deployment]) -> tuple[ServedGeneration, ...]:
    """Generations that a region holds completely: every part that hosts hold of them has a replica set there."""
    held: dict[int, set[str]] = {}
    for deployment in deployments:
        if deployment.key.region == region and deployment.replicas:
            for generation in deployment.generations:
                held.setdefault(generation, set()).add(deployment.key.part)
    known = [facts.generations[number] for number in sorted(held) if number in facts.generations]
    candidates = [(served_generation(facts, found.number), found) for found in known]
    return tuple(s for s, found in candidates if _called(s.graph, found) <= held[s.generation])


def served_generation(facts: Facts, number: int) -> ServedGeneration:
    """What a router needs for one generation. Those before the target keep the graph they were served with.

    One that is cut has the graph of its own layout, whatever the manifest says now.
    """
    generation = facts.generations[number]
    if number != facts.target and generation.layout is None:
        for table in facts.tables.values():
            for served in table.served:
                if served.generation == number:
                    return served
    spec = facts.manifest.spec
    graph = generation.layout.graph if generation.layout else spec.graph or _graph_of_one(facts, generation)
    held = {piece: facts.snapshots.get((piece, snapshot)) for piece, snapshot in generation.answering.items()}
    return ServedGeneration(
        generation=number,
        graph=graph,
        snapshots=dict(generation.answering),
        sync=spec.sync,
        facts={piece: _facts_of(snapshot) for piece, snapshot in held.items() if snapshot is not None},
    )


def _facts_of(snapshot: Snapshot) -> SnapshotFacts:
    return SnapshotFacts(created_at=snapshot.created_at, signature=digest_of(snapshot.manifest.signature))


def wanted_shares(
    facts: Facts, state: ModelState, deployments: Iterable[Deployment]
) -> dict[str, tuple[RouteShare, ...]]:
    """The shares of every region that has demand, hosts the model or had a table before.

    A region that hosts the model without demand of its own answers its users itself.
    """
    hosting = {deployment.key.region for deployment in deployments if deployment.replicas}
    regions = hosting | state.shares.keys() | facts.tables.keys()
    main = _main_generation(state)
    shares = {region: state.shares.get(region, ()) for region in sorted(regions)}
    demanding = {item.region for item in facts.manifest.spec.demand}
    for region in hosting - demanding:
        complete = {served.generation for served in served_generations(facts, region, deployments)}
        if not shares[region] and main in complete:
            shares[region] = (RouteShare(to=region, generation=main, fraction=1.0),)
    return shares


def _main_generation(state: ModelState) -> int:
    """The generation with the most traffic; 0 where there is none."""
    weights: dict[int, float] = {}
    for shares in state.shares.values():
        for share in shares:
            weights[share.generation] = weights.get(share.generation, 0.0) + share.fraction
    return max(weights, key=lambda generation: (weights[generation], generation), default=0)


def _deployment(facts: Facts, state: ModelState, slot: Slot) -> Deployment:
    key = key_of(facts.model, slot)
    stored = facts.deployments.get(key)
    part, option = _spec_of(facts, state, slot)
    holds = _holds(facts, state, slot)
    replicas, own = state.replicas(slot), _own(state, slot)
    if part is None or option is None:
        if stored is None:
            msg = f"the manifest of {facts.model!r} has no way to run {key}: neither the part nor the hardware is there"
            raise NotFound(msg)
        return stored.model_copy(update={"replicas": replicas, "own": own, "holds": holds})
    return Deployment(
        key=key,
        replicas=replicas,
        own=own,
        engine=part.engine,
        units=option.units,
        qps=option.qps,
        memory_bytes=part.memory_bytes,
        settings=part.settings,
        holds=holds,
    )


def _own(state: ModelState, slot: Slot) -> dict[int, int]:
    return (
        {generation: state.counts[slot, generation] for generation in sorted(state.held(slot))} if state.apart else {}
    )


def _holds(facts: Facts, state: ModelState, slot: Slot) -> tuple[HeldSnapshot, ...]:
    """Snapshots of the generations at work, and of former ones that are loaded here and stay warm.

    A generation with a part that has no host any more is of no use warm. Where each generation has processes of its own
    none stays warm: it would keep them all.
    """
    part = slot[0]
    stored = facts.deployments.get(key_of(facts.model, slot))
    loaded = set(stored.generations) if stored else set()
    hosted = {name for name, _, _ in state.slots}
    former = former_generations(facts, state.generations)[: facts.manifest.spec.rollout.keep_warm]
    warm = {number for number in former if hosted.issuperset(facts.generations[number].parts)}
    kept = set() if state.apart else loaded & warm
    pieces: dict[tuple[str, int], list[int]] = {}
    for generation in sorted(state.held(slot) | kept):
        for piece in facts.generations[generation].held_by(part).items():
            pieces.setdefault(piece, []).append(generation)
    return tuple(_held(part, facts.snapshots[piece], found) for piece, found in sorted(pieces.items()))


def _held(part: str, snapshot: Snapshot, generations: list[int]) -> HeldSnapshot:
    return HeldSnapshot(
        part=None if snapshot.part == part else snapshot.part,
        snapshot=snapshot.number,
        digest=snapshot.digest,
        uri=snapshot.uri,
        generations=tuple(generations),
    )


def _called(graph: PartGraph, generation: Generation) -> set[str]:
    """The parts that hosts hold of a generation."""
    return set(generation.parts) if generation.layout is not None else {node.part for node in graph.nodes}


def _spec_of(facts: Facts, state: ModelState, slot: Slot) -> tuple[PartSpec | None, HardwareOption | None]:
    """Part and hardware of a slot, as the target has them, else as another generation at work has them."""
    name, _, hardware = slot
    numbers = sorted(state.held(slot) & facts.generations.keys(), key=lambda number: (number != facts.target, -number))
    for number in numbers:
        spec = laid_out(facts.manifest, facts.generations[number]).spec
        part = next((part for part in spec.parts if part.name == name), None)
        option = next((o for o in part.hardware if o.kind == hardware), None) if part else None
        if option is not None:
            return part, option
    return None, None


def _graph_of_one(facts: Facts, generation: Generation) -> PartGraph:
    part = facts.manifest.spec.parts[0].name
    return single_part_graph(part, facts.snapshots[part, generation.snapshots[part]].manifest.signature)
