"""Users whom a move would leave without an answer although nothing took the replicas that answer them.

A plan of the fleet may leave users unserved: supply is gone, a region is drained, a model of higher priority takes the
room. If none of that is so, the plan rests on a mistake, and the model stays as it runs.
"""

from collections import defaultdict
from collections.abc import Sequence

from activities.state.drained_fleet import DrainedFleet
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.transition import FleetState
from ipnext.store.repository import Repository

TOLERANCE = 1e-9
"""Units: the database adds fractions in an order of its choice."""


def explain_drop(repository: Repository, manifest: ModelManifest, origin: FleetState, to: FleetState) -> str | None:
    """Return the reason why a move may not lead to `to`.

    None if it drops no users, or supply or a drain took their replicas.
    """
    model = manifest.name
    asking = {item.region for item in manifest.spec.demand if item.amount > 0}
    answered = {share.origin for share in to.traffic if share.fraction > 0}
    dropped = {share.origin for share in origin.traffic if share.fraction > 0 and share.origin in asking} - answered
    if not dropped:
        return None
    homes = {share.to for share in origin.traffic if share.fraction > 0 and share.origin in dropped}
    deployments = repository.deployments(model)
    touched = homes | dropped | {found.key.region for found in deployments}
    if touched & DrainedFleet.of(repository.drains()).regions or _is_taken(repository, deployments, homes):
        return None
    users, regions = ", ".join(sorted(dropped)), ", ".join(sorted(homes))
    return (
        f"users of {users} would have no answer, though {regions} still has the supply for the replicas that "
        "answer them; "
        f"nothing moves. `ipnext explain {model}` and the plan's unserved demand name the rule to relax"
    )


def _is_taken(repository: Repository, deployments: Sequence[Deployment], regions: set[str]) -> bool:
    """Check whether the supply of these regions no longer covers these replicas of a model.

    Supply that the other models may use is not counted.
    """
    used: dict[tuple[str, str], float] = defaultdict(float)
    for found in deployments:
        if found.key.region in regions:
            used[found.key.region, found.key.hardware] += found.replicas * found.units
    others = repository.units_entitled(but=deployments[0].key.model) if deployments else {}
    supply = {(item.region, item.hardware): item.units for item in repository.fleet().spec.supply}
    return any(units + others.get(cell, 0.0) > supply.get(cell, 0.0) + TOLERANCE for cell, units in used.items())
