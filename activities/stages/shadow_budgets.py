"""What shadows cost: their models' and owners' budgets hold with them, as long as they run.

A shadow is counted beside the whole plan in force, also when it uses units that the plan reserves for its model.
"""

from collections.abc import Iterable

from activities.stages.shadow_units import TOLERANCE, sum_units
from activities.state.desired import DesiredFacts
from activities.state.drained_fleet import DrainedFleet
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.fleet import FleetSpec
from ipnext.store.changes.shadows import StoredShadow
from ipnext.store.planning.placements import Units
from ipnext.store.repository import Repository


def price(units: Units, fleet: FleetSpec) -> float:
    """Return the cost of units in $/h."""
    prices = {(item.region, item.hardware): item.unit_cost for item in fleet.supply}
    return sum(count * prices.get(cell, 0.0) for cell, count in units.items())


def find_over_budget(repository: Repository, facts: DesiredFacts, sets: Iterable[Deployment]) -> str | None:
    """Return the budget that these replica sets of a shadow would exceed, in words; None if all have room."""
    return _find_over(repository, facts, sets, _others(repository, facts))


def find_spent(repository: Repository, facts: DesiredFacts, kept: StoredShadow) -> str | None:
    """Return the budget that has no room for a shadow any more, in words; None if all have.

    A later plan, or a manifest with another budget, may leave less than when the shadow was admitted. Of several
    shadows of an owner the newest gives way first.
    """
    order = (kept.since, kept.shadow.model)
    older = [other for other in _others(repository, facts) if (other.since, other.shadow.model) < order]
    lost = DrainedFleet.of(repository.drains()).regions
    return _find_over(repository, facts, kept.shadow.outside(lost).sets, older)


def _others(repository: Repository, facts: DesiredFacts) -> tuple[StoredShadow, ...]:
    """Return the shadows of the owner's other models."""
    owner = facts.manifest.metadata.owner or ""
    return repository.shadows_of_owner(owner, but=facts.model) if owner else ()


def _find_over(
    repository: Repository, facts: DesiredFacts, sets: Iterable[Deployment], others: Iterable[StoredShadow]
) -> str | None:
    owner, fleet = facts.manifest.metadata.owner or "", repository.fleet().spec
    budgets = {item.owner: item.budget_per_hour for item in fleet.owners}
    if budgets.get(owner) is None and facts.manifest.spec.budget_per_hour is None:
        return None
    placed = repository.placement(facts.model)
    own = placed.cost_per_hour if placed is not None else 0.0
    plans = price(repository.units_of_owner(owner, but=facts.model), fleet) if owner else 0.0
    lost = DrainedFleet.of(repository.drains()).regions
    mirrored = price(sum_units(found for other in others for found in other.shadow.outside(lost).sets), fleet)
    cost = price(sum_units(sets), fleet)
    limits = (
        (f"the budget of owner {owner!r}", budgets.get(owner), plans + mirrored + own),
        ("the model's budget", facts.manifest.spec.budget_per_hour, own),
    )
    for name, budget, used in limits:
        if budget is not None and used + cost > budget + TOLERANCE:
            return f"{name} is {budget:.9g} $/h, of which {used:.4g} are spent"
    return None
