"""How new snapshots come to a model's processes: into those that run, or into new ones. Decided once for a transition."""

from typing import Literal

from ipnext.model.footprint import fits
from ipnext.model.manifest import ModelManifest
from ipnext.model.rollout import FleetState
from ipnext.store.repository import Repository

Refresh = Literal["in_place", "replace"]


def refresh_of(repository: Repository, manifest: ModelManifest, ends: tuple[FleetState, FleetState]) -> Refresh:
    """What the rollout says; `auto`: in place where every part's memory has room for all that it would hold at once.

    That is the snapshots of both ends and those that stay warm. A part without `memory_bytes` has room.
    """
    chosen = manifest.spec.rollout.refresh
    if chosen != "auto":
        return chosen
    model = manifest.name
    loaded = {generation for deployment in repository.deployments(model) for generation in deployment.generations}
    at_once = loaded | {row.generation for end in ends for row in end.replicas}
    generations = [g for g in repository.generations(model) if g.number in at_once]
    snapshots = {(s.part, s.number): s.manifest for s in repository.snapshots(model)}
    for part in manifest.spec.parts:
        sets = {frozenset(generation.held_by(part.name).items()) for generation in generations}
        held = {piece for found in sets for piece in found}
        if len(sets - {frozenset()}) > 1 and not fits(part.memory_bytes, [snapshots[piece] for piece in held]):
            return "replace"
    return "in_place"
