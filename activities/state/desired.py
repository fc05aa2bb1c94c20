"""Desired state of the infrastructure from the state of a model: deployments with their snapshots, and route tables.

Pure functions of `DesiredFacts`, which one unit of work reads.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from activities.state.drained_fleet import DrainedFleet
from activities.state.facts import at_work, read_generations
from activities.state.failover_shares import Nearness, Survivor, without_regions
from activities.state.wave_state import ModelWaveState, Slot
from ipnext.errors import NotFound
from ipnext.model.access.predictions import PredictionAccess
from ipnext.model.deployment.deployment import (
    SERVING_ENGINES,
    STREAM_DRAIN_SECONDS,
    AssignedSnapshot,
    Deployment,
    DeploymentKey,
    RouteShare,
    RouteTable,
    ServedGeneration,
    SnapshotFacts,
)
from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.layout import laid_out
from ipnext.model.manifest.manifest import ModelManifest, PartSpec
from ipnext.model.manifest.part_tensors import graph_of_one, request_tensors, signatures
from ipnext.model.registry.adapter import ServedAdapter, engine_name
from ipnext.model.registry.registry import Generation, PartGraph, Snapshot, TensorSpec
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.settings.engine import vllm_settings
from ipnext.model.settings.prompt import PROMPT
from ipnext.model.settings.routing import RoutingPolicy, host_settings, routing_policy
from ipnext.model.value import digest_of
from ipnext.store.records import ModelPlacement
from ipnext.store.repository import Repository


@dataclass(frozen=True, kw_only=True)
class DesiredFacts:
    """Facts of the store about one model: its manifest in force, and `target`, the generation to serve."""

    manifest: ModelManifest
    target: int
    generations: Mapping[int, Generation]
    snapshots: Mapping[tuple[str, int], Snapshot]
    deployments: Mapping[DeploymentKey, Deployment]
    tables: Mapping[str, RouteTable]
    """By users' region, without pending ones."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """By users' region: the revision of a pending table, which the first one of a transition has to exceed."""
    serving: int | None = None
    """The serving generation in the store."""
    lost: frozenset[str] = frozenset()
    """Lost regions: nothing is sent there, and nothing waits for them."""
    rtt_ms: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By users' region and serving region; read only if a region is lost."""
    planned_demand: Mapping[str, float] = field(default_factory=dict)
    """By users' region, in the model's unit: the demand that the waves of the current run were planned for, if there is
    one."""
    unmet_rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By users' region that the manifest names and the fleet has: rules of the plan that leave demand there
    unserved."""
    placed_units: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By part and hardware: units of a replica by the plan in force, which a newer manifest does not change."""
    rolled_out: int | None = None
    """The generation that an open change brings with its manifest: it is served by that one's graph."""
    sets_before: Mapping[DeploymentKey, Deployment] = field(default_factory=dict)
    """In a revert: the replica sets as they were desired before the transition."""
    served_before: Mapping[int, ServedGeneration] = field(default_factory=dict)
    """In a revert: the generations as routers had them before the transition."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def access(self) -> PredictionAccess:
        """Whether predictions need a credential."""
        return self.manifest.spec.access.predictions

    @property
    def demand(self) -> Mapping[str, float]:
        """By users' region, in the model's unit.

        A run keeps the demand that its waves were planned for, whatever was requested since.
        """
        return self.planned_demand or {item.region: item.amount for item in self.manifest.spec.demand}


def read_facts(repository: Repository, model: str, target: int, *, named: Iterable[int] = ()) -> DesiredFacts:
    """Read all facts of one model: the generations at work, and those `named`. Raises NotFound.

    The cost does not depend on the number of published generations (`activities.state.facts`).
    """
    lost = DrainedFleet.of(repository.drains()).lost
    record = repository.model(model)
    deployments, tables = repository.deployments(model), repository.routes(model)
    numbers = at_work(record, deployments, tables, (target, *named))
    generations, snapshots = read_generations(repository, record, numbers)
    return DesiredFacts(
        manifest=repository.as_measured(record.in_force, target or record.serving_generation),
        target=target,
        generations=generations,
        snapshots=snapshots,
        deployments={d.key: d for d in deployments},
        tables=index_tables(tables),
        pending=pending_revisions(tables),
        serving=record.serving_generation,
        lost=lost,
        rtt_ms=round_trips(repository) if lost else {},
        unmet_rules=unmet_rules(repository, record.in_force),
        placed_units=_placed_units(repository.placement(model)),
        rolled_out=record.former.generation or None if record.former else None,
    )


def index_tables(tables: Iterable[RouteTable]) -> dict[str, RouteTable]:
    """Return the tables that transitions have written, by users' region."""
    return {table.region: table for table in tables if not table.pending}


def pending_revisions(tables: Iterable[RouteTable]) -> dict[str, int]:
    """Return the revisions of the other ones, by users' region."""
    return {table.region: table.revision for table in tables if table.pending}


def _placed_units(placed: ModelPlacement | None) -> Mapping[tuple[str, str], float]:
    return placed.wishes.units if placed else {}


def unmet_rules(repository: Repository, manifest: ModelManifest) -> dict[str, tuple[str, ...]]:
    """Map users' regions to the rules of the plan that leave demand there unserved.

    Only regions that the manifest names and the fleet has.
    """
    placed, regions = repository.placement(manifest.name), set(repository.region_names())
    rules = {unmet.region: unmet.rules for unmet in placed.unmet} if placed else {}
    return {item.region: rules.get(item.region, ()) for item in manifest.spec.demand if item.region in regions}


def round_trips(repository: Repository) -> dict[tuple[str, str], float]:
    """Return milliseconds by users' region and serving region."""
    fleet = repository.fleet().spec
    rows = zip(fleet.regions, fleet.rtt_ms, strict=True)
    return {(origin, to): ms for origin, row in rows for to, ms in zip(fleet.regions, row, strict=True)}


def key_of(model: str, slot: Slot) -> DeploymentKey:
    """Return the replica set of a slot."""
    part, region, hardware = slot
    return DeploymentKey(model=model, part=part, region=region, hardware=hardware)


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


def former_generations(facts: DesiredFacts, active: Iterable[int]) -> tuple[int, ...]:
    """Return generations that have served and are not `active`, the one that served last first."""
    busy = set(active)
    served = [(g.serving_at, g.number) for g in facts.generations.values() if g.serving_at and g.number not in busy]
    return tuple(number for _, number in sorted(served, reverse=True))


def served_generations(
    facts: DesiredFacts, region: str, deployments: Iterable[Deployment]
) -> tuple[ServedGeneration, ...]:
    """Return generations that a region holds completely: every hosted part of them has a replica set there."""
    held: dict[int, set[str]] = {}
    for deployment in deployments:
        if deployment.key.region == region and deployment.replicas:
            for generation in deployment.generations:
                held.setdefault(generation, set()).add(deployment.key.part)
    known = [facts.generations[number] for number in sorted(held) if number in facts.generations]
    candidates = [(served_generation(facts, found.number), found) for found in known]
    return tuple(s for s, found in candidates if _list_hosted(s.graph, found) <= held[s.generation])


def served_generation(facts: DesiredFacts, number: int) -> ServedGeneration:
    """Build the router's record of one generation. Each keeps the graph it was served with.

    Only the target of a rollout that brings a manifest is served by that one's graph, except in a revert.
    """
    if number in facts.served_before:
        return facts.served_before[number]
    generation = facts.generations[number]
    if number != facts.target and generation.layout is None:
        for table in facts.tables.values():
            for served in table.served:
                if served.generation == number:
                    return served
    whole = facts.manifest.spec
    spec = whole if generation.layout is not None else laid_out(facts.manifest, generation).spec
    graph = _graph_of(facts, generation)
    held = {piece: facts.snapshots.get((piece, snapshot)) for piece, snapshot in generation.answering.items()}
    return ServedGeneration(
        generation=number,
        graph=graph,
        snapshots=dict(generation.answering),
        sync=whole.sync,
        facts={piece: _facts_of(snapshot) for piece, snapshot in held.items() if snapshot is not None},
        engines={part.name: part.engine for part in spec.hosted_parts if part.engine in SERVING_ENGINES},
        routing=_routing(spec.hosted_parts),
        contexts=_contexts(spec.hosted_parts),
        handoff=spec.handoff,
        adapters=_adapters(facts, generation),
        inputs=_inputs(spec.parts, graph, held),
    )


def _graph_of(facts: DesiredFacts, generation: Generation) -> PartGraph:
    """Return the graph of a generation.

    It is that of its layout, of the manifest that is rolled out with it, or the one it served by. A manifest's graph
    with parts that the generation lacks is not for it.
    """
    if generation.layout is not None:
        return generation.layout.graph
    if generation.graph is not None and generation.number != facts.rolled_out:
        return generation.graph
    wiring = facts.manifest.spec.wiring
    if wiring is not None and (
        len(generation.parts) > 1 or {node.part for node in wiring.nodes} <= set(generation.snapshots)
    ):
        return wiring
    return _graph_of_one(facts, generation)


def _adapters(facts: DesiredFacts, generation: Generation) -> dict[str, ServedAdapter]:
    """Return the names of a generation's adapters in its engines."""
    found = {part: facts.snapshots[part, generation.snapshots[part]].digest for part in generation.adapters}
    return {
        part: ServedAdapter(base=generation.adapters[part], name=engine_name(part, digest))
        for part, digest in found.items()
    }


def _inputs(parts: Iterable[PartSpec], graph: PartGraph, held: Mapping[str, Snapshot | None]) -> tuple[TensorSpec, ...]:
    """Return the request's inputs besides its prompt, if nodes run before a generator.

    The request's JSON does not declare them.
    """
    if all(node.prompt is None for node in graph.nodes):
        return ()
    known = signatures(parts, {part: snapshot.manifest for part, snapshot in held.items() if snapshot is not None})
    if any(node.part not in known for node in graph.nodes):
        return ()
    return tuple(tensor for name, tensor in request_tensors(graph, known).items() if name != PROMPT)


def _routing(parts: Iterable[PartSpec]) -> dict[str, RoutingPolicy]:
    found = {part.name: routing_policy(part.settings) for part in parts if part.engine in SERVING_ENGINES}
    return {part: policy for part, policy in found.items() if policy is not None}


def _contexts(parts: Iterable[PartSpec]) -> dict[str, int]:
    found = {
        part.name: vllm_settings(host_settings(part.settings)).max_model_len
        for part in parts
        if part.engine in SERVING_ENGINES
    }
    return {part: length for part, length in found.items() if length is not None}


def _facts_of(snapshot: Snapshot) -> SnapshotFacts:
    return SnapshotFacts(created_at=snapshot.created_at, signature=digest_of(snapshot.manifest.signature))


def wanted_shares(
    facts: DesiredFacts,
    state: ModelWaveState,
    deployments: Iterable[Deployment],
    *,
    unready: Collection[tuple[str, int]] = (),
) -> dict[str, tuple[RouteShare, ...]]:
    """Return the shares of every region that has demand, hosts the model or had a table before.

    A region without demand that hosts the model answers its users itself. Traffic for a lost region goes to the
    remaining ones. Neither goes to an `unready` (region, generation). A region with demand that no region serves has no
    shares: its gateway refuses its users.
    """
    deployments = tuple(deployments)
    hosting = {deployment.key.region for deployment in deployments if deployment.replicas}
    regions = hosting | state.shares.keys() | facts.tables.keys() | facts.unmet_rules.keys()
    main = _main_generation(state)
    shares = {region: state.shares.get(region, ()) for region in sorted(regions)}
    demanding = {item.region for item in facts.manifest.spec.demand}
    for region in hosting - demanding:
        complete = {served.generation for served in served_generations(facts, region, deployments)}
        if not shares[region] and main in complete and (region, main) not in unready:
            shares[region] = (RouteShare(to=region, generation=main, fraction=1.0),)
    able = [found for found in survivors(facts, deployments) if (found.region, found.generation) not in unready]
    return fail_over(facts, shares, able)


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


def fail_over(
    facts: DesiredFacts, shares: Mapping[str, tuple[RouteShare, ...]], able: Sequence[Survivor]
) -> dict[str, tuple[RouteShare, ...]]:
    """Return shares without lost regions, over those that are `able`."""
    demand = {item.region: item.amount for item in facts.manifest.spec.demand}
    nearness = Nearness(facts.rtt_ms, facts.manifest.spec.latency_tolerance_ms)
    return without_regions(shares, facts.lost, able, demand=demand, nearness=nearness, serving=facts.serving)


def survivors(
    facts: DesiredFacts, deployments: Iterable[Deployment], ready: Mapping[tuple[DeploymentKey, int], int] | None = None
) -> tuple[Survivor, ...]:
    """Return every whole generation of every remaining region, with the throughput of its slowest part.

    By the desired replicas, or by those that are `ready` (replica set, generation -> count).
    """
    if not facts.lost:
        return ()
    held = tuple(deployments)
    regions = {deployment.key.region for deployment in held} - facts.lost
    return tuple(
        Survivor(region, served.generation, _throughput(facts, served, region, held, ready))
        for region in sorted(regions)
        for served in served_generations(facts, region, held)
    )


def _throughput(
    facts: DesiredFacts,
    served: ServedGeneration,
    region: str,
    deployments: Iterable[Deployment],
    ready: Mapping[tuple[DeploymentKey, int], int] | None,
) -> float:
    """Return the throughput of a generation in a region, in the model's unit: that of its slowest part."""
    number = served.generation
    able = dict.fromkeys(_list_hosted(served.graph, facts.generations[number]), 0.0)
    for found in deployments:
        if found.key.region == region and found.key.part in able:
            count = found.replicas_of(number) if ready is None else ready.get((found.key, number), 0)
            able[found.key.part] += count * found.qps
    return min(able.values(), default=0.0)


def _main_generation(state: ModelWaveState) -> int:
    """Return the generation with the most traffic; 0 if there is none."""
    weights: dict[int, float] = {}
    for shares in state.shares.values():
        for share in shares:
            weights[share.generation] = weights.get(share.generation, 0.0) + share.fraction
    return max(weights, key=lambda generation: (weights[generation], generation), default=0)


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
    part = slot[0]
    stored = facts.deployments.get(key_of(facts.model, slot))
    loaded = set(stored.generations) if stored else set()
    hosted = {name for name, _, _ in state.slots}
    former = former_generations(facts, state.generations)[: facts.manifest.spec.rollout.keep_warm]
    warm = {number for number in former if hosted.issuperset(facts.generations[number].parts)}
    kept = set() if state.apart else loaded & warm
    pieces: dict[tuple[str, int, int], list[Generation]] = {}
    for generation in (facts.generations[number] for number in sorted(state.generations_at(slot) | kept)):
        for name, number in generation.snapshots_of(part).items():
            pieces.setdefault((name, number, len(generation.adapters_of(name))), []).append(generation)
    signers = facts.manifest.spec.validation.signers
    return tuple(
        _build_held(part, facts.snapshots[name, number], found, signers)
        for (name, number, _), found in sorted(pieces.items())
    )


def _build_held(
    part: str, snapshot: Snapshot, generations: list[Generation], signers: SignerPolicy | None
) -> AssignedSnapshot:
    """Build the entry of a held snapshot.

    A segment has no signers: the platform split it from a snapshot with a checked signature.
    """
    adapter = snapshot.part in generations[0].adapters
    is_cut = generations[0].layout is not None
    return AssignedSnapshot(
        part=None if snapshot.part == part else snapshot.part,
        snapshot=snapshot.number,
        digest=snapshot.digest,
        uri=snapshot.uri,
        generations=tuple(generation.number for generation in generations),
        signers=None if is_cut else signers,
        is_cut_from_signed=is_cut and signers is not None,
        adapter=adapter,
        adapters=len(generations[0].adapters_of(snapshot.part)),
    )


def _list_hosted(graph: PartGraph, generation: Generation) -> set[str]:
    """Return the parts of a generation that hosts hold."""
    return set(generation.parts) if generation.layout is not None else {node.part for node in graph.nodes}


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


def _graph_of_one(facts: DesiredFacts, generation: Generation) -> PartGraph:
    part = laid_out(facts.manifest, generation).spec.hosted_parts[0]
    return graph_of_one(part, facts.snapshots[part.name, generation.snapshots[part.name]].manifest)
