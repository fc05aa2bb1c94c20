"""The units that shadows take: announced, and beyond those that plans reserve for their models."""

from collections.abc import Iterable

from activities.planning.problem import units_in_use
from activities.state.drained_fleet import DrainedFleet, without_drained
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.lifecycle.shadow import ModelShadow
from ipnext.store.changes.shadows import StoredShadow
from ipnext.store.planning.placements import Units
from ipnext.store.repository import Repository

TOLERANCE = 1e-9
"""Units, and $/h: sums of fractions."""


def sum_units(sets: Iterable[Deployment]) -> Units:
    """Return the units of replica sets, by region and hardware."""
    units: Units = {}
    for found in sets:
        cell = (found.key.region, found.key.hardware)
        units[cell] = units.get(cell, 0.0) + found.replicas * found.units
    return units


def announced_units(repository: Repository, *, but: str) -> Units:
    """Return the units of other models' shadows that are planned, and whose replica sets are not stored yet."""
    planned = [found.shadow for found in repository.shadows_but(but) if found.seen.state == "planned"]
    stored = {found.key for shadow in planned for found in repository.deployments(shadow.model) if found.shadow}
    return sum_units(found for shadow in planned for found in shadow.sets if found.key not in stored)


def find_needed(repository: Repository, kept: StoredShadow) -> str | None:
    """Return the units of a shadow that other models need by now, in words; None if it may keep them.

    No plan knows a shadow, so one that is made later gives its free units to other models, whose waves then wait. Of
    several shadows the newest gives its units back first, and none does whose units the plan reserves for its model.
    What it has in regions out of service goes with these: a shadow continues in the others.
    """
    drained = DrainedFleet.of(repository.drains())
    beyond = {
        cell: units for cell, units in _beyond_plan(repository, kept.shadow).items() if cell[0] not in drained.regions
    }
    if not beyond:
        return None
    fleet = without_drained(repository.fleet().spec, drained)
    supply = {(item.region, item.hardware): item.units for item in fleet.supply}
    used = units_in_use(repository, but="")
    lacking = {cell: used.get(cell, 0.0) - supply.get(cell, 0.0) for cell in sorted(beyond)}
    if not any(units > TOLERANCE for units in lacking.values()):
        return None
    for other in repository.shadows_but(kept.shadow.model):
        if (other.since, other.shadow.model) > (kept.since, kept.shadow.model):
            for cell, units in _beyond_plan(repository, other.shadow).items():
                lacking[cell] = lacking.get(cell, 0.0) - units
    needed = [f"{lacking[cell]:.9g} units of {'/'.join(cell)}" for cell in beyond if lacking[cell] > TOLERANCE]
    return ", ".join(needed) or None


def _beyond_plan(repository: Repository, shadow: ModelShadow) -> Units:
    """Return the units that its model would no longer use if the shadow ended."""
    placed = repository.placement(shadow.model)
    reserved = {(row.part, row.region, row.hardware): row.count for row in placed.replicas} if placed else {}
    stored = {found.key: found for found in repository.deployments(shadow.model) if found.shadow}
    units: Units = {}
    for found in shadow.sets:
        key = found.key
        running = stored[key].replicas if key in stored else 0
        replicas = min(found.replicas, running - reserved.get((key.part, key.region, key.hardware), 0))
        if replicas > 0:
            units[key.region, key.hardware] = units.get((key.region, key.hardware), 0.0) + replicas * found.units
    return units
