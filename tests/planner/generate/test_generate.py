"""planner.generate.generate draws instances that are valid, reproducible and as tight as asked."""

from collections import defaultdict

import numpy as np
import pytest

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import Plan, Problem, SolverInfo
from planner.generate.generate import generate
from planner.io.problem import validate
from planner.solve import solve
from planner.verify.plan_checker import check

SIZES = [
    {"models": 1},
    {"models": 3, "regions": 1, "hardware": 1},
    {"models": 5, "regions": 2, "hardware": 3},
    {"models": 40, "regions": 7, "hardware": 10},
    {"models": 300},
]


def as_plan(problem: Problem) -> Plan:
    """The current placement as a plan that serves everything."""
    units = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
    price = {(s.region, s.hardware): s.unit_cost for s in problem.supply}
    cost = sum(
        r.count * units[r.model, r.part, r.hardware] * price[r.region, r.hardware] for r in problem.current.replicas
    )
    return Plan(
        status="feasible",
        objective=cost,
        bound=0.0,
        gap=1.0 if cost else 0.0,
        bound_covers="",
        cost_per_hour=cost,
        replicas=problem.current.replicas,
        traffic=problem.current.traffic,
        solver=SolverInfo(method="reference", seconds=0.0),
    )


def use_by_kind(problem: Problem) -> dict[str, float]:
    """Units that the current placement takes of those supplied."""
    units = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
    taken, supplied = defaultdict(float), defaultdict(float)
    for r in problem.current.replicas:
        taken[r.hardware] += r.count * units[r.model, r.part, r.hardware]
    for item in problem.supply:
        supplied[item.hardware] += item.units
    return {kind: taken[kind] / supplied[kind] for kind in problem.hardware if supplied[kind]}


def demand_of(problem: Problem) -> dict[tuple[str, str], float]:
    return {(m.model, d.region): d.qps for m in problem.models for d in m.demand}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("supply_use", [0.5, 0.98, 1.3])
def test_every_problem_is_valid(size, supply_use):
    validate(generate(**size, supply_use=supply_use, seed=1, current=True, demand_noise=0.2))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("supply_use", [0.7, 0.98, 1.0])
def test_up_to_a_use_of_one_the_current_placement_is_a_plan_with_nothing_unmet(size, supply_use):
    problem = generate(**size, supply_use=supply_use, seed=2, current=True)
    assert check(problem, as_plan(problem)) == ()


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not():
    text = generate(models=30, seed=7, current=True, demand_noise=0.1).model_dump_json()
    assert generate(models=30, seed=7, current=True, demand_noise=0.1).model_dump_json() == text
    assert generate(models=30, seed=8, current=True, demand_noise=0.1).model_dump_json() != text


@pytest.mark.parametrize("supply_use", [0.7, 0.9, 0.98])
def test_supply_use_is_what_the_reference_takes_of_each_kind(supply_use):
    for kind, use in use_by_kind(generate(models=600, supply_use=supply_use, current=True)).items():
        assert use == pytest.approx(supply_use, rel=0.02), kind


def test_above_a_use_of_one_the_solver_leaves_demand_unmet():
    assert solve(generate(models=4, regions=2, hardware=2, supply_use=1.3, seed=1)).unmet


def test_above_a_use_of_one_the_current_placement_keeps_to_the_supply():
    problem = generate(models=100, supply_use=1.3, current=True)
    broken = {violation.rule for violation in check(problem, as_plan(problem))}
    assert problem.current.replicas
    assert broken == {"served", "survive"}  # of the models that did not fit


def test_noise_changes_each_demand_within_its_range_and_nothing_else():
    calm, noisy = generate(models=50, seed=4, current=True), generate(models=50, seed=4, current=True, demand_noise=0.3)
    before, after = demand_of(calm), demand_of(noisy)
    factors = np.array(list(after.values())) / np.array(list(before.values()))
    assert before.keys() == after.keys()
    assert 0.69 < factors.min() < 0.75
    assert 1.25 < factors.max() < 1.31
    assert noisy.supply == calm.supply
    assert noisy.current == calm.current


def test_without_current_the_same_instance_runs_nothing_and_starts_are_free():
    bare, running = generate(models=20, seed=5), generate(models=20, seed=5, current=True)
    assert not bare.current.replicas
    assert bare.objective.move_cost == 0
    assert running.objective.move_cost == 0.05
    assert (bare.models, bare.supply) == (running.models, running.supply)


def test_an_instance_looks_like_a_fleet():
    problem = generate(models=1000, seed=6, current=True)
    rtt = np.array(problem.rtt_ms)
    totals = np.sort([sum(d.qps for d in m.demand) for m in problem.models])[::-1]
    assert (rtt == rtt.T).all()
    assert set(np.diag(rtt)) == {1.0}
    assert rtt[~np.eye(len(rtt), dtype=bool)].min() >= 10
    assert rtt.max() <= 250
    assert totals[:100].sum() > 0.4 * totals.sum()
    assert {len(m.parts) for m in problem.models} == {1, 2, 3}
    assert {len(p.options) for m in problem.models for p in m.parts} == {1, 2, 3}
    assert {p.min_replicas for m in problem.models for p in m.parts} == {1, 2}
    assert 0.4 < np.mean([m.survive == "region" for m in problem.models]) < 0.6
    assert min(len(m.demand) for m in problem.models) == 1
    assert max(len(m.demand) for m in problem.models) == len(problem.regions)


def test_figures_are_short():
    problem = generate(models=100, seed=3, demand_noise=0.1)
    figures = [d.qps for m in problem.models for d in m.demand]
    figures += [o.qps for m in problem.models for p in m.parts for o in p.options]
    figures += [item.unit_cost for item in problem.supply]
    assert max(len(f"{figure:.12g}".replace(".", "").strip("0")) for figure in figures) <= 3


@pytest.mark.parametrize("seed", range(4))
def test_every_user_reaches_a_region_that_has_hardware_for_all_parts(seed):
    problem = generate(models=300, regions=5, hardware=12, seed=seed)
    has = defaultdict(set)
    for item in problem.supply:
        has[item.region].add(item.hardware)
    for model in problem.models:
        for demand in model.demand:
            row = problem.rtt_ms[problem.regions.index(demand.region)]
            near = [r for r, ms in zip(problem.regions, row, strict=True) if ms <= model.latency_tolerance_ms]
            assert any(all(has[r] & {o.hardware for o in p.options} for p in model.parts) for r in near)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", 0),
        ("models", 2.5),
        ("models", True),
        ("regions", 0),
        ("hardware", 51),
        ("supply_use", 0.0),
        ("supply_use", float("nan")),
        ("supply_use", "0.8"),
        ("seed", -1),
        ("demand_noise", 1.0),
        ("demand_noise", -0.1),
    ],
)
def test_a_bad_argument_is_named_with_what_is_allowed(field, value):
    with pytest.raises(InvalidInput, match=f"{field}: .*allowed: ") as caught:
        generate(**{"models": 3, field: value})
    assert caught.value.field == field
    assert caught.value.allowed
