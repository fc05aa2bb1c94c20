"""When a plan is worth its moves: pure functions of plans and problems."""

import pytest

from activities.planning.activities import keeps, unplaced_message
from activities.planning.adoption import RowFigures, figures_of, held_plan, replaces, rows_by_model
from activities.planning.policy import PlanningPolicy
from activities.planning.replan import find_overbooking
from ipnext.model.planning.plan import (
    CurrentState,
    ModelProblem,
    Objective,
    Owner,
    PartOption,
    PartProblem,
    Plan,
    Problem,
    RegionDemand,
    RegionSupply,
    ReplicaCount,
    TrafficShare,
)
from ipnext.settings import PlatformSettings
from ipnext.store.records import ModelPlacement
from planner import last_resort
from planner.solve import solve

OBJECTIVE = Objective(latency_weight=0.0001, move_cost=0.05, unmet_cost=10.0)


def wishes(name: str = "m", *, qps: float = 300, owner: str = "o", priority: float = 1.0) -> ModelProblem:
    part = PartProblem(part="dense", options=(PartOption(hardware="cpu", units=1, qps=100),))
    demand = (RegionDemand(region="east", qps=qps),)
    return ModelProblem(
        model=name, owner=owner, priority=priority, latency_tolerance_ms=100, demand=demand, parts=(part,)
    )


def problem(*models: ModelProblem, east: float = 1.0, west: float = 1.0, units: float = 9, **more: object) -> Problem:
    return Problem(
        regions=("east", "west"),
        rtt_ms=((1.0, 70.0), (70.0, 1.0)),
        hardware=("cpu",),
        supply=(
            RegionSupply(region="east", hardware="cpu", units=units, unit_cost=east),
            RegionSupply(region="west", hardware="cpu", units=units, unit_cost=west),
        ),
        models=models or (wishes(),),
        objective=OBJECTIVE,
        **more,
    )


def placed(
    region: str = "east", *, count: int = 3, of: ModelProblem | None = None, served: float = 1.0
) -> ModelPlacement:
    of = of or wishes()
    row = ReplicaCount(model=of.model, part="dense", region=region, hardware="cpu", count=count)
    share = TrafficShare(model=of.model, origin="east", to=region, fraction=served)
    return ModelPlacement(
        model=of.model,
        plan_id="p",
        wishes=of,
        replicas=(row,) if count else (),
        traffic=(share,) if served else (),
        cost_per_hour=count,
    )


def plan(*placements: ModelPlacement, given: Problem) -> Plan:
    found = held_plan(placements, given)
    assert found is not None
    return found


def verdict(new: ModelPlacement, old: ModelPlacement, given: Problem, *, dead_band: float = 0.02):
    return replaces(plan(new, given=given), plan(old, given=given), given, dead_band=dead_band)


def test_the_policy_without_settings_is_that_of_the_settings():
    assert PlanningPolicy.of(PlatformSettings.model_construct()) == PlanningPolicy()


def test_the_first_plan_is_adopted_and_the_same_plan_is_not():
    given = problem()
    assert replaces(plan(placed(), given=given), None, given, dead_band=0.02).adopt
    again = verdict(placed(), placed(), given)
    assert (again.adopt, again.message) == (False, "the plan in force is the best one found")


@pytest.mark.parametrize(("east", "adopt"), [(1.0, False), (1.74, False), (1.77, False), (1.78, True), (2.0, True)])
def test_what_is_saved_counts_at_todays_prices_less_the_moves_and_the_latency(east, adopt):
    """Three replicas in the west save 3 x (east - 1) $/h.

    The moves cost 3 x 0.05, and 69 ms of 300 requests/s cost 2.07.
    """
    given = problem(east=east, current=CurrentState(replicas=placed().replicas))
    before, after = (figures_of(given, plan(placed(region), given=given)) for region in ("east", "west"))

    found = verdict(placed("west"), placed("east"), given, dead_band=0.02)

    assert before.spent - after.spent == pytest.approx(3 * (east - 1) - 0.15 - 2.07)
    assert found.adopt is adopt, found.message


def test_a_saving_below_the_dead_band_says_so():
    given = problem(east=2.0, current=CurrentState(replicas=placed().replicas))
    found = verdict(placed("west"), placed("east"), given, dead_band=0.131)
    assert not found.adopt
    assert found.message == (
        "saves 0.78 $/h with latency and moves, 13.0% of the hardware's cost of 6.00 $/h, "
        "within the dead band of 13.1%: nothing moves"
    )
    assert verdict(placed("west"), placed("east"), given, dead_band=0.129).adopt


def test_a_rule_that_todays_problem_breaks_is_repaired_whatever_it_costs():
    given = problem(units=2)
    found = verdict(placed("west", count=2, served=2 / 3), placed("east"), given)
    assert found.adopt
    assert found.message.startswith("the plan in force no longer holds: east/cpu: 3 units taken of 2")


def test_a_model_that_has_gone_or_a_region_that_has_gone_is_a_rule_that_breaks():
    given = problem(wishes("m"))
    both = replaces(
        plan(placed(), given=given), plan(placed(), placed(of=wishes("gone")), given=given), given, dead_band=0.5
    )
    assert both.adopt
    assert "gone" in both.message


def test_more_demand_served_is_adopted_and_less_is_not():
    given = problem()
    assert verdict(placed(count=3), placed(count=2, served=2 / 3), given, dead_band=0.9).message == (
        "100 requests/s more are served"
    )
    assert not verdict(placed(count=2, served=2 / 3), placed(count=3), given, dead_band=0.0).adopt


def test_demand_that_grew_since_is_unmet_of_the_plan_in_force_not_served_by_it():
    given = problem(wishes(qps=500))
    found = replaces(plan(placed(count=5), given=given), plan(placed(count=3), given=given), given, dead_band=0.9)
    assert found.adopt
    assert "no longer holds" in found.message


def test_demand_of_a_higher_priority_counts_more():
    low, high = wishes("low", qps=100), wishes("high", qps=100, priority=5)
    given = problem(low, high, units=1)
    serves_low = plan(placed(of=low, count=1), placed(of=high, count=0, served=0), given=given)
    serves_high = plan(placed(of=low, count=0, served=0), placed(of=high, count=1), given=given)
    up = replaces(serves_high, serves_low, given, dead_band=0.5)
    assert (up.adopt, up.message) == (True, "demand of higher priority is served")
    assert not replaces(serves_low, serves_high, given, dead_band=0.0).adopt


def test_demand_of_an_owner_of_higher_priority_counts_before_any_other():
    low, high = wishes("low", qps=900, owner="p"), wishes("high", qps=100, owner="o")
    given = problem(low, high, units=9, owners=(Owner(owner="o", priority=1), Owner(owner="p")))
    serves_low = plan(placed(of=low, count=9), placed(of=high, count=0, served=0), given=given)
    serves_high = plan(placed(of=low, count=0, served=0), placed(of=high, count=1), given=given)
    assert replaces(serves_high, serves_low, given, dead_band=0.5).adopt
    assert not replaces(serves_low, serves_high, given, dead_band=0.0).adopt


def test_figures_are_those_of_the_objective():
    given = problem(wishes(priority=2), current=CurrentState(replicas=placed(count=1).replicas))
    found = figures_of(given, plan(placed(count=2, served=0.5), given=given))
    assert found == RowFigures(
        cost=2.0, latency=pytest.approx(0.0001 * 300 * 0.5), moves=pytest.approx(0.05), unmet=pytest.approx(300)
    )


def test_rows_are_told_apart_by_model():
    one, two = placed(of=wishes("a")), placed("west", of=wishes("b"))
    both = CurrentState(replicas=(*two.replicas, *one.replicas), traffic=(*one.traffic, *two.traffic))
    assert rows_by_model(both) == {"a": one.state, "b": two.state}


def test_placements_that_need_more_than_there_is_are_named_by_the_rule():
    given = problem(units=5, owners=(Owner(owner="o", budget_per_hour=4.0),))
    assert find_overbooking(given, [placed(count=4)]) is None
    assert find_overbooking(given, [placed(count=3), placed(count=3, of=wishes("n", owner="p"))]) == (
        "supply east/cpu holds 5 of 6 units"
    )
    assert find_overbooking(given, [placed(count=3), placed("west", count=2)]) == "budget owner o pays for 4 of 5 $/h"


@pytest.mark.parametrize(
    ("placement", "stays"),
    [
        (placed(count=3), True),
        (placed(count=3, served=0), False),
        (placed(count=3, served=0.9), False),
        (placed(count=2), False),
        (placed(count=0, served=0), False),
        (placed(count=3, of=wishes(qps=200)), False),
        (placed("west", count=3), True),
    ],
    ids=["all served", "settled without traffic", "part served", "too few", "nothing", "other wishes", "elsewhere"],
)
def test_a_model_stays_only_where_all_it_wishes_is_met(placement, stays):
    assert keeps(placement, problem()) is stays


def test_a_model_whose_replica_costs_more_than_its_demand_is_priced_at_is_placed_all_the_same():
    stated = problem(wishes(qps=10, priority=0.01))
    assert solve(stated).replicas == ()
    assert last_resort.place(stated, ["m"]).unmet == ()


def test_a_model_without_room_is_told_the_rules():
    stated = problem(wishes(qps=10), units=0)
    assert unplaced_message(solve(stated)).startswith("nothing can be placed: supply east/cpu")
