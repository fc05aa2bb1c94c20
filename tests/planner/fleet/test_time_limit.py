"""After its time limit a search of few models does the least that gives a plan. Clocks are of the tests."""

from types import SimpleNamespace

import numpy as np
import pytest

from ipnext.model.planning.plan import CurrentState, Problem
from planner import solve as entry
from planner.core.arrays import FleetArrays
from planner.fleet import column_generation, rounding
from planner.fleet import solver as scale
from planner.fleet.column_generation import SearchEffort, search
from planner.fleet.rounding import EASE_PASSES, Improvement
from planner.generate.generate import generate
from planner.verify.plan_checker import check

MODULES = (column_generation, rounding, scale)


@pytest.fixture
def problem() -> Problem:
    """Ten seconds by the clock of the test."""
    found = generate(models=6, regions=4, hardware=3, supply_use=0.9, seed=3)
    return found.model_copy(update={"limits": found.limits.model_copy(update={"time_seconds": 10.0, "gap": 0.0})})


@pytest.fixture
def clock(monkeypatch):
    """Let the planner's clock show these seconds, one after the other, and the last one from then on."""

    def show(*seconds):
        shown = iter(seconds)
        last = [0.0]

        def monotonic():
            last[0] = next(shown, last[0])
            return last[0]

        for module in MODULES:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))

    return show


@pytest.fixture
def steps(monkeypatch):
    """The efforts of the steps of a search: of configurations, and of bounds."""
    columns, bounds = [], []
    best_columns, lower_bounds = scale.best_columns, scale.lower_bounds

    def configure(*arguments, effort, **options):
        columns.append(effort)
        return best_columns(*arguments, effort=effort, **options)

    def bound(arrays, prices, hints, effort, *nodes):
        bounds.append(effort)
        return lower_bounds(arrays, prices, hints, effort, *nodes)

    monkeypatch.setattr(scale, "best_columns", configure)
    monkeypatch.setattr(scale, "lower_bounds", bound)
    return SimpleNamespace(columns=columns, bounds=bounds)


def test_no_round_of_a_price_search_begins_after_the_time_is_over(problem, clock):
    arrays = FleetArrays.of(problem)
    every = np.arange(arrays.models, dtype=np.int64)
    endless = SearchEffort(rounds=8, effort=1, enough=-1.0)
    clock(*count_to(20))
    assert search(arrays, every, endless).rounds == 8
    clock(*count_to(20))
    assert search(arrays, every, endless, ends=2.5).rounds == 3


def count_to(number):
    return [float(second) for second in range(1, number)]


def test_a_search_in_time_takes_every_step(problem, clock, steps):
    clock(0.0)
    answer = scale.solve_fleet(problem)
    assert not answer.out_of_time
    assert answer.rounds > 1
    assert steps.columns == [300, 600]
    assert steps.bounds == [scale.EFFORT_PROOF, scale.EFFORT_PROOF]


def test_a_search_out_of_time_takes_the_least_steps_and_gives_a_valid_plan(problem, clock, steps):
    clock(0.0, 11.0)
    plan = entry.solve(problem, method="fleet")
    assert plan.status == "time_limit"
    assert plan.replicas
    assert not check(problem, plan)
    assert 0 < plan.bound <= plan.objective
    assert plan.solver.iterations == 1
    assert steps.columns == [scale.EFFORT_QUICK]
    assert steps.bounds == [scale.EFFORT_PROOF_ADAPTED]


def test_models_that_run_are_adapted_alone_if_the_time_is_over(problem, clock, steps):
    clock(0.0)
    plan = entry.solve(problem, method="fleet")
    current = CurrentState(replicas=plan.replicas, traffic=plan.traffic)
    running = problem.model_copy(update={"current": current})
    steps.columns.clear()
    clock(0.0, 11.0)
    adapted = entry.solve(running, method="fleet")
    assert not check(running, adapted)
    assert set(steps.columns) <= {0, scale.EFFORT_DEAR}, "nothing is planned from scratch"


def test_among_many_models_prices_and_proof_are_made_whatever_the_time(problem, clock, steps, monkeypatch):
    monkeypatch.setattr(scale, "FEW", 1)
    clock(0.0, 11.0)
    answer = scale.solve_fleet(problem)
    assert answer.out_of_time
    assert answer.rounds > 1
    assert steps.bounds == [scale.EFFORT_PROOF, scale.EFFORT_PROOF]


class Eased(Improvement):
    """Three limits stay exceeded whatever is moved."""

    def __init__(self):
        self.tried = []

    def find_exceeded(self):
        return [0, 1, 2]

    def _ease(self, limit, attempts):  # noqa: ARG002
        self.tried.append(limit)


def test_no_further_limit_is_eased_after_the_time_is_over(clock):
    clock(*count_to(20))
    eased = Eased()
    eased.ease(5)
    assert eased.tried == [0, 1, 2] * EASE_PASSES
    clock(*count_to(20))
    late = Eased()
    late.ease(5, ends=2.5)
    assert late.tried == [0, 1]
