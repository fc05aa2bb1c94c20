"""Each rule of the checker is broken on purpose, and a slow second reading of the rules finds what it finds."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ipnext.model.planning.plan import Plan, ReplicaCount, TrafficShare, Unmet
from planner.solve import solve
from planner.verify.plan_checker import check
from tests.planner.slow_rules import slowly
from tests.planner.strategies import plans, problems, settled


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


def test_a_huge_region_does_not_hide_what_the_others_lack(problem, model):
    """The whole throughput less the largest region's would be 128 here, by rounding."""
    stated = problem(
        model("m", {"a": 100.0}, survive="region", parts={"p": {"h": (1e-9, 1e11), "g": (1.0, 99.0)}}),
        supply={"a/h": 1e6, "b/g": 9.0},
        unit_cost={"a/h": 0.0, "b/g": 0.0},
    )
    plan = solve(stated.model_copy(update={"models": (stated.models[0].model_copy(update={"survive": "none"}),)}))
    held = {("a", "h"): 10**7, ("b", "g"): 1}
    rows = [ReplicaCount(model="m", part="p", region=r, hardware=h, count=n) for (r, h), n in held.items()]
    plan = changed(plan, replicas=tuple(rows), cost_per_hour=0.0, objective=0.0, bound=0.0, gap=0.0)
    assert [(v.rule, v.subject) for v in check(stated, plan)] == [("survive", "m/p without a")]


def test_a_row_of_no_replicas_may_name_hardware_without_an_option(stated, plan):
    assert check(stated, changed(plan, replicas=counts(plan, m_p_a_g=0))) == ()


def test_a_count_beyond_all_sums_is_no_count(stated, plan):
    for count in (10**13, 10**400):
        (found,) = check(stated, changed(plan, replicas=counts(plan, m_p_a_h=count)))
        assert (found.rule, found.subject) == ("counts", "m/p/a/h")
        assert len(found.message) < 120


def test_names_with_slashes_are_told_apart(problem, model):
    stated = problem(model("m", parts={"p": {"h": (1.0, 100.0)}, "p/a": {"h": (1.0, 100.0)}}), supply={"a/h": 4.0})
    plan = solve(stated.model_copy(update={"regions": ("a", "b")}))
    rows = [
        ReplicaCount(model="m", part="p", region="a/b", hardware="h", count=0),
        ReplicaCount(model="m", part="p/a", region="b", hardware="h", count=0),
    ]
    assert {v.message for v in check(stated, changed(plan, replicas=(*plan.replicas, *rows)))} == {
        "no such model, part, region or option in the problem"
    }


def test_what_the_problem_does_not_know_of_itself_is_no_traceback(problem, model):
    """A fleet may lose a region or a kind that a model still names; then the rules say so."""
    stated = problem(model("m"), supply={"a/h": 4.0})
    plan = solve(stated)
    (only,) = stated.models
    lost = only.model_copy(update={"demand": (only.demand[0], only.demand[0].model_copy(update={"region": "gone"}))})
    found = check(stated.model_copy(update={"models": (lost,), "hardware": ("other",)}), plan)
    assert ("served", "m from gone") in {(v.rule, v.subject) for v in found}


@given(settled())
@settings(max_examples=60, deadline=None)
def test_a_plan_at_its_limits_breaks_nothing(drawn):
    assert check(*drawn) == ()


def tightened(problem, plan, draw):
    """One limit of the problem moved past the plan: the rule it breaks, and the problem. None where no limit can be."""
    model, mine = problem.models[0], [row for row in plan.replicas if row.model == "m0"]
    ms = {(s, r): problem.rtt_ms[i][j] for i, s in enumerate(problem.regions) for j, r in enumerate(problem.regions)}
    far = max((ms[t.origin, t.to] for t in plan.traffic if t.model == "m0" and t.fraction), default=0.0)
    spent = sum(row.count for row in mine)
    cell = (mine[0].region, mine[0].hardware) if mine else None
    changes = {
        "latency": ({"latency_tolerance_ms": far / 2}, far),
        "min_replicas": ({"parts": tuple(p.model_copy(update={"min_replicas": 10_000}) for p in model.parts)}, spent),
        "budget": ({"budget_per_hour": 0.0}, spent),
    }
    rule = draw(st.sampled_from([*changes, "supply", "moves", "budget owner"]))
    if rule in changes:
        update, possible = changes[rule]
        models = (model.model_copy(update=update), *problem.models[1:])
        return (rule, problem.model_copy(update={"models": models})) if possible else None
    if rule == "supply":
        less = tuple(
            item.model_copy(update={"units": 0.0}) if (item.region, item.hardware) == cell else item
            for item in problem.supply
        )
        return (rule, problem.model_copy(update={"supply": less})) if cell else None
    if rule == "budget owner":
        poor = tuple(owner.model_copy(update={"budget_per_hour": 0.0}) for owner in problem.owners)
        return ("budget", problem.model_copy(update={"owners": poor})) if spent else None
    running = problem.current.model_copy(update={"replicas": ()})
    most = problem.limits.model_copy(update={"max_moves": sum(row.count for row in plan.replicas) - 1})
    still = problem.objective.model_copy(update={"move_cost": 0.0})
    return (
        (rule, problem.model_copy(update={"current": running, "limits": most, "objective": still})) if spent else None
    )


@given(settled(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_limit_moved_past_the_plan_is_found_under_its_rule(drawn, data):
    problem, plan = drawn
    found = tightened(problem, plan, data.draw)
    assume(found is not None)
    rule, stated = found
    assert {violation.rule for violation in check(stated, plan)} - {"objective", "bound", "gap"} == {rule}


def worsened(plan, draw):
    """One row or figure of the plan made worse: the rule it breaks, and the plan.

    None where the plan has no such row.
    """
    kind = draw(st.sampled_from(["traffic", "replicas", "unmet", "rules", "ghost", "twice", "figure"]))
    if kind == "figure":
        name = draw(st.sampled_from(["cost_per_hour", "objective", "gap", "bound"]))
        base = plan.objective if name == "bound" else getattr(plan, name)
        figure = base + draw(st.sampled_from([0.01, 5.0])) * (1 + plan.objective)
        rule = {"cost_per_hour": "cost"}.get(name, name)
        return rule, plan.model_copy(update={name: figure})
    rows = {"rules": "unmet", "ghost": "replicas", "twice": "traffic"}.get(kind, kind)
    given = list(getattr(plan, rows))
    if not given:
        return None
    at = draw(st.integers(0, len(given) - 1))
    row = given[at]
    change = {
        "traffic": ("served", {"fraction": row.fraction / 2} if rows == "traffic" else {}),
        "replicas": ("capacity", {"count": 0}),
        "unmet": ("served", {"qps": row.qps / 2} if rows == "unmet" else {}),
        "rules": ("unmet", {"rules": ()}),
        "ghost": ("names", {"region": "ghost"}),
        "twice": ("names", {}),
    }
    rule, update = change[kind]
    given[at] = row.model_copy(update=update)
    return rule, plan.model_copy(update={rows: tuple(given + ([row] if kind == "twice" else []))})


@given(settled(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_row_made_worse_is_found_under_its_rule(drawn, data):
    problem, plan = drawn
    found = worsened(plan, data.draw)
    assume(found is not None)
    rule, worse = found
    demand = {(m.model, d.region): d.qps for m in problem.models for d in m.demand}
    loaded = {(t.model, t.to) for t in plan.traffic if t.fraction and demand[t.model, t.origin]}
    gone = [row for row in plan.replicas if row not in worse.replicas]
    if rule == "capacity":
        assume(all((row.model, row.region) in loaded for row in gone))
    if rule == "served":
        changed_rows = [row for row in plan.traffic if row not in worse.traffic]
        assume(all(demand[row.model, row.origin] for row in changed_rows))
    assert rule in {violation.rule for violation in check(problem, worse)}


@given(settled(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_model_that_has_to_survive_in_one_region_is_found(drawn, data):
    problem, plan = drawn
    model = problem.models[0]
    region = data.draw(st.sampled_from(problem.regions))
    others = tuple(row for row in plan.replicas if row.model != "m0" or row.region == region)
    asking = model.model_copy(update={"survive": "region"})
    stated = problem.model_copy(update={"models": (asking, *problem.models[1:])})
    found = {violation.subject for violation in check(stated, plan.model_copy(update={"replicas": others}))}
    assert {f"m0/{part.part} without {region}" for part in model.parts} <= found


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_slow_reading_of_the_rules_finds_the_same(data):
    problem = data.draw(problems())
    plan = data.draw(plans(problem))
    assert [(v.rule, v.subject) for v in check(problem, plan)] == list(slowly(problem, plan))


@pytest.mark.parametrize(("scale", "excess", "broken"), [(1, 0.5e-6, False), (1, 1.5e-6, True), (100, 50e-6, False)])
def test_a_rule_is_broken_beyond_a_millionth_of_its_limit(problem, model, scale, excess, broken):
    """Of the limit, and absolutely if the limit is below 1."""
    stated = problem(model(demand={"a": 100.0 * scale}), supply={"a/h": float(scale)})
    less = tuple(row.model_copy(update={"units": row.units - excess}) for row in stated.supply)
    found = check(stated.model_copy(update={"supply": less}), solve(stated))
    assert {violation.rule for violation in found} == ({"supply"} if broken else set())


@pytest.mark.parametrize("qps", [0.5, 1.0, 50.0])
def test_demand_that_is_all_unmet_breaks_nothing(problem, model, qps):
    stated = problem(model(demand={"a": qps}), supply={"a/h": 0.5})
    assert check(stated, solve(stated)) == ()
