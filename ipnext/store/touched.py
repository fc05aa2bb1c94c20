"""What a change of a model may touch: by this a freeze of some owners or regions knows whether it is meant."""

from typing import NamedTuple

from ipnext.store.repository import Repository


class Touched(NamedTuple):
    """A model's owner, and every region that it has demand in, is placed in or runs in."""

    owner: str
    regions: frozenset[str]


def touched_by(unit: Repository, model: str) -> Touched:
    """What changes of a model may touch. NotFound."""
    manifest = unit.model(model).manifest
    regions = {item.region for item in manifest.spec.demand}
    regions |= {deployment.key.region for deployment in unit.deployments(model) if deployment.replicas}
    placed = unit.placement(model)
    if placed is not None:
        regions |= {replica.region for replica in placed.replicas} | {share.to for share in placed.traffic}
    return Touched(owner=manifest.metadata.owner, regions=frozenset(regions))
