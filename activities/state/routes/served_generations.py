"""Generations as routers serve them: which of them a region holds completely, and the record of each."""

from collections.abc import Collection, Iterable, Mapping

from activities.state.desired import DesiredFacts
from ipnext.model.deployment.deployment import SERVING_ENGINES, Deployment, DeploymentKey
from ipnext.model.deployment.served_generation import ServedGeneration, SnapshotFacts
from ipnext.model.manifest.derived.layout import laid_out
from ipnext.model.manifest.derived.part_tensors import graph_of_one, request_tensors, signatures
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.adapter import ServedAdapter, engine_name
from ipnext.model.registry.registry import Generation, PartGraph, Snapshot, TensorSpec
from ipnext.model.settings.engine import vllm_settings
from ipnext.model.settings.prompt import PROMPT
from ipnext.model.settings.routing import RoutingPolicy, host_settings, routing_policy
from ipnext.model.value import digest_of


def served_generations(
    facts: DesiredFacts,
    region: str,
    deployments: Iterable[Deployment],
    *,
    leaving: Collection[tuple[DeploymentKey, int]] = (),
) -> tuple[ServedGeneration, ...]:
    """Return generations that a region holds completely: every hosted part of them has a replica set there.

    A shadow is none of them.

    `leaving`: replica sets, and generations that they hold besides the desired ones, as their processes swap later.
    """
    held: dict[int, set[str]] = {}
    for deployment in deployments:
        if deployment.key.region == region and deployment.replicas:
            for generation in deployment.clients_generations:
                held.setdefault(generation, set()).add(deployment.key.part)
    for key, generation in leaving:
        if key.region == region:
            held.setdefault(generation, set()).add(key.part)
    known = [facts.generations[number] for number in sorted(held) if number in facts.generations]
    candidates = [(served_generation(facts, found.number), found) for found in known]
    return tuple(s for s, found in candidates if list_hosted(s.graph, found) <= held[s.generation])


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
        by_hardware=generation.by_hardware,
        sync=whole.sync,
        facts={piece: _facts_of(facts, snapshot) for piece, snapshot in held.items() if snapshot is not None},
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


def _graph_of_one(facts: DesiredFacts, generation: Generation) -> PartGraph:
    part = laid_out(facts.manifest, generation).spec.hosted_parts[0]
    return graph_of_one(part, facts.snapshots[part.name, generation.snapshots[part.name]].manifest)


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


def _facts_of(facts: DesiredFacts, snapshot: Snapshot) -> SnapshotFacts:
    """Return what a sync policy compares: of a derived snapshot, number and time are those of the published one."""
    published = facts.snapshots.get((snapshot.part, snapshot.derived_from or snapshot.number), snapshot)
    return SnapshotFacts(
        created_at=published.created_at,
        signature=digest_of(snapshot.manifest.signature),
        published=snapshot.derived_from,
    )


def list_hosted(graph: PartGraph, generation: Generation) -> set[str]:
    """Return the parts of a generation that hosts hold."""
    return set(generation.parts) if generation.layout is not None else {node.part for node in graph.nodes}
