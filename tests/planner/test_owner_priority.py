"""Owners of a higher priority are served first if supply is short: the real planner, on whole problems."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.model.planning.plan import Owner
from planner import last_resort, solve
from planner.core.owner_levels import compare_by_level, unmet_by_level
from planner.owner_priority import is_overtaken
from planner.verify.plan_checker import check
from tests.planner.strategies import problems


def unmet(plan):
    return {item.model: item.qps for item in plan.unmet}


def owners(**priorities):
    return [{"owner": owner, "priority": priority} for owner, priority in priorities.items()]


@pytest.fixture
def short(model, problem):
    """Ten units: `dear` needs ten for its 100 QPS, `cheap` gets 1,000 QPS of the same ten."""
    dear = model("dear", demand={"a": 100.0}, owner="search", parts={"p": {"h": (1.0, 10.0)}})
    cheap = model("cheap", demand={"a": 1000.0}, owner="ads", parts={"p": {"h": (1.0, 100.0)}})

    def build(*, units=10.0, more=(), **priorities):
        return problem(dear, cheap, *more, supply={"a/h": units, "b/h": 0.0}, owners=owners(**priorities))

    return build


def test_an_owner_of_higher_priority_keeps_its_answers_however_many_units_they_need(short):
    assert unmet(last_resort.solve(short())) == {"dear": 100.0}
    plan = last_resort.solve(short(search=1))
    assert unmet(plan) == {"cheap": 1000.0}
    assert check(short(search=1), plan) == ()


def test_the_other_owner_keeps_its_answers_if_its_priority_is_the_higher_one(short):
    assert unmet(last_resort.solve(short(search=1, ads=2))) == {"dear": 100.0}
    assert unmet(last_resort.solve(short(search=-1))) == {"dear": 100.0}


def test_a_priority_of_models_does_not_lift_them_over_another_owner(model, problem):
    low = model("low", demand={"a": 100.0}, owner="ads", priority=1e6)
    high = model("high", demand={"a": 100.0}, owner="search", priority=0.001)
    plan = last_resort.solve(problem(low, high, supply={"a/h": 1.0}, owners=owners(search=1)))
    assert unmet(plan) == {"low": 100.0}


def test_what_the_higher_owner_leaves_goes_to_the_next_one(short, model):
    last = model("last", demand={"a": 500.0}, owner="batch", parts={"p": {"h": (1.0, 100.0)}})
    stated = short(units=14.0, more=(last,), search=9, batch=5, ads=1)
    plan = last_resort.solve(stated)
    assert unmet(plan) == {"last": 100.0, "cheap": 1000.0}


def test_owners_of_one_priority_are_served_by_the_priority_of_their_models_then_by_cost(model, problem):
    first = model("first", demand={"a": 100.0}, owner="search", priority=2.0)
    second = model("second", demand={"a": 100.0}, owner="ads", priority=1.0)
    stated = problem(second, first, supply={"a/h": 1.0}, owners=owners(search=3, ads=3))
    assert unmet(last_resort.solve(stated)) == {"second": 100.0}


def test_with_enough_supply_priorities_change_nothing(short):
    plain, ranked = last_resort.solve(short(units=20.0)), last_resort.solve(short(units=20.0, search=5))
    assert ranked == plain
    assert plain.unmet == ()


def test_a_higher_owner_that_its_own_budget_holds_back_takes_nothing_from_others(model, problem):
    high = model("high", demand={"a": 1000.0}, owner="search", budget_per_hour=2.0)
    low = model("low", demand={"a": 500.0}, owner="ads")
    plan = last_resort.solve(problem(high, low, supply={"a/h": 20.0}, owners=owners(search=1)))
    assert unmet(plan) == {"high": 800.0}


def test_moves_are_counted_over_all_levels(short):
    stated = short(search=1)
    stated = stated.model_copy(update={"limits": stated.limits.model_copy(update={"max_moves": 12})})
    plan = last_resort.solve(stated)
    assert unmet(plan) == {"cheap": 1000.0}
    assert check(stated, plan) == ()


def test_priorities_are_not_written_if_they_are_0():
    assert Owner(owner="a").model_dump() == {"owner": "a", "budget_per_hour": None}
    assert Owner(owner="a", priority=2).model_dump()["priority"] == 2


def test_figures_are_compared_at_the_first_level_at_which_they_differ():
    assert compare_by_level((0.0, 9.0), (1.0, 0.0), noise=1e-6) == -1
    assert compare_by_level((1.0, 0.0), (0.0, 9.0), noise=1e-6) == 1
    assert compare_by_level((1.0, 2.0), (1.0 + 1e-9, 3.0), noise=1e-6) == -1
    assert compare_by_level((1.0,), (1.0,), noise=1e-6) == 0


@given(problems(), st.permutations([0, 1, 2]))
def test_no_owner_is_served_less_than_without_levels_for_one_of_lower_priority(stated, ranks):
    names = sorted({model.owner for model in stated.models})
    listed = {owner.owner: owner for owner in stated.owners}
    ranked = tuple(
        listed.get(name, Owner(owner=name)).model_copy(update={"priority": ranks[i % 3]})
        for i, name in enumerate(names)
    )
    problem = stated.model_copy(update={"owners": ranked})
    plan, without = last_resort.solve(problem), last_resort.serve_what_fits(problem, solve.solve(problem))
    assert check(problem, plan) == ()
    assert plan.bound <= plan.objective
    assert compare_by_level(unmet_by_level(problem, plan), unmet_by_level(problem, without), noise=1e-6) <= 0
    if not is_overtaken(problem, without):
        assert plan == without
