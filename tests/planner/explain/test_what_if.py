"""A change is a pure function of a problem; what it would do is planned before anything happens."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.planning.explanation import WhatIf
from planner.core.diff import state_of
from planner.explain.what_if import apply_changes, change_of, what_if
from planner.solve import solve


@pytest.fixture
def stated(problem, model):
    return problem(
        model("m", {"a": 100.0, "b": 50.0}, budget_per_hour=8.0),
        model("n/x", {"a": 100.0}),
        supply={"a/h": 4.0, "b/h": 4.0, "b/g": 2.0},
        owners=[{"owner": "o", "budget_per_hour": 9.0}, {"owner": "rich"}],
        limits={"max_moves": 9},
    )


def supply(stated):
    return {f"{item.region}/{item.hardware}": item.units for item in stated.supply}


def demand(stated):
    return {f"{model.model}/{item.region}": item.qps for model in stated.models for item in model.demand}


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("a/h=+40", {"a/h": 44.0, "b/h": 4.0, "b/g": 2.0}),
        ("a/h=-1.5", {"a/h": 2.5, "b/h": 4.0, "b/g": 2.0}),
        ("a/h=120", {"a/h": 120.0, "b/h": 4.0, "b/g": 2.0}),
        ("a/h=*0.5", {"a/h": 2.0, "b/h": 4.0, "b/g": 2.0}),
        ("b/*=0", {"a/h": 4.0, "b/h": 0.0, "b/g": 0.0}),
        ("*/h=*2", {"a/h": 8.0, "b/h": 8.0, "b/g": 2.0}),
        ("*/*=+1", {"a/h": 5.0, "b/h": 5.0, "b/g": 3.0}),
    ],
)
def test_supply_changes(stated, text, units):
    assert supply(apply_changes(stated, [change_of("supply", text)])) == units


def test_a_drained_region_supplies_nothing(stated):
    assert supply(apply_changes(stated, [change_of("drain", "b")])) == {"a/h": 4.0, "b/h": 0.0, "b/g": 0.0}


@pytest.mark.parametrize(
    ("text", "qps"),
    [
        ("m=*1.2", {"m/a": 120.0, "m/b": 60.0, "n/x/a": 100.0}),
        ("m/b=+5", {"m/a": 100.0, "m/b": 55.0, "n/x/a": 100.0}),
        ("n/x=*2", {"m/a": 100.0, "m/b": 50.0, "n/x/a": 200.0}),
        ("n/x/b=7", {"m/a": 100.0, "m/b": 50.0, "n/x/a": 100.0, "n/x/b": 7.0}),
        ("*=*0.5", {"m/a": 50.0, "m/b": 25.0, "n/x/a": 50.0}),
        ("*/a=*0.5", {"m/a": 50.0, "m/b": 50.0, "n/x/a": 50.0}),
    ],
)
def test_demand_changes(stated, text, qps):
    assert demand(apply_changes(stated, [change_of("demand", text)])) == qps


def test_budgets_change_and_are_lifted(stated):
    def budgets(*texts):
        after = apply_changes(stated, [change_of("budget", text) for text in texts])
        return {model.model: model.budget_per_hour for model in after.models} | {
            owner.owner: owner.budget_per_hour for owner in after.owners
        }

    assert budgets("model/m=*0.5", "owner/o=+1") == {"m": 4.0, "n/x": None, "o": 10.0, "rich": None}
    assert budgets("model/m=none", "owner/o=none", "model/n/x=3") == {"m": None, "n/x": 3.0, "o": None, "rich": None}


def test_an_owner_that_is_not_listed_gets_a_budget(problem, model):
    after = apply_changes(problem(model("m", owner="new"), supply={"a/h": 1.0}), [change_of("budget", "owner/new=3")])
    assert [(owner.owner, owner.budget_per_hour) for owner in after.owners] == [("new", 3.0)]


def test_weights_and_limits_change(stated):
    after = apply_changes(
        stated,
        [
            change_of("objective", "move_cost=0.1"),
            change_of("objective", "unmet_cost=*3"),
            change_of("limit", "max_moves=-2"),
            change_of("limit", "gap=0.02"),
        ],
    )
    assert (after.objective.move_cost, after.objective.unmet_cost) == (0.1, 30.0)
    assert (after.limits.max_moves, after.limits.gap) == (7, 0.02)
    assert apply_changes(stated, [change_of("limit", "max_moves=none")]).limits.max_moves is None


def test_changes_follow_each_other_and_the_problem_stays(stated):
    before = stated.model_dump_json()
    twice = apply_changes(stated, [change_of("supply", "a/h=+1"), change_of("supply", "a/h=*2")])
    assert supply(twice)["a/h"] == 10.0
    assert stated.model_dump_json() == before
    assert apply_changes(stated, []) == stated


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("supply", "a/h", r"TARGET=\+40"),
        ("supply", "=4", "TARGET=120"),
        ("supply", "a/h=", "TARGET=120"),
        ("supply", "a/h=much", r"a/h=\+40"),
        ("supply", "a/h=nan", "'nan' is no figure"),
        ("supply", "a/h=inf", "'inf' is no figure"),
        ("supply", "a/tpu=1", "no such supply; allowed: a/h, b/h, b/g"),
        ("supply", "a/h=-5", "-1 is below 0"),
        ("supply", "a/h=none", "none is no figure here"),
        ("supply", "a/h=*1e15", r"after supply a/h=\*1e\+15: supply"),
        ("drain", "moon", "no such region; allowed: a, b"),
        ("demand", "ghost=*2", r"no such model; allowed: \*, m, n/x"),
        ("demand", "m/moon=2", "no region 'moon'; allowed: a, b"),
        ("demand", "m=5", r"can only be multiplied; allowed: m=\*1.2"),
        ("budget", "m=5", "allowed: owner/o, owner/rich, model/m, model/n/x"),
        ("budget", "owner/rich=*2", "there is no limit to change; allowed: owner/rich=FIGURE"),
        ("objective", "beauty=1", "allowed: latency_weight, move_cost, unmet_cost"),
        ("objective", "move_cost=none", "none is no figure here"),
        ("limit", "luck=1", "allowed: max_moves, time_seconds, gap"),
        ("limit", "max_moves=2.5", "a whole number from 0, or none"),
        ("limit", "time_seconds=0", "above 0"),
    ],
)
def test_what_cannot_be_is_bad_input_that_says_what_can(stated, kind, text, words):
    with pytest.raises(InvalidInput, match=words) as refused:
        apply_changes(stated, [change_of(kind, text)])
    assert refused.value.field


def test_a_change_reads_as_it_is_written():
    texts = [("supply", "a/h=+40"), ("supply", "a/h=-4"), ("demand", "m=*1.2"), ("budget", "owner/o=none")]
    assert [str(change_of(kind, text)) for kind, text in texts] == [f"{kind} {text}" for kind, text in texts]
    assert str(change_of("limit", "gap=0.01")) == "limit gap=0.01"
    assert str(change_of("drain", "a")) == "drain a"


def test_what_if_tells_both_plans_apart(problem, model):
    stated = problem(model("m", {"a": 300.0}), supply={"a/h": 3.0, "b/h": 1.0}, objective={"move_cost": 0.5})
    found, after = what_if(stated, [change_of("drain", "a")])
    assert (found.before.objective, found.before.moves, found.before.unmet_qps) == (3.0, 0, 0.0)
    assert (found.after.cost_per_hour, found.after.moves, found.after.unmet_qps) == (1.0, 1, 200.0)
    assert found.after.objective == pytest.approx(1.0 + 0.5 + 2000.0) == pytest.approx(after.objective)
    assert {(r.region, r.before, r.after) for r in found.diff.replicas} == {("a", 3, 0), ("b", 0, 1)}
    assert found.diff.moves == 1
    assert [(u.model, u.region, u.before, u.after, u.rules) for u in found.unmet] == [
        ("m", "a", 0.0, pytest.approx(200.0), ("supply b/h",))
    ]
    assert found.broken == ("supply a/h",)
    assert WhatIf.model_validate_json(found.model_dump_json(by_alias=True)) == found


def test_what_runs_before_counts_as_current(problem, model):
    stated = problem(
        model("m", {"a": 200.0}), supply={"a/h": 3.0, "b/h": 3.0}, unit_cost={"b/h": 1.0001}, limits={"max_moves": 1}
    )
    plan = solve(stated.model_copy(update={"limits": stated.limits.model_copy(update={"max_moves": None})}))
    found, _ = what_if(stated, [change_of("demand", "m=*1.5")], plan=plan)
    assert (found.diff.moves, found.after.moves, found.after.unmet_qps) == (1, 1, 0.0)


def test_demand_that_is_served_again_shows_too(problem, model):
    found, _ = what_if(problem(model("m", {"a": 300.0}), supply={"a/h": 1.0}), [change_of("supply", "a/h=3")])
    assert [(u.before, u.after, u.rules) for u in found.unmet] == [(pytest.approx(200.0), 0.0, ())]


def test_another_planner_can_be_asked(stated):
    asked = []

    def replan(problem):
        asked.append(problem)
        return solve(problem)

    what_if(stated, [change_of("supply", "a/h=+1")], replan=replan)
    assert [supply(problem)["a/h"] for problem in asked] == [4.0, 5.0]
    assert asked[1].current == state_of(solve(stated))


def test_a_plan_of_another_problem_is_bad_input(stated, problem, model):
    other = solve(problem(model("other"), supply={"a/h": 1.0}))
    with pytest.raises(InvalidInput):
        what_if(stated, [change_of("supply", "a/h=+1")], plan=other)
