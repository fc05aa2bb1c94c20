"""What one more of a limit is worth, and how far limits would have to grow."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.model.planning.plan import Problem
from planner.explain.conflict import servable
from planner.explain.shadow_prices import limit_figures, needs, prices
from planner.explain.what_if import apply_changes, change_of
from planner.solve import solve

FINE = {"p": {"h": (0.01, 1.0)}}
"""A hundredth of a unit does one QPS: whole replicas hardly differ from parts of them."""


REPLICA = 0.2 * 2.0 * 3.0
"""$/h that one replica of `fine` serves at most: whole replicas and parts of them differ by as much."""


def saved(stated, change):
    """$/h that a plan of the problem costs less after a change."""
    return solve(stated).objective - solve(apply_changes(stated, [change])).objective


@st.composite
def fine(draw):
    """Two models with very small replicas compete for two regions: as good as a linear program."""
    models = [
        {
            "model": f"m{i}",
            "owner": "o",
            "priority": priority,
            "latency_tolerance_ms": draw(st.sampled_from([2.0, 20.0])),
            "demand": [{"region": r, "qps": draw(st.sampled_from([200.0, 500.0]))} for r in ("a", "b")],
            "parts": [
                {"part": "p", "options": [{"hardware": "h", "units": 0.001, "qps": 0.1}]},
                {"part": "q", "options": [{"hardware": "g", "units": 0.002, "qps": draw(st.sampled_from([0.1, 0.2]))}]},
            ],
        }
        for i, priority in enumerate((1.0, 3.0))
    ]
    return Problem.model_validate(
        {
            "regions": ["a", "b"],
            "rtt_ms": [[1.0, 10.0], [10.0, 1.0]],
            "hardware": ["g", "h"],
            "supply": [
                {"region": r, "hardware": h, "units": draw(st.sampled_from([3.0, 7.0])), "unit_cost": cost}
                for r, cost in (("a", 1.0), ("b", 2.0))
                for h in ("g", "h")
            ],
            "owners": [{"owner": "o", "budget_per_hour": draw(st.sampled_from([None, 25.0]))}],
            "models": models,
            "objective": {"unmet_cost": 2.0},
            "limits": {"gap": 0.0, "time_seconds": 20.0},
        }
    )


@given(fine())
@settings(max_examples=8, deadline=None)
def test_where_replicas_are_small_the_price_is_what_one_more_unit_saves(stated):
    price = prices(stated)
    for item in stated.supply:
        cell = f"{item.region}/{item.hardware}"
        more = saved(stated, change_of("supply", f"{cell}=+1"))
        assert price[f"supply {cell}"] == pytest.approx(more, abs=REPLICA), cell


def test_a_dollar_of_budget_has_a_price_too(problem, model):
    stated = problem(
        model("m", {"a": 500.0}, parts=FINE, budget_per_hour=2.0, owner="rich"),
        model("n", {"a": 500.0}, parts=FINE, owner="poor"),
        supply={"a/h": 20.0},
        owners=[{"owner": "poor", "budget_per_hour": 3.0}, {"owner": "rich", "budget_per_hour": 50.0}],
    )
    price = prices(stated)
    assert price["budget model m"] == pytest.approx(100 * 10.0 - 1.0)
    assert price["budget model m"] == pytest.approx(saved(stated, change_of("budget", "model/m=+1")), rel=1e-3)
    assert price["budget owner poor"] == pytest.approx(saved(stated, change_of("budget", "owner/poor=+1")), rel=1e-3)
    assert price["budget owner rich"] == 0.0
    assert price["supply a/h"] == 0.0


def test_a_move_has_a_price(problem, model):
    stated = problem(
        model("m", {"a": 500.0}, parts=FINE),
        supply={"a/h": 20.0},
        limits={"max_moves": 3},
        objective={"move_cost": 0.5},
    )
    assert prices(stated)["moves"] == pytest.approx(10.0 - 0.01 - 0.5)
    assert prices(stated)["moves"] == pytest.approx(saved(stated, change_of("limit", "max_moves=+1")))


def test_where_one_unit_is_no_replica_the_price_is_no_promise(problem, model):
    stated = problem(model("m", {"a": 200.0}, parts={"p": {"h": (2.0, 100.0)}}), supply={"a/h": 2.0})
    assert prices(stated)["supply a/h"] == pytest.approx(10.0 * 50.0 - 1.0)
    assert saved(stated, change_of("supply", "a/h=+1")) == pytest.approx(0.0)
    assert saved(stated, change_of("supply", "a/h=+2")) == pytest.approx(2 * (10.0 * 50.0 - 1.0))


def test_one_of_two_units_that_are_needed_together_is_worth_nothing_alone(problem, model):
    parts = {"p": {"g": (0.01, 1.0)}, "q": {"h": (0.01, 1.0)}}
    stated = problem(model("m", {"a": 900.0}, parts=parts), supply={"a/g": 3.0, "a/h": 3.0})
    assert prices(stated) == {"supply a/g": 0.0, "supply a/h": 0.0}
    assert saved(stated, change_of("supply", "a/g=+1")) == pytest.approx(0.0)


def test_supply_that_is_left_over_is_worth_nothing(problem, model):
    stated = problem(model("m", {"a": 100.0}), supply={"a/h": 5.0, "b/h": 5.0})
    assert prices(stated) == {"supply a/h": 0.0, "supply b/h": 0.0}


def test_supply_of_nothing_has_a_price(problem, model):
    stated = problem(model("m", {"a": 100.0}, tolerance=2.0), supply={"a/h": 0.0, "b/h": 5.0})
    assert prices(stated)["supply a/h"] == pytest.approx(100 * 10.0 - 1.0)


def test_a_problem_without_anything_to_choose_has_prices_of_zero(problem):
    assert prices(problem(supply={"a/h": 1.0})) == {"supply a/h": 0.0}


def test_limits_are_listed_by_rule(problem, model):
    stated = problem(
        model("m", budget_per_hour=3.0),
        supply={"a/h": 1.0},
        owners=[{"owner": "o", "budget_per_hour": 4.0}, {"owner": "free", "budget_per_hour": None}],
        limits={"max_moves": 5},
    )
    assert limit_figures(stated) == {"supply a/h": 1.0, "budget model m": 3.0, "budget owner o": 4.0, "moves": 5.0}


def grown(stated, found):
    """The problem with its limits as large as needed."""
    changes = []
    for need in found:
        rule, _, subject = need.rule.partition(" ")
        if rule == "moves":
            changes.append(change_of("limit", f"max_moves={need.needed}"))
        elif rule == "supply":
            changes.append(change_of("supply", f"{subject}={need.needed}"))
        else:
            changes.append(change_of("budget", f"{subject.replace(' ', '/', 1)}={need.needed}"))
    return apply_changes(stated, changes)


@pytest.mark.parametrize(
    ("fields", "limits", "expected"),
    [
        ({}, {}, {"supply a/h": 3.0}),
        ({"budget_per_hour": 1.0, "tolerance": 2.0}, {}, {"supply a/h": 3.0, "budget model m": 3.0}),
        ({}, {"max_moves": 1}, {"supply a/h": 3.0, "moves": 3.0}),
        ({"survive": "region"}, {}, {"supply a/h": 3.0, "supply b/h": 3.0}),
    ],
)
def test_needs_are_the_least_growth_that_serves_everything(problem, model, fields, limits, expected):
    stated = problem(
        model("m", {"a": 300.0}, **fields), supply={"a/h": 1.0, "b/h": 0.0}, unit_cost={"b/h": 2.0}, limits=limits
    )
    found = needs(stated)
    assert {need.rule: need.needed for need in found} == expected
    assert servable(stated) is False
    assert servable(grown(stated, found)) is True


def test_nothing_is_needed_where_all_fits(problem, model):
    assert needs(problem(model("m"), supply={"a/h": 5.0})) == ()


def test_no_growth_helps_where_hardware_is_nowhere(problem, model):
    stated = problem(model("m", parts={"p": {"g": (1.0, 100.0)}}), supply={"a/h": 5.0})
    assert needs(stated.model_copy(update={"hardware": ("g", "h")})) == ()


def test_a_region_too_far_needs_tolerance_first(problem, model):
    found = needs(problem(model("m", tolerance=0.5), supply={"a/h": 5.0}))
    assert [(need.rule, need.limit, need.needed) for need in found] == [("latency model m", 0.5, 1.0)]
