"""What some models leave to the others if they keep what they have."""

import pytest

from ipnext.errors import InvalidInput
from planner.core.residual import current_holding, only, residual
from planner.core.solution import Holding

RUNNING = [
    {"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 2},
    {"model": "n", "part": "p", "region": "b", "hardware": "h", "count": 1},
]
SENT = [{"model": name, "from": region, "to": region, "fraction": 1.0} for name, region in (("m", "a"), ("n", "b"))]


@pytest.fixture
def stated(problem, model):
    return problem(
        model("m", parts={"p": {"h": (1.5, 100.0)}}),
        model("n", demand={"b": 50.0}),
        supply={"a/h": 4.0, "b/h": 4.0},
        unit_cost={"a/h": 2.0},
        replicas=RUNNING,
        traffic=SENT,
        owners=[{"owner": "o", "budget_per_hour": 10.0}, {"owner": "free"}],
    )


def test_the_models_that_are_kept_hold_what_runs(stated):
    assert current_holding(stated, ["m"]) == Holding({("m", "p", "a", "h"): 2}, {("m", "a", "a"): 1.0})
    assert current_holding(stated, []) == Holding({}, {})


def test_what_runs_on_hardware_without_an_option_can_not_be_kept(problem, model):
    running = [{"model": "m", "part": "p", "region": "a", "hardware": "g", "count": 1}]
    stated = problem(model("m"), supply={"a/g": 1.0, "a/h": 1.0}, replicas=running)
    with pytest.raises(InvalidInput, match="m/p runs on g, for which it has no option"):
        current_holding(stated, ["m"])
    assert current_holding(stated, []) == Holding({}, {})


def test_the_problem_of_some_models_has_all_supply_and_only_their_state(stated):
    found = only(stated, ["n"])
    assert [model.model for model in found.models] == ["n"]
    assert {row.model for row in (*found.current.replicas, *found.current.traffic)} == {"n"}
    assert (found.supply, found.owners) == (stated.supply, stated.owners)


def test_units_and_owners_budgets_are_what_the_holding_leaves(stated):
    found = residual(stated, current_holding(stated, ["m"]), ["n"])
    assert {(row.region, row.units) for row in found.supply} == {("a", 1.0), ("b", 4.0)}
    assert {owner.owner: owner.budget_per_hour for owner in found.owners} == {"o": 4.0, "free": None}


def test_a_holding_beyond_the_supply_leaves_nothing(stated):
    found = residual(stated, Holding({("m", "p", "a", "h"): 9}, {}), ["n"])
    assert {(row.region, row.units) for row in found.supply} == {("a", 0.0), ("b", 4.0)}
    assert {owner.owner: owner.budget_per_hour for owner in found.owners} == {"o": 0.0, "free": None}
