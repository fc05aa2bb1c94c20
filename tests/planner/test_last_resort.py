"""Demand is refused only if a hard rule leaves no room for it."""

import pytest
from hypothesis import given

from planner import last_resort, solve
from planner.verify.plan_checker import check
from tests.planner.strategies import problems

FAR = [[1.0, 200.0], [200.0, 1.0]]
"""Two regions out of each other's latency."""


@pytest.fixture
def far_apart(model, problem):
    """A model with a large region and a small one, each with free supply that costs `unit_cost`."""

    def build(small_qps, *, supply=None, unit_cost=8.0, **fields):
        stated = model(demand={"a": 100.0, "b": small_qps}, tolerance=50.0, **fields)
        cells = supply or {"a/h": 10.0, "b/h": 10.0}
        return problem(
            stated, supply=cells, rtt_ms=FAR, unit_cost=dict.fromkeys(cells, unit_cost), limits={"gap": 0.01}
        )

    return build


@pytest.mark.parametrize("small_qps", [0.09, 0.001, 1e-6])
def test_a_small_region_with_free_supply_is_served(far_apart, small_qps):
    stated = far_apart(small_qps)
    assert solve.solve(stated).unmet, "the priced plan should refuse it, or this shows nothing"
    plan = last_resort.solve(stated)
    assert plan.unmet == ()
    assert {row.region for row in plan.replicas} == {"a", "b"}
    assert check(stated, plan) == ()


def test_one_model_placed_alone_is_served_whole(far_apart):
    stated = far_apart(0.09)
    assert last_resort.place(stated, ["m"]).unmet == ()


def test_demand_that_no_supply_can_hold_stays_refused_by_that_rule(far_apart):
    plan = last_resort.solve(far_apart(0.09, supply={"a/h": 10.0, "b/h": 0.0}))
    assert [(item.region, "supply b/h" in item.rules) for item in plan.unmet] == [("b", True)]


def test_a_budget_is_kept(far_apart):
    stated = far_apart(0.09, budget_per_hour=8.0)
    plan = last_resort.solve(stated)
    assert plan.cost_per_hour <= 8.0
    assert check(stated, plan) == ()


def test_other_models_keep_their_place(model, problem):
    large = model("large", demand={"a": 500.0, "b": 500.0})
    small = model("small", demand={"a": 100.0, "b": 0.01}, tolerance=50.0)
    stated = problem(large, small, supply={"a/h": 20.0, "b/h": 20.0}, rtt_ms=FAR, unit_cost={"a/h": 8.0, "b/h": 8.0})
    before, after = solve.solve(stated), last_resort.solve(stated)
    assert after.unmet == ()
    assert [r for r in after.replicas if r.model == "large"] == [r for r in before.replicas if r.model == "large"]


@given(problems())
def test_every_plan_keeps_every_rule_and_refuses_nothing_for_its_price_alone(stated):
    plan = last_resort.solve(stated)
    assert check(stated, plan) == ()
    assert plan.bound <= plan.objective
    assert not [item for item in plan.unmet if "unmet_cost" in item.rules]
