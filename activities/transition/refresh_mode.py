"""How a model's processes receive new snapshots: in place, or by new processes. Decided once for a transition."""

from collections.abc import Collection, Mapping

from activities.state.facts import ancestors, snapshots_of
from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.deployment.footprint import fits
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.transition import FleetState, Refresh
from ipnext.model.registry.registry import Generation, SnapshotManifest
from ipnext.store.repository import Repository

Piece = tuple[str, str]
"""Part or segment, and the digest of its snapshot."""


def refresh_of(repository: Repository, manifest: ModelManifest, ends: tuple[FleetState, FleetState]) -> Refresh:
    """Return the rollout's mode; for `auto`, in place if every part's memory has room for all snapshots held at once.

    Those are the snapshots of both ends and the warm ones, with the ancestors of deltas among them. A part without
    `memory_bytes` has room, but an engine that serves by itself takes its whole accelerator: such a part is replaced,
    unless one engine serves all of the generations, with other adapters or behind other parts.
    """
    spec = manifest.spec
    if spec.rollout.refresh != "auto":
        return spec.rollout.refresh
    serving = [part.name for part in spec.hosted_parts if part.engine in SERVING_ENGINES]
    model = manifest.name
    loaded = {
        generation for deployment in repository.deployments(model) for generation in deployment.clients_generations
    }
    at_once = loaded | {row.generation for end in ends for row in end.replicas}
    generations = repository.generations_at_work(model, at_once)
    if any(len({engine_of(generation, part) for generation in generations}) > 1 for part in serving):
        return "replace"
    snapshots = repository.snapshots_named(snapshots_of(generations))
    digests = {(s.part, s.number): s.digest for s in snapshots}
    manifests = {(s.part, s.digest): s.manifest for s in (*snapshots, *ancestors(repository, snapshots).values())}
    for part in spec.hosted_parts:
        if part.name in serving:
            continue
        for kind in {option.kind for option in part.hardware}:
            sets = {frozenset(generation.snapshots_of(part.name, kind).items()) for generation in generations}
            held = {(piece, digests[piece, number]) for found in sets for piece, number in found}
            taken = with_ground(held, manifests)
            if len(sets - {frozenset()}) > 1 and not fits(part.memory_bytes, [manifests[piece] for piece in taken]):
                return "replace"
    return "in_place"


def engine_of(generation: Generation, part: str) -> tuple[int | None, int]:
    """Return the identity of a part's engine: its snapshot, and the number of adapters that it has room for."""
    return generation.snapshots.get(part), len(generation.adapters_of(part))


def with_ground(held: Collection[Piece], manifests: Mapping[Piece, SnapshotManifest]) -> frozenset[Piece]:
    """Return the pieces and all ancestors of their deltas.

    A host loads the full weights below, whether it serves them or not.
    """
    found: set[Piece] = set()
    open_ends = set(held)
    while open_ends:
        piece = open_ends.pop()
        found.add(piece)
        manifest = manifests[piece]
        below = (piece[0], manifest.parent or "")
        if manifest.is_delta and below in manifests and below not in found:
            open_ends.add(below)
    return frozenset(found)
