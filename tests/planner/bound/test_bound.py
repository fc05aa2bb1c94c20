"""The lower bound on one priced model: never above what a plan costs, and close to it on average."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from planner.bound.bound import Hints, lower_bounds, total_bound
from planner.core.arrays import FleetArrays, Ints, Prices
from planner.fleet.pricing import POLISHED, best_columns
from planner.fleet.solver import nothing
from planner.generate.generate import generate
from tests.planner.exact import least_cost

EXACT_SECONDS = 4.0
"""The program may end early: then what it found so far is above the optimum, and tells less."""
CLOSE = 0.06
"""Of the optimum: by so much may the bounds of the drawn sample fall short on average."""
BRANCHES = 24


def _drawn(seed: int, models: int = 3) -> tuple[FleetArrays, Prices]:
    """A small fleet with every rule in play, and prices of every shared limit."""
    draw = np.random.default_rng(seed)
    regions, kinds = int(draw.integers(2, 6)), int(draw.integers(1, 4))
    parts = draw.integers(1, 4, models)
    options = draw.integers(1, kinds + 1, parts.sum())
    hardware = np.concatenate([draw.choice(kinds, n, replace=False) for n in options])
    qps = np.round(draw.uniform(0, 100, (models, regions)) * (draw.random((models, regions)) < 0.6), 1)
    rtt = draw.uniform(5, 100, (regions, regions))
    supply = draw.choice([0.0, 2.0, 6.0, 40.0], (regions, kinds))
    running = draw.integers(0, 4, (len(hardware), regions)) * (draw.random((len(hardware), regions)) < 0.3)
    arrays = FleetArrays(
        supply=supply,
        unit_cost=np.round(draw.uniform(0.5, 4, (regions, kinds)), 2),
        rtt=(rtt + rtt.T) / 2 * (1 - np.eye(regions)) + np.eye(regions),
        qps=qps,
        tolerance=draw.choice([0.5, 20.0, 50.0, 200.0], models),
        missed=draw.choice([0.02, 0.5, 10.0], models),
        survives=draw.random(models) < 0.5,
        model_budget=np.full(models, np.inf),
        owner=np.zeros(models, np.int64),
        owner_budget=np.full(1, np.inf),
        part_start=np.concatenate([[0], np.cumsum(parts)]),
        part_min=draw.choice([0, 1, 1, 2, 3], parts.sum()),
        option_start=np.concatenate([[0], np.cumsum(options)]),
        option_hardware=hardware,
        option_units=draw.choice([0.5, 1.0, 2.0], len(hardware)),
        option_qps=np.round(draw.uniform(4, 120, len(hardware)), 1),
        current=running.astype(np.int64),
        latency_weight=float(draw.choice([0.0, 0.0, 2e-4])),
        move_cost=float(draw.choice([0.0, 0.3])),
        max_moves=np.inf,
    )
    price = draw.choice([0.0, 0.0, 0.7], (regions, kinds)) * (supply > 0)
    return arrays, Prices(price, np.array([draw.choice([0.0, 0.2])]), float(draw.choice([0.0, 0.4])))


@st.composite
def _fleets(draw: DrawFn) -> tuple[FleetArrays, Prices]:
    """The same, of one model, with figures that hypothesis makes round, equal or extreme."""
    arrays, prices = _drawn(draw(st.integers(0, 10_000)), models=1)
    regions, options = arrays.regions, len(arrays.option_units)
    figure = st.sampled_from([1.0, 10.0, 10.000001, 33.3, 100.0])
    changed = dataclasses.replace(
        arrays,
        qps=np.array([draw(st.lists(st.sampled_from([0.0, 10.0, 30.0, 99.9]), min_size=regions, max_size=regions))]),
        option_qps=np.array(draw(st.lists(figure, min_size=options, max_size=options))),
        missed=np.array([draw(st.sampled_from([0.0, 0.05, 1.0, 50.0]))]),
        survives=np.array([draw(st.booleans())]),
    )
    return changed, prices


def _priced(arrays: FleetArrays, prices: Prices, effort: int) -> np.ndarray:
    """(M,) $/h at the prices of the best configuration found of each model."""
    columns = best_columns(arrays, prices, np.arange(arrays.models), effort=effort)
    units = (columns.use(arrays) @ prices.supply.ravel()) + columns.hardware * prices.owner[arrays.owner]
    return columns.cost + units + columns.started * prices.moves


def _branches(arrays: FleetArrays, nodes: int = BRANCHES) -> Ints:
    return np.full(arrays.models, nodes)


@pytest.fixture(scope="module")
def sample() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Plain bounds, bounds by branches and optima of the models of some drawn fleets."""
    found = []
    for seed in range(40):
        arrays, prices = _drawn(seed)
        optimum = np.array([least_cost(arrays, prices, m, EXACT_SECONDS)[0] for m in range(arrays.models)])
        plain = lower_bounds(arrays, prices)
        found.append((plain, lower_bounds(arrays, prices, nodes=_branches(arrays)), optimum))
    return found


def test_no_bound_exceeds_the_optimum(sample: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    for plain, branched, optimum in sample:
        assert np.all(plain <= optimum * (1 + 1e-6) + 1e-9)
        assert np.all(branched <= optimum * (1 + 1e-6) + 1e-9)


def test_the_bounds_are_close_on_average(sample: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    plain, branched, optimum = (np.concatenate(figures) for figures in zip(*sample, strict=True))
    some = optimum > 0
    assert np.mean(1 - plain[some] / optimum[some]) <= CLOSE
    assert np.mean(1 - branched[some] / optimum[some]) <= CLOSE


def test_branches_close_a_good_part_of_the_gap_and_never_open_it() -> None:
    arrays = FleetArrays.of(generate(models=24, regions=10, hardware=4, supply_use=0.9, seed=2))
    prices = nothing(arrays)
    seen = _priced(arrays, prices, POLISHED + 200)
    plain, branched = lower_bounds(arrays, prices), lower_bounds(arrays, prices, nodes=_branches(arrays, 60))
    assert np.all(branched >= plain * (1 - 1e-9))
    assert (seen - branched).sum() <= 0.7 * (seen - plain).sum()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(_fleets())
def test_no_bound_exceeds_the_optimum_of_round_and_extreme_figures(fleet: tuple[FleetArrays, Prices]) -> None:
    arrays, prices = fleet
    optimum, _ = least_cost(arrays, prices, 0, EXACT_SECONDS)
    for nodes in (0, BRANCHES):
        assert lower_bounds(arrays, prices, nodes=_branches(arrays, nodes))[0] <= optimum * (1 + 1e-6) + 1e-9


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(_fleets(), st.sampled_from([1, 40, POLISHED + 200]))
def test_no_bound_exceeds_the_cost_of_any_configuration_seen(fleet: tuple[FleetArrays, Prices], effort: int) -> None:
    arrays, prices = fleet
    seen = _priced(arrays, prices, effort)
    for hints in (None, Hints(upper=seen)):
        assert np.all(lower_bounds(arrays, prices, hints, nodes=_branches(arrays)) <= seen * (1 + 1e-6) + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_model_has_the_same_bound_whatever_else_is_bounded(seed: int) -> None:
    arrays, prices = _drawn(seed)
    together = lower_bounds(arrays, prices, nodes=_branches(arrays))
    for m in range(arrays.models):
        alone = np.where(np.arange(arrays.models) == m, BRANCHES, 0)
        assert lower_bounds(arrays, prices, nodes=alone)[m] == together[m]


def test_demand_that_nobody_can_serve_costs_what_it_misses() -> None:
    arrays, _ = _drawn(3)
    empty = dataclasses.replace(arrays, supply=np.zeros_like(arrays.supply))
    assert lower_bounds(empty, nothing(empty)) == pytest.approx(arrays.qps.sum(axis=1) * arrays.missed)


def test_a_price_on_a_limit_without_end_bounds_nothing() -> None:
    arrays, _ = _drawn(0)
    priced = Prices(np.zeros_like(arrays.supply), np.ones(1), 0.0)
    assert total_bound(arrays, priced, lower_bounds(arrays, priced)) == -np.inf


def test_a_group_of_regions_need_not_serve_what_the_whole_supply_cannot() -> None:
    """613 QPS want a region whose 25 and 15 units serve 499.2 at most; the optimum leaves 113.8 unmet."""
    arrays = FleetArrays(
        supply=np.array([[0.0, 0.0], [25.0, 15.0]]),
        unit_cost=np.array([[0.661, 0.698], [0.724, 0.764]]),
        rtt=np.array([[1.0, 80.0], [80.0, 1.0]]),
        qps=np.array([[613.0, 0.0]]),
        tolerance=np.array([100.0]),
        missed=np.array([10.0]),
        survives=np.array([False]),
        model_budget=np.array([np.inf]),
        owner=np.zeros(1, np.int64),
        owner_budget=np.array([np.inf]),
        part_start=np.array([0, 3]),
        part_min=np.ones(3, np.int64),
        option_start=np.array([0, 2, 3, 5]),
        option_hardware=np.array([0, 1, 0, 0, 1]),
        option_units=np.array([1.0, 1.0, 2.0, 1.0, 1.0]),
        option_qps=np.array([56.4, 54.9, 41.6, 105.0, 109.0]),
        current=np.zeros((5, 2), np.int64),
        latency_weight=0.0,
        move_cost=0.0,
        max_moves=np.inf,
    )
    optimum, _ = least_cost(arrays, nothing(arrays), 0)
    assert optimum == pytest.approx(1166.796)
    assert lower_bounds(arrays, nothing(arrays))[0] <= optimum * (1 + 1e-9)
    assert lower_bounds(arrays, nothing(arrays), nodes=np.array([BRANCHES]))[0] <= optimum * (1 + 1e-9)
