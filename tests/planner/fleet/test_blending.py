"""A split model gets the mean of its configurations, in whole replicas, and keeps every rule of its own."""

import numpy as np
import pytest

from ipnext.model.planning.plan import Problem
from planner.core.arrays import FleetArrays, Floats, Ints, Prices
from planner.fleet.blending import blend_columns
from planner.fleet.pricing import Columns, best_columns, join_columns
from planner.generate.generate import generate


@pytest.fixture(scope="module")
def fleet() -> FleetArrays:
    problem: Problem = generate(models=40, regions=6, hardware=4, supply_use=0.7, seed=11)
    return FleetArrays.of(problem)


@pytest.fixture(scope="module")
def columns(fleet: FleetArrays) -> Columns:
    """Several configurations of each model: the best at prices that are drawn."""
    draw = np.random.default_rng(0)
    every = np.arange(fleet.models)
    drawn = [Prices(draw.uniform(0, 8, fleet.supply.shape), np.zeros_like(fleet.owner_budget), 0.0) for _ in range(4)]
    return join_columns([best_columns(fleet, prices, every, effort=20) for prices in drawn])


def means(fleet: FleetArrays, columns: Columns) -> list[tuple[int, Ints, Floats, Ints, Floats]]:
    """Each model with several configurations, drawn shares of them, and what comes of it."""
    draw = np.random.default_rng(1)
    found = []
    for m in range(fleet.models):
        rows = np.flatnonzero(columns.model == m)
        if len(rows) > 1:
            shares = draw.dirichlet(np.ones(len(rows)))
            found.append((m, rows, shares, *blend_columns(fleet, m, columns, rows, shares)))
    assert len(found) > 20
    return found


def parts_of(fleet: FleetArrays, m: int) -> list[tuple[int, slice]]:
    first = fleet.option_start[fleet.part_start[m]]
    parts = range(fleet.part_start[m], fleet.part_start[m + 1])
    return [(p, slice(fleet.option_start[p] - first, fleet.option_start[p + 1] - first)) for p in parts]


def test_every_part_can_do_what_arrives_also_without_any_one_region(fleet: FleetArrays, columns: Columns) -> None:
    for m, _, _, count, flow in means(fleet, columns):
        first = fleet.option_start[fleet.part_start[m]]
        for _, own in parts_of(fleet, m):
            rate = fleet.option_qps[first + np.arange(own.start, own.stop)]
            able = rate @ count[own]
            assert np.all(able >= flow.sum(axis=0) * (1 - 1e-7))
            if fleet.survives[m]:
                assert able.sum() - able.max() >= flow.sum() * (1 - 1e-7)


def test_a_region_that_holds_a_part_holds_its_least_replicas(fleet: FleetArrays, columns: Columns) -> None:
    for m, _, _, count, _ in means(fleet, columns):
        for p, own in parts_of(fleet, m):
            held = count[own].sum(axis=0)
            assert np.all((held == 0) | (held >= fleet.part_min[p]))


def test_as_much_is_served_as_the_configurations_serve_on_the_mean(fleet: FleetArrays, columns: Columns) -> None:
    for m, rows, shares, _, flow in means(fleet, columns):
        served = fleet.qps[m].sum() - shares @ columns.unmet[rows]
        assert flow.sum() == pytest.approx(served, rel=1e-7)
        assert np.all(flow[fleet.rtt > fleet.tolerance[m]] == 0)


def test_no_option_has_a_replica_more_than_the_mean_needs(fleet: FleetArrays, columns: Columns) -> None:
    regions = fleet.regions
    for m, rows, shares, count, _ in means(fleet, columns):
        first = fleet.option_start[fleet.part_start[m]]
        mean = np.zeros(count.size)
        for row, share in zip(rows, shares, strict=True):
            own = slice(columns.count_start[row], columns.count_start[row + 1])
            mean[columns.count_at[own] - first * regions] += share * columns.count_n[own]
        least = max(fleet.part_min[p] for p, _ in parts_of(fleet, m))
        assert np.all(count.ravel() < mean + max(1.0, least) + 1e-6)
        if least <= 1:
            assert np.all(count.ravel() < mean + 1 + 1e-6)


def test_the_whole_of_one_configuration_is_no_dearer_than_that(fleet: FleetArrays, columns: Columns) -> None:
    for row in range(len(columns)):
        m = int(columns.model[row])
        count, _ = blend_columns(fleet, m, columns, np.array([row]), np.ones(1))
        own = slice(columns.count_start[row], columns.count_start[row + 1])
        assert count.sum() <= columns.count_n[own].sum()
