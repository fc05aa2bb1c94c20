"""A plan explained: what holds each placement, what a limit is worth, what unmet demand would take."""

import pytest

from ipnext.errors import InvalidInput
from ipnext.model.planning.explanation import Explanation
from planner.explain import explanation
from planner.explain import marginal_value as worth
from planner.explain.conflict import servable
from planner.explain.explanation import explain, supply_use
from planner.explain.runner_up import bar_placement
from planner.explain.what_if import apply_changes, change_of
from planner.solve import solve

RUNNING = [{"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 1}]


def explained(stated, plan=None, **options):
    return explain(stated, plan or solve(stated), **options)


def placements(stated, **options):
    """By "part/region/hardware", of the only model."""
    (model,) = explained(stated, **options).models
    return {f"{place.part}/{place.region}/{place.hardware}": place for place in model.placements}


def rules(bindings):
    return [binding.rule for binding in bindings]


def test_a_replica_that_the_traffic_needs_names_capacity(problem, model):
    (place,) = placements(problem(model("m", {"a": 150.0}), supply={"a/h": 9.0})).values()
    assert rules(place.count_rules) == ["capacity a"]
    assert "100 QPS of the 150 QPS" in place.count_rules[0].message
    assert (place.count, place.cost_per_hour, place.replica_cost, place.replica_price) == (2, 2.0, 1.0, 0.0)


def test_a_replica_that_stands_by_names_the_region_it_stands_in_for(problem, model):
    found = placements(problem(model("m", survive="region", tolerance=2.0), supply={"a/h": 9.0, "b/h": 9.0}))
    assert rules(found["p/b/h"].count_rules) == ["survive a"]
    assert rules(found["p/a/h"].count_rules) == ["capacity a", "survive b"]


def test_a_replica_that_only_min_replicas_needs_says_so(problem, model):
    (place,) = placements(problem(model("m", {"a": 50.0}, min_replicas=2), supply={"a/h": 9.0})).values()
    assert rules(place.count_rules) == ["min_replicas a"]


def test_a_replica_that_no_rule_needs_names_none(problem, model):
    stated = problem(model("m"), supply={"a/h": 9.0})
    plan = solve(stated)
    spare = plan.model_copy(update={"replicas": (plan.replicas[0].model_copy(update={"count": 3}),)})
    (place,) = explained(stated, spare).models[0].placements
    assert place.count_rules == ()


def test_the_only_region_in_reach_is_a_reason(problem, model):
    (place,) = placements(problem(model("m", tolerance=2.0), supply={"a/h": 9.0, "b/h": 9.0})).values()
    assert rules(place.place_rules) == ["latency a", "cost"]


def test_a_cheaper_place_that_is_full_is_a_reason(problem, model):
    stated = problem(model("m"), supply={"a/h": 0.5, "b/h": 9.0}, unit_cost={"a/h": 0.5})
    (place,) = placements(stated).values()
    assert (place.region, rules(place.place_rules)) == ("b", ["supply a/h"])
    assert "50.0% cheaper, but 0.5 units are free and a replica takes 1" in place.place_rules[0].message


def test_what_runs_already_is_a_reason_where_a_move_costs(problem, model):
    stated = problem(
        model("m"),
        supply={"a/h": 9.0, "b/h": 9.0},
        unit_cost={"b/h": 0.9},
        replicas=RUNNING,
        objective={"move_cost": 0.5},
    )
    (place,) = placements(stated).values()
    assert (place.region, rules(place.place_rules)) == ("a", ["move_cost", "configuration"])
    assert place.runner_up.extra_per_hour == pytest.approx(0.4)


def test_nearness_is_a_reason_where_it_has_a_price(problem, model):
    stated = problem(
        model("m"), supply={"a/h": 9.0, "b/h": 9.0}, unit_cost={"b/h": 0.9}, objective={"latency_weight": 0.001}
    )
    (place,) = placements(stated).values()
    assert (place.region, rules(place.place_rules)) == ("a", ["latency_weight", "configuration"])


def test_the_runner_up_is_the_best_plan_without_the_placement(problem, model):
    stated = problem(
        model("m", {"a": 150.0}),
        supply={"a/h": 9.0, "b/h": 1.0, "a/g": 1.0},
        unit_cost={"a/h": 1.0, "b/h": 2.0},
        objective={"unmet_cost": 1.0},
    )
    plan = solve(stated)
    (place,) = explained(stated, plan).models[0].placements
    without = solve(apply_changes(stated, [change_of("supply", "a/h=0")]))
    assert place.runner_up.extra_per_hour == pytest.approx(without.objective - plan.objective)
    assert place.runner_up.extra_at_least == pytest.approx(place.runner_up.extra_per_hour)
    assert place.runner_up.replicas == without.replicas
    assert place.runner_up.unmet_qps == pytest.approx(50.0)
    assert place.runner_up.cost_per_hour == without.cost_per_hour


def test_only_the_parts_own_placement_is_barred(problem, model):
    parts = {"p": {"h": (1.0, 100.0), "g": (1.0, 100.0)}, "q": {"h": (1.0, 100.0)}}
    stated = problem(model("m", parts=parts), supply={"a/h": 9.0, "a/g": 9.0}, unit_cost={"a/g": 1.5})
    found = placements(stated)
    assert found["p/a/h"].runner_up.extra_per_hour == pytest.approx(0.5)
    assert {r.hardware for r in found["p/a/h"].runner_up.replicas if r.part == "q"} == {"h"}
    assert found["q/a/h"].runner_up.unmet_qps == pytest.approx(100.0)


def test_a_barred_placement_never_takes_more_than_the_supply(problem, model, monkeypatch):
    """Two parts that share hardware: what bars one of them must not let both have all of it."""
    monkeypatch.setattr("planner.explain.runner_up.MOST_PROVED", 0)
    parts = {"p": {"h": (1.0, 100.0), "g": (1.0, 100.0)}, "q": {"h": (1.0, 100.0)}}
    stated = problem(
        model("m", {"a": 200.0}, parts=parts),
        supply={"a/h": 4.0, "b/h": 3.0, "b/g": 9.0},
        unit_cost={"b/h": 2.0, "b/g": 9.0},
    )
    second = placements(stated)["p/a/h"].runner_up
    assert second.unmet_qps < 200.0
    assert sum(row.count for row in second.replicas if (row.region, row.hardware) == ("b", "h")) <= 3


def test_barring_renames_the_hardware_of_one_part_alone(problem, model):
    parts = {"p": {"h": (1.0, 100.0)}, "q": {"h": (1.0, 100.0)}}
    looser = bar_placement(problem(model("m", parts=parts), supply={"a/h": 9.0, "b/h": 8.0}), ("m", "p", "a", "h"))
    assert [part.options[0].hardware for part in looser.models[0].parts] == ["h of p", "h"]
    units = {(item.region, item.hardware): item.units for item in looser.supply}
    assert units == {("a", "h"): 9.0, ("b", "h"): 8.0, ("a", "h of p"): 0.0, ("b", "h of p"): 8.0}


def test_a_plan_that_is_not_the_models_best_says_by_how_much(problem, model):
    stated = problem(model("m"), supply={"a/h": 9.0, "b/h": 9.0}, unit_cost={"b/h": 3.0})
    dear = solve(apply_changes(stated, [change_of("supply", "a/h=0")]))
    (found,) = explained(stated, dear).models
    assert found.best.extra_per_hour == pytest.approx(-2.0)
    assert explained(stated).models[0].best.extra_per_hour == pytest.approx(0.0)


def test_a_model_of_many_placements_is_searched_without_the_reference(problem, model, monkeypatch):
    monkeypatch.setattr("planner.explain.runner_up.MOST_PROVED", 0)
    monkeypatch.setattr("planner.explain.explanation.MOST_PROVED", 0)
    stated = problem(model("m", {"a": 150.0}), supply={"a/h": 9.0, "b/h": 9.0}, unit_cost={"b/h": 2.0})
    (place,) = placements(stated).values()
    assert place.runner_up.extra_per_hour == pytest.approx(2.0)


@pytest.fixture
def crowded(problem, model):
    return problem(
        model("high", {"a": 200.0}, priority=2.0), model("low", {"a": 300.0}, priority=1.0), supply={"a/h": 3.0}
    )


def test_unmet_demand_says_what_it_costs_and_what_it_would_take(crowded):
    high, low = explained(crowded).models
    assert (high.unmet, high.servable, high.needs, high.conflict) == ((), None, (), None)
    assert low.servable is False
    assert [(lost.region, lost.qps, lost.unmet_per_hour, lost.rules) for lost in low.unmet] == [
        ("a", 200.0, 2000.0, ("supply a/h",))
    ]
    assert [(need.rule, need.limit, need.needed) for need in low.needs] == [("supply a/h", 1.0, 3.0)]
    assert {member.name for member in low.conflict.members} == {"supply a/h", "supply b/h"}
    assert servable(apply_changes(crowded, [change_of("supply", "a/h=5")])) is True


def test_demand_that_could_be_served_at_a_cost_says_so(problem, model):
    stated = problem(model("m"), supply={"a/h": 9.0}, objective={"unmet_cost": 0.001})
    (found,) = explained(stated).models
    assert [lost.rules for lost in found.unmet] == [("unmet_cost",)]
    assert (found.servable, found.needs, found.conflict) == (True, (), None)


def test_a_conflict_that_the_solver_cannot_judge_is_left_open(crowded, monkeypatch):
    monkeypatch.setattr("planner.explain.conflict.servable", lambda _: None)
    low = explained(crowded).models[1]
    assert (low.servable, low.conflict) == (None, None)
    assert low.needs


def test_the_use_and_the_price_of_every_limit_are_listed(crowded):
    found = explained(crowded)
    (use,) = found.supply
    assert (use.units, use.used, use.free, use.unit_cost) == (3.0, 3.0, 0.0, 1.0)
    assert use.price == pytest.approx(100 * 10.0 - 1.0)
    assert use.saves == pytest.approx(100 * 10.0 - 1.0)
    assert [(item.rule, item.demands, item.qps, item.unmet_per_hour) for item in found.unmet_by_rule] == [
        ("supply a/h", 1, 200.0, 2000.0)
    ]
    assert [item.model for item in found.dearest] == ["high", "low"]
    assert found.figures.objective == pytest.approx(2003.0)
    assert found.broken == ()


def test_budgets_and_moves_are_listed(problem, model):
    stated = problem(
        model("m", budget_per_hour=5.0),
        supply={"a/h": 9.0},
        owners=[{"owner": "o", "budget_per_hour": 7.0}],
        limits={"max_moves": 4},
    )
    assert [(use.rule, use.limit, use.used, use.free) for use in explained(stated).limits] == [
        ("budget model m", 5.0, 1.0, 4.0),
        ("budget owner o", 7.0, 1.0, 6.0),
        ("moves", 4.0, 1.0, 3.0),
    ]


def test_it_is_data(crowded):
    found = explained(crowded)
    assert Explanation.model_validate_json(found.model_dump_json()) == found
    assert explained(crowded) == found


def test_one_model_is_explained_where_one_is_named(crowded):
    found = explained(crowded, model="low")
    assert [item.model for item in found.models] == ["low"]
    assert "1 of 2 models" in found.covers


def test_a_large_plan_is_explained_as_a_whole_and_says_so(crowded, monkeypatch):
    monkeypatch.setattr(explanation, "MOST_EXPLAINED", 1)
    found = explained(crowded)
    assert found.models == ()
    assert "name one" in found.covers


def test_prices_of_a_large_fleet_come_from_its_own_search(crowded, monkeypatch):
    monkeypatch.setattr(explanation, "MOST_RELAXED", 1)
    monkeypatch.setattr(worth, "MOST_RELAXED", 1)
    whole = explained(crowded)
    assert whole.supply[0].price > 100
    assert "whole fleets" in whole.prices_from
    alone = explained(crowded, model="low")
    assert (alone.supply[0].price, alone.prices_from) == (None, "")
    assert explained(crowded, model="low", priced=True).supply[0].price == whole.supply[0].price


def test_a_plan_that_breaks_rules_is_explained_and_they_are_named(crowded):
    plan = solve(crowded)
    tight = apply_changes(crowded, [change_of("supply", "a/h=2")])
    found = explain(tight, plan)
    assert found.broken == ("supply a/h",)
    assert found.supply[0].free == -1.0


def test_names_that_the_problem_lacks_are_bad_input(crowded, problem, model):
    with pytest.raises(InvalidInput, match="--model: unknown model 'ghost'"):
        explained(crowded, model="ghost")
    other = solve(problem(model("other"), supply={"a/h": 1.0}))
    with pytest.raises(InvalidInput, match="a plan of this problem"):
        explain(crowded, other)


def test_supply_use_lists_every_entry_with_its_surge(crowded):
    (use,) = supply_use(crowded, solve(crowded), surge={("a", "h"): 2.0})
    assert (use.used, use.surge, use.price) == (3.0, 2.0, None)
