"""Checks of a fleet that is applied against the agents of its regions, and against the state of regions it drops."""

from collections.abc import Collection

from ipnext.errors import Conflict, InvalidInput
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.store.repository import Repository

NAMED = 5
"""Models that an error names at most."""

_DRAINS = frozenset({DrainState.RECORDED, DrainState.CHECKING, DrainState.DRAINING})


def check_agents(fleet: FleetSpec, before: FleetSpec | None, served: Collection[str]) -> None:
    """Refuse a new region without an agent: models would be moved there and wait for it. Raises InvalidInput.

    `served`: the regions of `IPNEXT_AGENTS`; nothing is checked if there are none. Regions of the fleet `before` may
    stay, so that a region whose agent was removed does not block the fleet.
    """
    known = {*served, *(before.regions if before else ())}
    for i, region in enumerate(fleet.regions):
        if served and region not in known:
            field, allowed = f"spec.regions.{i}", tuple(sorted(known))
            msg = (
                f"{field}: region {region!r} has no agent; add it to IPNEXT_AGENTS of the API and of the workers "
                f"first; allowed: {', '.join(allowed)}"
            )
            raise InvalidInput(msg, field=field, value=region, allowed=allowed)


def check_dropped_regions(unit: Repository, fleet: FleetSpec, before: FleetSpec | None) -> None:
    """Refuse a fleet without a region that models still use, or whose drain is under way.

    Raises Conflict, which names the first models.
    """
    for region in sorted(set(before.regions if before else ()) - set(fleet.regions)):
        advice = f"drain it first (`ipnext drain {region}`, with --disaster if its agent does not answer), then apply"
        if models := sorted(unit.find_models_in(region)):
            more = f" and {len(models) - NAMED} more" if len(models) > NAMED else ""
            msg = f"spec.regions: region {region!r} is still used by {', '.join(models[:NAMED])}{more}; {advice}"
            raise Conflict(msg)
        drain = unit.drain(region)
        if drain is not None and drain.state in _DRAINS:
            msg = (
                f"spec.regions: the drain of region {region!r} is {drain.state.value}; wait until it is drained "
                "(`ipnext get drains`), then apply"
            )
            raise Conflict(msg)
