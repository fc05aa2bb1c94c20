"""Each rule of the checker is broken on purpose."""

import pytest

from ipnext.model.plan import Plan, ReplicaCount, TrafficShare, Unmet
from planner.solution import check
from planner.solve import solve


@pytest.fixture(scope="module")
def stated(problem, model):
    return problem(
        model("m", {"a": 150.0, "b": 50.0}, survive="region", budget_per_hour=8.0, min_replicas=2, tolerance=10.0),
        model("n", {"a": 90.0}, tolerance=5.0, parts={"p": {"h": (1.0, 100.0)}, "q": {"g": (2.0, 50.0)}}),
        supply={"a/h": 4.0, "b/h": 3.0, "c/h": 2.0, "a/g": 4.0},
        regions=["a", "b", "c"],
        owners=[{"owner": "o", "budget_per_hour": 20.0}],
        limits={"max_moves": 12},
        objective={"latency_weight": 0.001, "move_cost": 0.1, "unmet_cost": 10.0},
    )


@pytest.fixture(scope="module")
def plan(stated):
    return solve(stated)


def changed(plan: Plan, **fields) -> Plan:
    return Plan.model_construct(**{**{name: getattr(plan, name) for name in Plan.model_fields}, **fields})


def counts(plan, **by_key):
    kept = {(r.model, r.part, r.region, r.hardware): r.count for r in plan.replicas}
    kept |= {tuple(key.split("_")): count for key, count in by_key.items()}
    return tuple(
        ReplicaCount.model_construct(model=m, part=p, region=r, hardware=h, count=count)
        for (m, p, r, h), count in kept.items()
    )


def rules(stated, plan):
    return {violation.rule for violation in check(stated, plan)}


def test_the_solved_plan_breaks_nothing(stated, plan):
    assert check(stated, plan) == ()
    assert plan.unmet == ()


def test_shares_that_do_not_sum_to_one(stated, plan):
    assert "served" in rules(stated, changed(plan, traffic=plan.traffic[1:]))


def test_unmet_that_hides_served_demand(stated, plan):
    lost = (Unmet(model="m", region="a", qps=10.0, rules=("supply a/h",)),)
    assert "served" in rules(stated, changed(plan, unmet=lost))


def test_unmet_above_the_demand_or_without_a_rule(stated, plan):
    assert "unmet" in rules(stated, changed(plan, unmet=(Unmet(model="m", region="a", qps=151.0, rules=("x",)),)))
    assert "unmet" in rules(stated, changed(plan, unmet=(Unmet(model="m", region="a", qps=1.0, rules=()),)))


def test_traffic_beyond_the_tolerance(stated, plan):
    far = tuple(t.model_copy(update={"to": "b"}) if t.model == "n" else t for t in plan.traffic)
    assert {"latency", "capacity"} <= rules(stated, changed(plan, traffic=far))


def test_more_load_than_replicas(stated, plan):
    assert "capacity" in rules(stated, changed(plan, replicas=counts(plan, n_q_a_g=1)))


def test_a_region_too_few_to_survive(problem, model):
    stated = problem(model("m", {"a": 100.0}, survive="region"), supply={"a/h": 4.0, "b/h": 4.0})
    alone = solve(stated.model_copy(update={"models": (stated.models[0].model_copy(update={"survive": "none"}),)}))
    assert rules(stated, alone) == {"survive"}


def test_fewer_replicas_than_the_least(problem, model):
    stated = problem(model("m", {"a": 100.0}, min_replicas=2), supply={"a/h": 4.0})
    one = solve(stated.model_copy(update={"models": (problem(model("m"), supply={"a/h": 1.0}).models[0],)}))
    assert rules(stated, one) == {"min_replicas"}


def test_more_units_than_there_are(stated, plan):
    assert "supply" in rules(stated, changed(plan, replicas=counts(plan, n_p_a_h=50)))


def test_replicas_where_nothing_is_supplied(stated, plan):
    assert "supply" in rules(stated, changed(plan, replicas=counts(plan, n_q_c_g=1)))


def test_a_model_and_an_owner_above_their_budgets(stated, plan):
    found = check(stated, changed(plan, replicas=counts(plan, m_p_a_h=9, n_q_a_g=9)))
    assert {v.subject for v in found if v.rule == "budget"} == {"model m", "owner o"}


def test_more_replicas_started_than_allowed(stated, plan):
    strict = stated.model_copy(update={"limits": stated.limits.model_copy(update={"max_moves": 1})})
    assert rules(strict, plan) == {"moves"}


@pytest.mark.parametrize(("field", "rule"), [("objective", "objective"), ("cost_per_hour", "cost"), ("gap", "gap")])
def test_figures_that_the_placements_do_not_give(stated, plan, field, rule):
    assert rule in rules(stated, changed(plan, **{field: getattr(plan, field) + 1.0}))


def test_a_bound_above_the_objective(stated, plan):
    assert "bound" in rules(stated, changed(plan, bound=plan.objective + 1.0))


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_counts_that_are_not_whole(stated, plan, count):
    assert rules(stated, changed(plan, replicas=counts(plan, m_p_a_h=count))) == {"counts"}


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fractions_out_of_range(stated, plan, fraction):
    odd = TrafficShare.model_construct(model="m", origin="a", to="a", fraction=fraction)
    assert "counts" in rules(stated, changed(plan, traffic=(odd,)))


@pytest.mark.parametrize("key", ["x_p_a_h", "m_x_a_h", "m_p_x_h", "m_p_a_g"])
def test_names_that_the_problem_does_not_have(stated, plan, key):
    assert rules(stated, changed(plan, replicas=counts(plan, **{key: 1}))) == {"names"}


def test_entries_that_stand_twice(stated, plan):
    assert rules(stated, changed(plan, replicas=plan.replicas * 2)) == {"names"}
    assert rules(stated, changed(plan, traffic=plan.traffic * 2)) == {"names"}
    assert rules(stated, changed(plan, unmet=(Unmet(model="m", region="c", qps=1.0, rules=("x",)),))) == {"names"}
