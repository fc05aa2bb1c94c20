import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.errors import Infeasible, InvalidInput
from ipnext.model.planning.plan import Problem
from ipnext.model.value import canonical_json
from planner import solve as solving
from planner.core.diff import diff, state_of
from planner.core.index import Index
from planner.exact.formulation import SolverAnswer
from planner.solve import place, solve
from planner.verify.plan_checker import check
from tests.planner.strategies import problems


@given(problems())
@settings(max_examples=100, deadline=None)
def test_every_plan_keeps_every_rule(stated):
    plan = solve(stated)
    assert check(stated, plan) == ()
    assert plan.bound <= plan.objective
    assert all(item.rules for item in plan.unmet)


@given(problems(most_models=2, most_regions=2))
@settings(max_examples=10, deadline=None)
def test_the_same_problem_gives_the_same_bytes(stated):
    assert canonical_json(solve(stated)) == canonical_json(solve(stated))


@st.composite
def tiny(draw):
    """One or two models of one part over two regions: few enough placements to try them all."""
    models = [
        {
            "model": f"m{i}",
            "owner": "o",
            "priority": draw(st.sampled_from([1.0, 3.0])),
            "latency_tolerance_ms": draw(st.sampled_from([2.0, 20.0])),
            "survive": draw(st.sampled_from(["region", "none"])),
            "demand": [{"region": r, "qps": draw(st.sampled_from([20.0, 60.0]))} for r in ("a", "b")],
            "parts": [
                {
                    "part": "p",
                    "min_replicas": draw(st.sampled_from([1, 2])),
                    "options": [{"hardware": "h", "units": 1.0, "qps": 50.0}],
                }
            ],
        }
        for i in range(draw(st.integers(1, 2)))
    ]
    supply = [
        {
            "region": r,
            "hardware": "h",
            "units": float(draw(st.integers(0, 3))),
            "unit_cost": draw(st.sampled_from([1.0, 2.0])),
        }
        for r in ("a", "b")
    ]
    return Problem.model_validate(
        {
            "regions": ["a", "b"],
            "rtt_ms": [[1.0, 10.0], [10.0, 1.0]],
            "hardware": ["h"],
            "supply": supply,
            "models": models,
            "owners": [{"owner": "o", "budget_per_hour": draw(st.sampled_from([None, 4.0]))}],
            "objective": {
                "unmet_cost": draw(st.sampled_from([0.02, 1.0])),
                "move_cost": draw(st.sampled_from([0.0, 0.3])),
            },
            "limits": {"gap": 0.0, "max_moves": draw(st.sampled_from([None, 3]))},
        }
    )


def least_objective(stated: Problem) -> float:
    """By trying every placement. Traffic by hand: with these two regions what is served has a closed form."""
    cells = [(m, r) for m in range(len(stated.models)) for r in range(2)]
    best = math.inf
    for counts in itertools.product(range(4), repeat=len(cells)):
        held = dict(zip(cells, counts, strict=True))
        best = min(best, _value(stated, held))
    return best


def _value(stated, held):
    cost = 0.0
    for r, item in enumerate(stated.supply):
        used = sum(count for (_, region), count in held.items() if region == r)
        if used > item.units:
            return math.inf
        cost += used * item.unit_cost
    limit, moves = stated.owners[0].budget_per_hour, stated.limits.max_moves
    started = sum(held.values())
    if (limit is not None and cost > limit) or (moves is not None and started > moves):
        return math.inf
    for m, model in enumerate(stated.models):
        able = [held[m, r] * 50.0 for r in range(2)]
        if any(0 < held[m, r] < model.parts[0].min_replicas for r in range(2)):
            return math.inf
        demand = [item.qps for item in model.demand]
        served = min(sum(able), sum(demand))
        if model.latency_tolerance_ms < 10:
            served = sum(min(able[r], demand[r]) for r in range(2))
        if model.survive == "region":
            served = min(served, *able)
        cost += stated.objective.unmet_cost * model.priority * (sum(demand) - served)
    return cost + stated.objective.move_cost * started


@given(tiny())
@settings(max_examples=50, deadline=None)
def test_no_plan_is_better_than_the_planned_one(stated):
    plan = solve(stated)
    assert plan.objective == pytest.approx(least_objective(stated), rel=1e-6, abs=1e-6)
    assert plan.status == "optimal"


def unmet(plan):
    return {(item.model, item.region): item for item in plan.unmet}


def test_demand_is_left_unmet_by_priority(problem, model):
    stated = problem(
        model("low", {"a": 100.0}, priority=1.0), model("high", {"a": 100.0}, priority=2.0), supply={"a/h": 1.0}
    )
    plan = solve(stated)
    assert set(unmet(plan)) == {("low", "a")}
    assert unmet(plan)["low", "a"].qps == pytest.approx(100.0)
    assert unmet(plan)["low", "a"].rules == ("supply a/h",)


def test_survive_holds_all_that_is_served_without_any_region(problem, model):
    plan = solve(problem(model("m", {"a": 200.0}, survive="region"), supply={"a/h": 9.0, "b/h": 9.0}))
    assert {(r.region, r.count) for r in plan.replicas} == {("a", 2), ("b", 2)}
    assert plan.unmet == ()


def test_survive_waives_the_latency_tolerance(problem, model):
    plan = solve(problem(model("m", {"a": 100.0}, survive="region", tolerance=2.0), supply={"a/h": 9.0, "b/h": 9.0}))
    assert plan.unmet == ()
    assert {t.to for t in plan.traffic} == {"a"}


def test_survive_is_named_where_one_region_alone_could_serve(problem, model):
    plan = solve(problem(model("m", {"a": 100.0}, survive="region"), supply={"a/h": 9.0}))
    assert plan.replicas == ()
    assert unmet(plan)["m", "a"].rules == ("supply b/h", "survive a")


def test_survive_in_a_fleet_of_one_region_serves_nothing(problem, model):
    plan = solve(
        problem(model("m", {"a": 100.0}, survive="region"), supply={"a/h": 9.0}, regions=["a"], rtt_ms=[[1.0]])
    )
    assert unmet(plan)["m", "a"].rules == ("survive a",)


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"budget_per_hour": 1.5}, "budget model m"),
        ({"owner": "poor"}, "budget owner poor"),
    ],
)
def test_the_rule_that_binds_is_named(problem, model, fields, rule):
    stated = problem(
        model("m", {"a": 200.0}, **fields), supply={"a/h": 9.0}, owners=[{"owner": "poor", "budget_per_hour": 1.5}]
    )
    assert unmet(solve(stated))["m", "a"].rules == (rule,)


def test_moves_are_capped_and_named(problem, model):
    stated = problem(model("m", {"a": 300.0}), supply={"a/h": 9.0}, limits={"max_moves": 2})
    plan = solve(stated)
    assert sum(item.count for item in plan.replicas) == 2
    assert unmet(plan)["m", "a"].rules == ("moves",)


def test_latency_is_named_where_only_a_far_region_has_room(problem, model):
    plan = solve(problem(model("m", {"a": 200.0}, tolerance=5.0), supply={"a/h": 1.0, "b/h": 9.0}))
    assert unmet(plan)["m", "a"].rules == ("latency a", "supply a/h")


def test_demand_that_is_cheaper_to_leave_says_so(problem, model):
    plan = solve(problem(model("m"), supply={"a/h": 9.0}, objective={"unmet_cost": 0.001}))
    assert unmet(plan)["m", "a"].rules == ("unmet_cost",)


def test_two_parts_that_lack_room_are_both_named(problem, model):
    parts = {"p": {"h": (1.0, 100.0)}, "q": {"g": (1.0, 100.0)}}
    plan = solve(problem(model("m", {"a": 200.0}, parts=parts), supply={"a/h": 1.0, "a/g": 1.0}))
    assert unmet(plan)["m", "a"].rules == ("supply a/g", "supply a/h")


def test_a_dearer_start_keeps_what_runs(problem, model):
    running = [{"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 1}]
    fields = {"supply": {"a/h": 9.0, "b/h": 9.0}, "unit_cost": {"a/h": 1.0, "b/h": 0.9}, "replicas": running}
    free = solve(problem(model("m"), **fields))
    sticky = solve(problem(model("m"), objective={"move_cost": 0.5}, **fields))
    assert [r.region for r in free.replicas] == ["b"]
    assert [r.region for r in sticky.replicas] == ["a"]


def test_an_empty_problem_has_an_empty_plan(problem):
    plan = solve(problem(supply={"a/h": 1.0}))
    assert (plan.status, plan.objective, plan.replicas) == ("optimal", 0.0, ())


def test_zero_demand_is_routed_to_a_region_that_holds_the_model(problem, model):
    plan = solve(problem(model("m", {"a": 0.0, "b": 100.0}, tolerance=20.0), supply={"b/h": 2.0}))
    assert {(t.origin, t.to, t.fraction) for t in plan.traffic} == {("a", "b", 1.0), ("b", "b", 1.0)}


def test_replicas_on_hardware_without_an_option_end(problem, model):
    running = [{"model": "m", "part": "p", "region": "a", "hardware": "g", "count": 2}]
    stated = problem(model("m"), supply={"a/h": 2.0, "a/g": 2.0}, replicas=running)
    assert {r.hardware for r in solve(stated).replicas} == {"h"}


def answers(monkeypatch, replicas, traffic, *, time_ran_out=False):
    """Lets the solver say this, by placement and by (from, to); all else is 0. `replicas` None: it found nothing."""

    class Scripted:
        def __init__(self, stated):
            self.index = Index(stated)

        def solve(self):
            if replicas is None:
                return SolverAnswer(None, None, 0.0, time_ran_out=time_ran_out, iterations=0)
            counts = [replicas.get(place.key, 0.0) for place in self.index.placements]
            shares = [traffic.get(route.key, 0.0) for route in self.index.routes]
            return SolverAnswer(counts, shares, 0.0, time_ran_out=time_ran_out, iterations=0)

    monkeypatch.setattr(solving, "Formulation", Scripted)


def test_out_of_time_the_current_plan_stays_in_force(problem, model, monkeypatch):
    running = [{"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 1}]
    stated = problem(model("m", {"a": 150.0}), supply={"a/h": 9.0}, replicas=running)
    answers(monkeypatch, None, None, time_ran_out=True)
    plan = solve(stated, method="reference")
    assert plan.status == "time_limit"
    assert state_of(plan).replicas == stated.current.replicas
    assert unmet(plan)["m", "a"].rules == ("time_seconds",)


def test_a_current_plan_that_is_no_longer_valid_is_not_kept(problem, model, monkeypatch):
    running = [{"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 5}]
    stated = problem(model("m", {"a": 500.0}, budget_per_hour=2.0), supply={"a/h": 9.0}, replicas=running)
    answers(monkeypatch, None, None, time_ran_out=True)
    plan = solve(stated)
    assert check(stated, plan) == ()
    assert plan.cost_per_hour <= 2.0
    assert sum(item.count for item in plan.replicas) == 2


def test_a_wrong_answer_of_the_solver_never_leaves(problem, model, monkeypatch):
    stated = problem(model("m", {"a": 500.0}), supply={"a/h": 2.0})
    answers(monkeypatch, {("m", "p", "a", "h"): 50.0}, {("m", "a", "a"): 1.0})
    plan = solve(stated)
    assert check(stated, plan) == ()
    assert plan.status == "feasible"


@pytest.fixture
def running(problem, model):
    stated = problem(
        model("old", {"a": 150.0}), model("new", {"a": 80.0}), supply={"a/h": 3.0}, objective={"unmet_cost": 1.0}
    )
    first = solve(stated.model_copy(update={"models": stated.models[:1]}))
    return stated.model_copy(update={"current": state_of(first)})


def test_placing_one_model_leaves_the_others_untouched(running):
    plan = place(running, ["new"])
    assert [r for r in plan.replicas if r.model == "old"] == list(running.current.replicas)
    assert [t for t in plan.traffic if t.model == "old"] == list(running.current.traffic)
    assert [(r.model, r.count) for r in plan.replicas if r.model == "new"] == [("new", 1)]
    assert "other model" in plan.bound_covers
    assert check(running, plan) == ()


def test_a_placed_model_gets_only_what_the_others_leave(problem, model, running):
    small = running.model_copy(update={"supply": problem(supply={"a/h": 2.0}).supply})
    assert unmet(place(small, ["new"]))["new", "a"].rules == ("supply a/h",)


def test_an_owners_budget_counts_what_the_others_spend(running, problem):
    poor = running.model_copy(
        update={"owners": problem(supply={}, owners=[{"owner": "o", "budget_per_hour": 2.5}]).owners}
    )
    assert unmet(place(poor, ["new"]))["new", "a"].rules == ("budget owner o",)


def test_a_model_that_is_kept_without_replicas_stays_unmet(running):
    empty = running.model_copy(update={"current": type(running.current)()})
    plan = place(empty, ["new"])
    assert unmet(plan)["old", "a"].rules == ("kept",)


def test_placing_beside_models_that_break_a_rule_is_infeasible(running, problem):
    gone = running.model_copy(update={"supply": problem(supply={"a/h": 1.0}).supply})
    with pytest.raises(Infeasible, match="place those models too") as refused:
        place(gone, ["new"])
    assert refused.value.rules == ("supply a/h",)
    assert check(gone, place(gone, ["new", "old"])) == ()


def test_placing_an_unknown_model_is_bad_input(running):
    with pytest.raises(InvalidInput, match="known: old, new"):
        place(running, ["ghost"])


def test_placing_every_model_is_solving(running):
    assert place(running, ["old", "new"]).replicas == solve(running).replicas


@given(problems(most_models=2))
@settings(max_examples=15, deadline=None)
def test_a_plan_in_force_can_be_planned_on(stated):
    first = solve(stated)
    again = stated.model_copy(update={"current": state_of(first)})
    plan = place(again, [model.model for model in stated.models][:1])
    assert check(again, plan) == ()
    untouched = diff(first, plan)
    assert {change.model for change in untouched.replicas} <= {"m0"}
    assert {change.model for change in untouched.traffic} <= {"m0"}
