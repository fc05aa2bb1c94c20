"""The fleet-scale solver: valid, close to the optimum, repeatable, and within every shared limit."""

import dataclasses

import numpy as np
import pytest

from ipnext.model.planning.plan import CurrentState, Limits, Objective, Plan, Problem, RegionDemand
from planner.bound.bound import lower_bounds, total_bound
from planner.core.arrays import FleetArrays, Prices
from planner.fleet import solver as scale
from planner.fleet.configuration import THOROUGH
from planner.fleet.pricing import Columns, Placer, best_columns, join_columns
from planner.fleet.solver import prices_of, solve_fleet
from planner.generate.generate import generate
from planner.solve import place, solve
from planner.verify.plan_checker import check


def _in_force(problem: Problem, plan: Plan) -> Problem:
    """The fleet as the plan left it, where a replica started costs something."""
    current = CurrentState(replicas=plan.replicas, traffic=plan.traffic)
    return problem.model_copy(update={"current": current, "objective": Objective(move_cost=0.05, unmet_cost=10.0)})


def _free(arrays: FleetArrays) -> Prices:
    return Prices(np.zeros_like(arrays.supply), np.zeros_like(arrays.owner_budget), 0.0)


def _noisy(problem: Problem, share: float, seed: int = 0) -> Problem:
    draw = np.random.default_rng(seed)
    models = tuple(
        model.model_copy(
            update={
                "demand": tuple(
                    RegionDemand(region=d.region, qps=round(d.qps * (1 + share * draw.uniform(-1, 1)), 3))
                    for d in model.demand
                )
            }
        )
        for model in problem.models
    )
    return problem.model_copy(update={"models": models})


def _started(problem: Problem, plan: Plan) -> int:
    running = {(r.model, r.part, r.region, r.hardware): r.count for r in problem.current.replicas}
    return sum(max(0, r.count - running.get((r.model, r.part, r.region, r.hardware), 0)) for r in plan.replicas)


@pytest.fixture(scope="module")
def fleet() -> Problem:
    """Its time is never what ends the search: a machine that is busy would find another plan."""
    problem = generate(models=60, regions=6, hardware=4, supply_use=0.9, seed=3)
    return problem.model_copy(update={"limits": problem.limits.model_copy(update={"time_seconds": 600})})


@pytest.fixture(scope="module")
def planned(fleet: Problem) -> Plan:
    return solve(fleet, method="fleet")


@pytest.fixture(scope="module")
def running(fleet: Problem, planned: Plan) -> Problem:
    return _in_force(fleet, planned)


@pytest.fixture(scope="module")
def few_running() -> Problem:
    """Twenty models: a search that may start few replicas takes eight times as long for sixty."""
    problem = generate(models=20, regions=4, hardware=3, supply_use=0.9, seed=3)
    problem = problem.model_copy(update={"limits": problem.limits.model_copy(update={"time_seconds": 600})})
    return _in_force(problem, solve(problem, method="fleet"))


@pytest.fixture(scope="module")
def many_running() -> Problem:
    """Models enough for an adapted plan to be compared with one from scratch."""
    problem = generate(models=120, regions=6, hardware=4, supply_use=0.9, seed=5)
    return _in_force(problem, solve(problem, method="fleet"))


def test_a_fleet_that_fits_is_served_whole_by_a_valid_plan_close_to_its_bound(fleet: Problem, planned: Plan) -> None:
    assert check(fleet, planned) == ()
    assert planned.unmet == ()
    assert planned.gap < 0.06


def test_the_bound_says_that_it_covers_every_plan(planned: Plan) -> None:
    assert planned.bound_covers.startswith("all plans of the stated problem")


@pytest.mark.parametrize("seed", range(8))
def test_the_bound_is_never_above_the_optimum_nor_the_plan_below(seed: int) -> None:
    problem = generate(models=2, regions=3, hardware=2, supply_use=0.8, seed=seed)
    problem = problem.model_copy(update={"limits": Limits(gap=1e-4, time_seconds=20)})
    optimum, plan = solve(problem, method="reference"), solve(problem, method="fleet")
    assert plan.bound <= optimum.objective * (1 + 1e-6)
    assert plan.objective >= optimum.bound * (1 - 1e-6)
    assert check(problem, plan) == ()


@pytest.mark.parametrize("seed", range(8))
def test_small_problems_are_solved_to_the_optimum_by_default(seed: int) -> None:
    problem = generate(models=2, regions=3, hardware=2, supply_use=(0.7, 1.2)[seed % 2], seed=seed)
    problem = problem.model_copy(update={"limits": Limits(gap=1e-4, time_seconds=20)})
    assert solve(problem).objective <= solve(problem, method="reference").objective * (1 + 1e-4)


def test_the_same_problem_gives_the_same_plan_byte_for_byte(fleet: Problem, planned: Plan) -> None:
    assert solve(fleet, method="fleet").model_dump_json() == planned.model_dump_json()


def test_a_fleet_too_small_leaves_demand_unmet_and_says_why() -> None:
    problem = generate(models=40, regions=5, hardware=3, supply_use=1.3, seed=1)
    plan = solve(problem, method="fleet")
    assert check(problem, plan) == ()
    assert plan.unmet
    assert all(item.rules for item in plan.unmet)


def test_of_models_alike_the_least_important_go_unserved() -> None:
    drawn = generate(models=1, regions=3, hardware=2, seed=4)
    alike = tuple(
        drawn.models[0].model_copy(update={"model": f"m{n}", "priority": float(n), "budget_per_hour": None})
        for n in range(1, 9)
    )
    supply = tuple(item.model_copy(update={"units": 4 * item.units}) for item in drawn.supply)
    plan = solve(drawn.model_copy(update={"models": alike, "supply": supply, "owners": ()}), method="fleet")
    lost = {name: sum(item.qps for item in plan.unmet if item.model == name) for name in (m.model for m in alike)}
    assert lost["m1"] > 0
    assert lost["m8"] == 0
    assert lost["m1"] >= lost["m8"]


def test_within_the_gap_asked_for_nothing_moves(running: Problem) -> None:
    problem = running.model_copy(update={"limits": Limits(gap=0.05)})
    plan = solve(problem, method="fleet")
    assert _started(problem, plan) == 0
    assert check(problem, plan) == ()
    assert plan.status == "optimal"


@pytest.mark.parametrize("most", [0, 5, None])
def test_a_replan_keeps_to_the_moves_it_may_make(few_running: Problem, most: int | None) -> None:
    problem = _noisy(few_running, 0.05).model_copy(update={"limits": Limits(max_moves=most)})
    plan = solve(problem, method="fleet")
    assert check(problem, plan) == ()
    assert most is None or _started(problem, plan) <= most


@pytest.mark.parametrize("most", [None, 0.03])
def test_an_adapted_plan_is_about_as_good_as_one_made_anew(many_running: Problem, most: float | None) -> None:
    cap = None if most is None else int(most * sum(item.count for item in many_running.current.replicas))
    running = many_running.model_copy(update={"limits": Limits(gap=0.0, max_moves=cap)})
    problem = _noisy(running, 0.05, seed=6)
    arrays, never = FleetArrays.of(problem), float("inf")
    adapted, anew = scale._adapt(arrays, never, 0.0), scale._solve_from_scratch(arrays, never)
    assert adapted.objective <= anew.objective * 1.01
    assert adapted.bound <= anew.objective
    plan = solve(problem, method="fleet")
    assert check(problem, plan) == ()
    assert cap is None or _started(problem, plan) <= cap


def test_budgets_of_owners_hold_where_they_bind(fleet: Problem, planned: Plan) -> None:
    spent: dict[str, float] = {}
    arrays = FleetArrays.of(fleet)
    for m, single in enumerate(solve_fleet(fleet, arrays).configurations):
        owner = fleet.models[m].owner
        spent[owner] = spent.get(owner, 0.0) + single.hardware
    owner = max(spent, key=lambda name: spent[name])
    owners = tuple(
        o.model_copy(update={"budget_per_hour": 0.5 * spent[owner]}) if o.owner == owner else o for o in fleet.owners
    )
    tight = fleet.model_copy(update={"owners": owners})
    plan = solve(tight, method="fleet")
    assert check(tight, plan) == ()
    assert any(f"budget owner {owner}" in item.rules for item in plan.unmet)


def test_scarce_supply_has_a_price_and_plenty_has_none(fleet: Problem) -> None:
    plenty = fleet.model_copy(
        update={"supply": tuple(s.model_copy(update={"units": 100 * s.units}) for s in fleet.supply)}
    )
    assert prices_of(fleet).supply.max() > 0
    assert prices_of(plenty).supply.max() == pytest.approx(0.0, abs=1e-6)


def test_more_effort_never_finds_a_dearer_configuration(fleet: Problem) -> None:
    arrays = FleetArrays.of(fleet)
    every = np.arange(arrays.models)
    quick = best_columns(arrays, _free(arrays), every, effort=1)
    thorough = best_columns(arrays, _free(arrays), every, effort=20 * THOROUGH)
    assert thorough.cost.sum() <= quick.cost.sum()


def test_a_configuration_costs_at_least_its_models_lower_bound(fleet: Problem) -> None:
    arrays = FleetArrays.of(fleet)
    columns = best_columns(arrays, _free(arrays), np.arange(arrays.models), effort=100)
    assert np.all(lower_bounds(arrays, _free(arrays)) <= columns.cost * (1 + 1e-9))


def test_prices_of_nothing_bound_the_fleet_by_the_sum_of_its_models(fleet: Problem) -> None:
    arrays = FleetArrays.of(fleet)
    least = lower_bounds(arrays, _free(arrays))
    assert total_bound(arrays, _free(arrays), least) == pytest.approx(least.sum())


def test_joined_columns_keep_each_configuration_once_in_the_order_of_models(fleet: Problem) -> None:
    arrays = FleetArrays.of(fleet)
    columns = best_columns(arrays, _free(arrays), np.arange(arrays.models), effort=1)
    twice = join_columns([columns, columns])
    assert len(twice) == len(columns)
    np.testing.assert_array_equal(twice.model, columns.model)
    np.testing.assert_allclose(twice.cost, columns.cost)


def test_a_model_within_a_small_budget_serves_what_the_budget_allows(fleet: Problem) -> None:
    arrays = FleetArrays.of(fleet)
    placer = Placer(arrays)
    whole = placer.best(0, _free(arrays), arrays.supply, effort=50)
    half = placer.within(0, _free(arrays), arrays.supply, dollars=0.6 * whole.hardware, moves=np.inf, effort=50)
    assert half.hardware <= 0.6 * whole.hardware
    assert 0 <= half.unmet <= arrays.qps[0].sum()


def test_one_model_finds_a_place_beside_a_planned_fleet(fleet: Problem, planned: Plan) -> None:
    name = fleet.models[7].model
    current = CurrentState(
        replicas=tuple(r for r in planned.replicas if r.model != name),
        traffic=tuple(t for t in planned.traffic if t.model != name),
    )
    problem = fleet.model_copy(update={"current": current})
    plan = place(problem, [name])
    assert check(problem, plan) == ()
    assert not [item for item in plan.unmet if item.model == name]
    assert {r for r in plan.replicas if r.model != name} == set(current.replicas)


def test_zero_models_and_zero_supply_cells_are_no_trouble() -> None:
    arrays = FleetArrays.of(generate(models=3, regions=3, hardware=2))
    empty = dataclasses.replace(arrays, supply=np.zeros_like(arrays.supply))
    columns: Columns = best_columns(empty, _free(empty), np.arange(3), effort=1)
    assert len(columns.count_n) == 0
    assert columns.unmet == pytest.approx(arrays.qps.sum(axis=1))
