"""The capacity of a shadow: which regions mirror, the replicas that this takes, and whether they may be had.

A shadow has its share of the demand that comes to a region, on the hardware that the plan in force gives its
generation there, in the supply that the plan reserves for the model, or that is free, and within its budgets.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from activities.planning.problem import units_in_use
from activities.stages.shadow_budgets import find_over_budget, price
from activities.stages.shadow_units import TOLERANCE, announced_units, sum_units
from activities.state.desired import DesiredFacts, read_facts
from activities.state.drained_fleet import DrainedFleet, without_drained
from activities.state.replica_sets import wanted_deployments
from activities.state.routes.served_generations import list_hosted, served_generation
from activities.state.wave_state import ModelWaveState
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable, Shadow
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.shadow import ModelShadow, ShadowAsked, ShadowSeen, ShadowSettings
from ipnext.model.planning.plan import ReplicaCount
from ipnext.store.records import ModelPlacement
from ipnext.store.repository import Repository

WAITS_SECONDS = 5.0
"""Between two looks at what a shadow waits for."""


@dataclass(frozen=True)
class ShadowPlan:
    """A shadow with its replicas, or the answer of the stage if there is none."""

    seen: ShadowSeen
    shadow: ModelShadow | None = None


def plan_shadow(repository: Repository, asked: ShadowAsked, settings: ShadowSettings, *, seed: int) -> ShadowPlan:
    """Plan the shadow of a change by the plan in force. Raises NotFound."""
    facts = replace(read_facts(repository, asked.model, asked.generation), shadow=None)
    if facts.serving in {None, asked.generation}:
        why = "nothing else serves" if facts.serving is None else f"generation {asked.generation} serves already"
        return _skip(f"{why}: there is nothing to compare with")
    placed = repository.placement(asked.model)
    answering = _answering(facts)
    if not answering or placed is None:
        return _wait("no region answers clients now, so there is nothing to compare with")
    served = served_generation(facts, asked.generation)
    if named := _engines(served, facts.tables.values()):
        return _refuse(f"parts {named} generate; generated answers and streams are not compared")
    hosted = list_hosted(served.graph, facts.generations[asked.generation])
    usable = answering.keys() - DrainedFleet.of(repository.drains()).regions
    homes = {region: found for region in sorted(usable) if (found := _hardware(placed, region, hosted))}
    if not homes:
        regions = ", ".join(sorted(answering))
        return _refuse(f"the plan places generation {asked.generation} in none of the regions that answer: {regions}")
    sets = tuple(
        found
        for region, hardware in homes.items()
        for found in _sets(facts, region, hardware, settings.share * answering[region])
    )
    shadow = Shadow(
        served=served,
        share=settings.share,
        max_in_flight=settings.max_in_flight,
        seed=seed,
        deadline_seconds=settings.request_seconds,
    )
    kept = ModelShadow(
        model=asked.model,
        change_id=asked.change_id,
        shadow=shadow,
        regions=tuple(homes),
        sets=sets,
        settings=settings,
    )
    return _admit(repository, facts, placed, kept)


def _admit(repository: Repository, facts: DesiredFacts, placed: ModelPlacement, shadow: ModelShadow) -> ShadowPlan:
    """Return the shadow with what it takes, if budgets and supply allow it."""
    fleet = without_drained(repository.fleet().spec, DrainedFleet.of(repository.drains()))
    takes = _name_units(shadow.sets, fleet)
    if (over := find_over_budget(repository, facts, shadow.sets)) is not None:
        return _refuse(f"it takes {takes}, and {over}")
    if (short := _shortage(repository, facts, placed, shadow.sets, fleet)) is not None:
        return _wait(f"it takes {takes}, and {short}")
    what = f"{shadow.settings.share:.0%} of the requests in {', '.join(shadow.regions)}"
    message = f"generation {shadow.generation} answers {what} as a shadow: takes {takes} until it is judged"
    return ShadowPlan(ShadowSeen(state="planned", message=message), shadow.model_copy(update={"takes": takes}))


def _skip(message: str) -> ShadowPlan:
    return ShadowPlan(ShadowSeen(state="skipped", message=message, passes=True))


def _refuse(message: str) -> ShadowPlan:
    return ShadowPlan(ShadowSeen(state="refused", message=message))


def _wait(message: str) -> ShadowPlan:
    return ShadowPlan(ShadowSeen(state="waiting", message=message, again_seconds=WAITS_SECONDS))


def _answering(facts: DesiredFacts) -> Mapping[str, float]:
    """Map each region that answers clients to the demand that comes to it, in the model's unit."""
    demand = {item.region: item.amount for item in facts.manifest.spec.demand}
    found: dict[str, float] = defaultdict(float)
    for origin, table in facts.tables.items():
        for share in table.shares:
            if share.fraction > 0 and share.to not in facts.lost:
                found[share.to] += share.fraction * demand.get(origin, 0.0)
    return found


def _engines(served: ServedGeneration, tables: Iterable[RouteTable]) -> str:
    found = {part for one in (served, *(one for table in tables for one in table.served)) for part in one.engines}
    return ", ".join(sorted(found))


def _hardware(placed: ModelPlacement, region: str, parts: Iterable[str]) -> Mapping[str, str]:
    """Map each part to the hardware on which the plan has most of its replicas there; empty if it lacks a part."""
    found = {part: _most(row for row in placed.replicas if (row.part, row.region) == (part, region)) for part in parts}
    return {part: row.hardware for part, row in found.items() if row is not None} if all(found.values()) else {}


def _most(rows: Iterable[ReplicaCount]) -> ReplicaCount | None:
    return max((row for row in rows if row.count), key=lambda row: (row.count, row.hardware), default=None)


def _sets(facts: DesiredFacts, region: str, hardware: Mapping[str, str], qps: float) -> Iterable[Deployment]:
    """Yield the replicas of a region that carry `qps`, at least one of each part."""
    counts = {((part, region, kind), facts.target): 1 for part, kind in hardware.items()}
    for found in wanted_deployments(facts, ModelWaveState(counts, apart=True)):
        replicas = max(1, math.ceil(qps / found.qps - TOLERANCE))
        alone = {"own": {}, "swap": False, "replicas": replicas, "shadow": {facts.target: replicas}}
        yield found.model_copy(update=alone)


def _name_units(sets: Iterable[Deployment], fleet: FleetSpec) -> str:
    """Return the units and the cost of the replicas, in words."""
    units = sum_units(sets)
    named = ", ".join(f"{count:.9g} units of {region}/{kind}" for (region, kind), count in sorted(units.items()))
    return f"{named} ({price(units, fleet):.4g} $/h)"


def _shortage(
    repository: Repository,
    facts: DesiredFacts,
    placed: ModelPlacement,
    sets: Iterable[Deployment],
    fleet: FleetSpec,
) -> str | None:
    """Return the units that the supply lacks for the replicas, in words; None if it has them.

    The model may use what the plan reserves for it, and what no other model needs.
    """
    slots: dict[tuple[str, str, str], int] = defaultdict(int)
    for found in (*facts.deployments.values(), *sets):
        slots[found.key.part, found.key.region, found.key.hardware] += found.replicas
    for row in placed.replicas:
        slot = (row.part, row.region, row.hardware)
        slots[slot] = max(slots[slot], row.count)
    units = {(found.key.part, found.key.hardware): found.units for found in (*sets, *facts.deployments.values())}
    units |= facts.placed_units
    used = defaultdict(float, units_in_use(repository, but=facts.model))
    for cell, announced in announced_units(repository, but=facts.model).items():
        used[cell] += announced
    for (part, region, hardware), count in slots.items():
        used[region, hardware] += count * units.get((part, hardware), 0.0)
    supply = {(item.region, item.hardware): item.units for item in fleet.supply}
    for cell in sorted(sum_units(sets)):
        if (lacking := used[cell] - supply.get(cell, 0.0)) > TOLERANCE:
            return f"{lacking:.9g} units of {'/'.join(cell)} are lacking"
    return None
