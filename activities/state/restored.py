"""The state that a revert restores: replica sets, and generations as routers had them, when the transition was planned.

Kept with the transition, because the manifest in force is that of the change which is reverted.
"""

from dataclasses import replace

from activities.state.desired import DesiredFacts, index_tables
from activities.state.shadow_sets import without_shadow
from ipnext.store.records import StateBefore
from ipnext.store.repository import Repository


def restoring(facts: DesiredFacts, before: StateBefore) -> DesiredFacts:
    """Return the facts for a revert to the state before the transition."""
    return replace(
        facts,
        sets_before={found.key: found for found in before.deployments},
        served_before={found.generation: found for found in before.served},
    )


def state_before(repository: Repository, model: str) -> StateBefore:
    """Return what a revert restores: the replica sets, and the generations as the route tables have them now."""
    served = {
        found.generation: found
        for table in sorted(index_tables(repository.routes(model)).values(), key=lambda table: table.region)
        for found in table.served
    }
    return StateBefore(deployments=without_shadow(repository.deployments(model)), served=tuple(served.values()))
