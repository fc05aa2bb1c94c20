"""Owner and regions that a change of a model may touch, with which a freeze decides whether it applies."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from ipnext.store.repository import Repository


class TouchedRegions(NamedTuple):
    """A model's owner, and every region of its demand, its placement or its replicas."""

    owner: str
    regions: frozenset[str]


def find_touched(unit: Repository, model: str) -> TouchedRegions:
    """Return the owner and regions that changes of a model may touch. Raises NotFound."""
    manifest = unit.model(model).manifest
    regions = {item.region for item in manifest.spec.demand}
    regions |= {deployment.key.region for deployment in unit.deployments(model) if deployment.replicas}
    placed = unit.placement(model)
    if placed is not None:
        regions |= {replica.region for replica in placed.replicas} | {share.to for share in placed.traffic}
    return TouchedRegions(owner=manifest.metadata.owner, regions=frozenset(regions))


def find_touched_regions(unit: Repository, models: Collection[str]) -> Mapping[str, frozenset[str]]:
    """Map each of these models to the regions that changes of it may touch, as `find_touched`; few queries for all."""
    found = {name: set(demand) for name, demand in unit.demands(models).items()}
    for name, regions in (*unit.placed_regions(models).items(), *unit.replica_regions(models).items()):
        found[name] |= regions
    return {name: frozenset(regions) for name, regions in found.items()}
