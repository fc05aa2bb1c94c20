"""Why demand is unmet: the rules named are the ones that stand in the way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.model.planning.plan import Problem
from planner.core.index import Index
from planner.core.solution import Holding
from planner.core.unmet_reasons import explain
from planner.explain.conflict import Limit, without
from planner.plan_fit import leftover
from planner.solve import solve

REGIONS = ["a", "b", "c"]


@st.composite
def tight(draw):
    """Two models that rarely fit: every rule may bind."""
    regions = REGIONS[: draw(st.integers(1, 3))]
    return Problem.model_validate(
        {
            "regions": regions,
            "rtt_ms": [[1.0 if s == r else draw(st.sampled_from([5.0, 50.0])) for r in regions] for s in regions],
            "hardware": ["g", "h", "unused"],
            "supply": [
                {"region": r, "hardware": h, "units": draw(st.sampled_from([0.0, 1.0, 2.5])), "unit_cost": cost}
                for r in regions
                for h, cost in (("g", 1.0), ("h", 2.5))
            ]
            + [{"region": "a", "hardware": "unused", "units": 1.0, "unit_cost": 1.0}],
            "owners": [{"owner": "o0", "budget_per_hour": draw(st.sampled_from([None, 4.0]))}],
            "models": [draw(one(f"m{i}", regions)) for i in range(2)],
            "current": {
                "replicas": [{"model": "m0", "part": "p", "region": "a", "hardware": "h", "count": 1}]
                if draw(st.booleans())
                else []
            },
            "objective": {
                "latency_weight": draw(st.sampled_from([0.0, 0.001])),
                "move_cost": draw(st.sampled_from([0.0, 0.5])),
                "unmet_cost": draw(st.sampled_from([0.02, 10.0])),
            },
            "limits": {"max_moves": draw(st.sampled_from([None, 0, 2])), "time_seconds": 10.0, "gap": 0.0},
        }
    )


@st.composite
def one(draw, name, regions):
    return {
        "model": name,
        "owner": draw(st.sampled_from(["o0", "o1"])),
        "priority": draw(st.sampled_from([0.5, 2.0])),
        "latency_tolerance_ms": draw(st.sampled_from([2.0, 10.0, 100.0])),
        "survive": draw(st.sampled_from(["region", "none"])),
        "budget_per_hour": draw(st.sampled_from([None, 3.0])),
        "demand": [
            {"region": r, "qps": draw(st.sampled_from([30.0, 120.0] if r == "a" else [0.0, 30.0, 120.0]))}
            for r in regions
        ],
        "parts": [
            {
                "part": part,
                "min_replicas": draw(st.sampled_from([1, 2])),
                "options": [
                    {"hardware": h, "units": draw(st.sampled_from([0.5, 1.0])), "qps": draw(st.sampled_from([40, 100]))}
                    for h in ["g", "h"][: draw(st.integers(1, 2))]
                ],
            }
            for part in ["p", "q"][: draw(st.integers(1, 2))]
        ],
    }


def lifted(stated, model, words):
    """The problem without the rules that an unmet demand of a model names, where serving is worth any cost."""
    limits = []
    for word in words:
        rule, _, subject = word.partition(" ")
        if rule == "budget":
            limits.append(Limit(*word.rsplit(" ", 1)))
        elif rule in {"latency", "survive"}:
            limits.append(Limit(f"{rule} model", model))
        else:
            limits.append(Limit(rule, subject))
    dear = stated.objective.model_copy(update={"unmet_cost": 1000.0})
    return without(stated, limits).model_copy(update={"objective": dear})


def only_unmet_in(stated, plan, lost):
    """The problem that asks for what the plan serves, and all of this demand: what is served more is of this demand."""
    missing = {(item.model, item.region): item.qps for item in plan.unmet if item != lost}
    models = [
        model.model_copy(
            update={
                "demand": tuple(
                    d.model_copy(update={"qps": max(0.0, d.qps - missing.get((model.model, d.region), 0.0))})
                    for d in model.demand
                )
            }
        )
        for model in stated.models
    ]
    return stated.model_copy(update={"models": tuple(models)})


@given(tight())
@settings(max_examples=40, deadline=None)
def test_with_all_rules_named_out_of_the_way_more_of_the_demand_is_served(stated):
    plan = solve(stated)
    for lost in plan.unmet:
        assert not {"gap", "kept", "time_seconds"} & set(lost.rules), lost
        rest = leftover(only_unmet_in(stated, plan, lost), plan, [lost.model])
        again = solve(lifted(rest, lost.model, lost.rules))
        assert sum(item.qps for item in again.unmet) < lost.qps * (1 - 1e-6), lost


def rules(stated, plan=None):
    """By (model, region)."""
    return {(lost.model, lost.region): lost.rules for lost in (plan or solve(stated)).unmet}


def test_a_budget_that_could_not_pay_for_what_lacks_supply_is_named_with_it(problem, model):
    parts = {"p": {"h": (1.0, 100.0)}, "q": {"g": (1.0, 100.0)}}
    stated = problem(
        model("m", {"a": 200.0}, parts=parts, budget_per_hour=3.5, tolerance=2.0), supply={"a/h": 1.0, "a/g": 9.0}
    )
    assert rules(stated)["m", "a"] == ("budget model m", "supply a/h")


def test_what_stands_by_counts_with_what_serves(problem, model):
    """One replica more here and one in the other region: the budget pays for either, not for both."""
    stated = problem(model("m", {"a": 200.0}, survive="region", budget_per_hour=3.0), supply={"a/h": 9.0, "b/h": 9.0})
    assert rules(stated)["m", "a"] == ("budget model m",)


def test_supply_that_would_not_be_worth_its_cost_says_so(problem, model):
    stated = problem(model("m"), supply={"a/h": 0.5, "b/h": 0.5}, objective={"unmet_cost": 0.001})
    assert rules(stated)["m", "a"] == ("supply a/h", "supply b/h", "unmet_cost")


def test_a_replica_that_serves_less_than_it_costs_is_not_worth_it(problem, model):
    """All 1,000 QPS would be worth one replica; the 10 QPS that it does are not."""
    stated = problem(
        model("m", {"a": 1000.0}, parts={"p": {"h": (1.0, 10.0)}}), supply={"a/h": 9.0}, objective={"unmet_cost": 0.05}
    )
    assert rules(stated)["m", "a"] == ("unmet_cost",)


def test_latency_has_its_part_in_what_serving_costs(problem, model):
    stated = problem(
        model("m", {"a": 100.0}, tolerance=20.0),
        supply={"b/h": 9.0},
        objective={"unmet_cost": 0.05, "latency_weight": 0.0045},
    )
    assert rules(stated)["m", "a"] == ("unmet_cost",)


def test_hardware_that_is_nowhere_supplied_is_named_only_where_nothing_else_is(problem, model):
    parts = {"p": {"h": (1.0, 100.0), "g": (1.0, 100.0)}}
    stated = problem(model("m", {"a": 300.0}, parts=parts), supply={"a/h": 1.0, "b/h": 1.0, "a/x": 1.0})
    stated = stated.model_copy(update={"hardware": ("g", "h", "x")})
    assert rules(stated)["m", "a"] == ("supply a/h", "supply b/h")
    only_g = problem(model("m", parts={"p": {"g": (1.0, 100.0)}}), supply={"a/h": 1.0})
    only_g = only_g.model_copy(update={"hardware": ("g", "h")})
    assert rules(only_g)["m", "a"] == ("supply a/g", "supply b/g")


def test_a_region_that_is_too_far_is_named_even_where_no_region_is_near(problem, model):
    """A problem says so itself; what the others leave of one may still ask."""
    stated = problem(model("m", tolerance=0.5), supply={"a/h": 9.0})
    assert explain(Index(stated), Holding({}, {})) == {("m", "a"): ("latency a",)}
    full = problem(model("m", tolerance=0.5), supply={"a/h": 0.5})
    assert explain(Index(full), Holding({}, {})) == {("m", "a"): ("latency a", "supply a/h")}


def test_a_holding_far_from_any_rule_is_explained_at_once(problem, model):
    """Replicas too small to ever make up for what the traffic asks of them."""
    stated = problem(
        model("m", {"a": 1e9, "b": 1.0}, parts={"p": {"h": (1e-6, 1e-3)}}, survive="region"), supply={"a/h": 9.0}
    )
    found = explain(Index(stated), Holding({("m", "p", "a", "h"): 1}, {("m", "a", "a"): 1.0}))
    assert found["m", "b"]


def test_nothing_unmet_needs_no_reason(problem, model):
    stated = problem(model("m"), supply={"a/h": 9.0})
    assert explain(Index(stated), Holding({}, {("m", "a", "a"): 1.0})) == {}


def test_a_model_that_is_kept_says_so_unless_a_rule_binds(problem, model):
    stated = problem(model("m"), supply={"a/h": 9.0})
    assert explain(Index(stated), Holding({}, {}), kept=["m"]) == {("m", "a"): ("kept",)}
    full = problem(model("m"), supply={"a/h": 0.5})
    assert explain(Index(full), Holding({}, {}), kept=["m"])["m", "a"] == ("supply a/h",)
    assert explain(Index(stated), Holding({}, {}), otherwise="time_seconds") == {("m", "a"): ("time_seconds",)}


@pytest.mark.parametrize("qps", [0.5, 50.0])
def test_the_reasons_are_the_same_for_small_and_large_figures(problem, model, qps):
    """One replica does `qps` and serves a third, or two thirds, of what is asked."""

    def reasons(supply, times, counts, **fields):
        stated = problem(
            model(demand={"a": times * qps}, parts={"p": {"h": (1.0, qps)}}, **fields), supply=supply,
            regions=["a", "b", "c"],
        )  # fmt: skip
        held = {("m", "p", region, "h"): count for region, count in counts.items()}
        return explain(Index(stated), Holding(held, {("m", "a", "a"): 1 / times}))["m", "a"]

    assert reasons({"a/h": 1.0}, 1.5, {"a": 1}) == ("supply a/h",)
    assert reasons({"a/h": 2.0, "b/h": 1.0}, 3.0, {"a": 1}) == ("gap",)
    survive = {"survive": "region"}
    full = ("supply a/h", "supply b/h", "survive a", "survive b")
    assert reasons({"a/h": 1.0, "b/h": 1.0, "c/h": 0.0}, 1.5, {"a": 1, "b": 1}, **survive) == full
