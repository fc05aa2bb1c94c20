"""Refusals by budget name what serving would cost and what may be spent."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.planning.activities import PlanningActivities
from activities.planning.budget_report import budget_figures, without_budgets
from activities.planning.problem import fleet_problem
from activities.planning.solver import ThreadSolver
from activities.regions.drain_check import DrainCheckActivities
from ipnext.model.fleet import FleetSpec, OwnerBudget, SupplyItem
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import ModelProblem, Owner, PartOption, PartProblem, RegionDemand
from planner.solve import place

OWNER, MODEL = "budget owner o", "budget model m"


def problem(units=10, *, owner=0.5, model=None):
    """A model that needs 3 units at 2 $/h."""
    part = PartProblem(part="p", options=(PartOption(hardware="cpu", units=1, qps=10),))
    wished = ModelProblem(
        model="m",
        owner="o",
        latency_tolerance_ms=10,
        budget_per_hour=model,
        demand=(RegionDemand(region="a", qps=25),),
        parts=(part,),
    )
    fleet = FleetSpec(
        regions=("a",),
        rtt_ms=((1,),),
        hardware=("cpu",),
        supply=(SupplyItem(region="a", hardware="cpu", units=units, unit_cost=2),),
        owners=(OwnerBudget(owner="o", budget_per_hour=owner),),
    )
    return fleet_problem(fleet, [wished])


def figures(asked, *rules, **more):
    return budget_figures(rules, asked, place(without_budgets(asked), ["m"]), **more)


def test_what_it_would_take_and_what_the_budget_is():
    assert figures(problem(), OWNER, OWNER) == "to serve all, budget owner o would need 6 $/h, and is 0.5 $/h"
    both = figures(problem(model=1), OWNER, MODEL)
    assert "budget owner o would need 6 $/h, and is 0.5 $/h; budget model m would need 6 $/h, and is 1 $/h" in both


def test_what_other_models_have_taken_counts():
    told = figures(problem(), OWNER, owners=[Owner(owner="o", budget_per_hour=4)])
    assert told == (
        "to serve all, budget owner o would need 9.5 $/h, and is 4 $/h, of which other models leave 0.5 $/h"
    )


def test_more_than_the_supply_holds_is_not_priced():
    assert figures(problem(units=1), OWNER).startswith(
        "to serve all that the supply holds, budget owner o would need 2 "
    )


def test_where_no_plan_could_be_had_the_budget_is_told_alone():
    assert budget_figures([OWNER], problem(), None) == "budget owner o is 0.5 $/h"


@pytest.mark.parametrize("rules", [(), ("supply a/cpu", "latency")])
def test_rules_that_are_no_budgets_have_no_figures(rules):
    assert figures(problem(), *rules) == ""


@pytest.fixture
def placed(house, kit):
    """Place a model whose owner may spend so much."""

    def place_with(budget):
        house.apply_fleet(kit.FLEET + f"  owners: [{{owner: default, budgetPerHour: {budget}}}]\n")
        house.apply("m")
        house.publish("m", 1)
        stage = StageInput(model="m", change_id="m-p1", kind=ChangeKind.PUBLISH, generation=1)
        return ActivityEnvironment().run(PlanningActivities(house.store, ThreadSolver()).place_model, stage)

    return place_with


def test_a_model_that_cannot_be_placed_for_its_owners_budget(placed):
    planned = placed(0.5)
    assert planned.reason is Reason.OVER_BUDGET
    assert planned.message == (
        "nothing can be placed: budget owner default; to serve all, budget owner default would need 12 $/h, "
        "and is 0.5 $/h"
    )


def test_a_model_of_which_the_budget_pays_for_some(placed):
    planned = placed(11)
    assert planned.feasible
    assert "stay unserved (budget owner default)" in planned.message
    assert planned.message.endswith("; to serve all, budget owner default would need 12 $/h, and is 11 $/h")


def test_a_model_within_its_budget_has_no_figures(placed):
    assert placed(12).message == ""


def test_a_region_that_the_budget_keeps_in_service(placed, house):
    placed(12.5)
    with house.store.begin() as unit:
        unit.add_drain("us-east")
    checks = DrainCheckActivities(house.store, ThreadSolver())
    seen = ActivityEnvironment().run(checks.check_drain, DrainInput(region="us-east"))
    assert seen.state is DrainState.REFUSED
    with house.store.read() as unit:
        drain = unit.drain("us-east")
    assert drain.cause is Reason.OVER_BUDGET
    assert drain.message.endswith("; to serve all, budget owner default would need 13.2 $/h, and is 12.5 $/h")
