"""Metrics of planning: unserved demand, use of supply, quality of the newest plan, outcomes of replans."""

from collections.abc import Iterator

from prometheus_client.metrics_core import Metric

from ipnext.api.metrics.families import counter, gauge
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.store.records import PlanEntry
from ipnext.store.repository import Repository

MOST_SERIES = 1000
"""Models with unserved demand that have separate series, those with the most."""

SEARCHED = ("adopted", "kept")
"""Outcomes of a replan that found a plan; dry runs may have other limits."""


def plan_metrics(unit: Repository, fleet: FleetSpec | None, *, whole: bool) -> Iterator[Metric]:
    """Yield the plan in force: cost, units, unserved demand. `whole`: of all owners, not only of the visible ones."""
    in_force = unit.plan_in_force()
    if in_force is None:
        return
    unmet = [([u.model, u.region], u.qps) for u in unit.largest_unmet(limit=MOST_SERIES)]
    yield gauge(
        "unmet_demand_qps",
        "Demand that the plan in force leaves unserved, requests/s or tokens/s as the model's manifest.",
        ["model", "region"],
        unmet,
    )
    owners = unit.owner_figures()
    yield gauge(
        "owner_unmet_demand_qps",
        "Demand of an owner's models that the plan in force leaves unserved.",
        ["owner"],
        [([owner], unserved) for owner, (_, unserved) in owners.items()],
    )
    yield gauge(
        "priority_unmet_demand_qps",
        "Demand of the models of a priority that the plan in force leaves unserved.",
        ["priority"],
        [([f"{priority:g}"], qps) for priority, qps in unit.unmet_by_priority().items()],
    )
    cost = in_force.cost_per_hour if whole else sum(figures[0] for figures in owners.values())
    yield gauge("plan_cost_dollars_per_hour", "Cost of the plan in force.", [], [([], cost)])
    yield gauge(
        "owner_cost_dollars_per_hour",
        "Cost of an owner's models by the plan in force.",
        ["owner"],
        [([owner], cost) for owner, (cost, _) in owners.items()],
    )
    if fleet is not None:
        yield from _limits(unit, fleet)


def replan_metrics(unit: Repository) -> Iterator[Metric]:
    """Yield replans by outcome, and the quality of the newest plan of the whole fleet."""
    ends = [state for state in ReplanState if state.final]
    counts = unit.replan_counts()
    triggers = sorted({trigger for trigger, _ in counts})
    by_end = [([trigger, end.value], counts.get((trigger, end.value), 0)) for trigger in triggers for end in ends]
    yield counter("replans_total", "Replans by who asked and how they ended.", ["trigger", "outcome"], by_end)
    moves = unit.replica_moves()
    yield counter("replan_moves_total", "Replicas that adopted replans started.", [], [([], moves)])
    yield gauge("replans_waiting", "Replans that wait for a run.", [], [([], unit.waiting_replans())])
    newest = unit.newest_fleet_plan(outcomes=SEARCHED)
    if newest is not None:
        yield from _quality(newest)


def _limits(unit: Repository, fleet: FleetSpec) -> Iterator[Metric]:
    """Yield the plan's use of each kind of supply, and the owners' budgets."""
    placed = unit.units_placed()
    cells = sorted({(item.region, item.hardware) for item in fleet.supply} | placed.keys())
    yield gauge(
        "supply_planned_units",
        "Units that the plan in force takes.",
        ["region", "hardware"],
        [([region, hardware], placed.get((region, hardware), 0.0)) for region, hardware in cells],
    )
    budgets = [([o.owner], o.budget_per_hour) for o in fleet.owners if o.budget_per_hour is not None]
    yield gauge("owner_budget_dollars_per_hour", "What an owner may spend; no limit, no series.", ["owner"], budgets)


def _quality(newest: PlanEntry) -> Iterator[Metric]:
    """Yield objective, bound and gap of the newest plan of the whole fleet, and the resources of its search."""
    yield gauge("plan_gap_ratio", "Relative gap of the newest plan of the whole fleet.", [], [([], newest.gap)])
    yield gauge(
        "plan_objective_dollars_per_hour",
        "Objective of the newest plan of the whole fleet.",
        [],
        [([], newest.objective)],
    )
    yield gauge(
        "plan_bound_dollars_per_hour",
        "Lower bound on the objective of the newest plan of the whole fleet.",
        [],
        [([], newest.bound)],
    )
    yield gauge(
        "plan_timestamp_seconds",
        "When the newest plan of the whole fleet was made.",
        [],
        [([], newest.created_at.timestamp())],
    )
    if newest.use is None:
        return
    yield gauge("solve_seconds", "Search of the newest plan, by the clock.", [], [([], newest.use.wall_seconds)])
    yield gauge("solve_cpu_seconds", "Search of the newest plan, CPU time.", [], [([], newest.use.cpu_seconds)])
    if newest.use.peak_memory_bytes is not None:
        memory = newest.use.peak_memory_bytes
        yield gauge("solve_memory_bytes", "Most memory of the newest search's process.", [], [([], memory)])
