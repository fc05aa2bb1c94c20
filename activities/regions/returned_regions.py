"""Models of regions that are back after a loss.

What drifted meanwhile was not repaired, and no route table may name it.
"""

from collections.abc import Callable, Iterable

from activities.planning.drift import drift_of
from activities.runtime.single_calls import OF_ONE
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.value import Name
from ipnext.store.repository import Repository


class ReturnedRegions:
    """Finds such models after each return, in every call until they drift no more.

    A worker that begins looks at the last return of each region.
    The activity that restores a region records the repairs, too; its worker may end before it has.
    """

    def __init__(self) -> None:
        self._checked = set[str]()
        """Drains that have ended."""
        self._left = frozenset[str]()
        """Models that drifted at the last call: their repair may not have been recorded."""

    def find_drifted(
        self, repository: Repository, regions: Iterable[Name], beat: Callable[[str], None]
    ) -> frozenset[str]:
        """Return the models with replicas in regions that have come back, and that drifted."""
        found = set(self._left)
        for region in regions:
            drain = repository.drain(region)
            if drain is None or not drain.disaster or drain.state is not DrainState.RETURNED:
                continue
            if drain.id not in self._checked:
                beat(f"models of {region}, which is back")
                found |= _suspects(repository, region)
                self._checked.add(drain.id)
        self._left = frozenset(model for model in found if _may_drift(repository, model))
        return self._left


def _may_drift(repository: Repository, model: str) -> bool:
    """Check whether a model drifted, or can't be read: its repair reports the error."""
    try:
        return bool(drift_of(repository, model))
    except Unavailable:
        raise
    except OF_ONE:
        return True


def _suspects(repository: Repository, region: Name) -> frozenset[str]:
    """Return the models whose replicas in the region hold more than the generation that serves, or another one."""
    try:
        deployments = [found for found in repository.deployments_in(region) if found.replicas]
    except Unavailable:
        raise
    except OF_ONE:  # one can't be read: each model is looked at alone
        return frozenset(key.model for key in repository.deployment_documents(region))
    serving = repository.settled_generations({found.key.model for found in deployments})
    return frozenset(d.key.model for d in deployments if {*d.generations, *d.own} != {serving.get(d.key.model)})
