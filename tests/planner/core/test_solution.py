"""From a solver's numbers to a plan: the replicas that are needed, and the best traffic for them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.core import solution
from planner.core.index import Index
from planner.core.solution import route_traffic, trim_replicas


def at(region, hardware="h"):
    return ("m", "p", region, hardware)


def trim(stated, counts, shares):
    """`shares` by (origin, to)."""
    index = Index(stated)
    return trim_replicas(index, counts, [shares.get((route.origin, route.to), 0.0) for route in index.routes])


# replicas


@pytest.mark.parametrize(("qps", "kept"), [(100.0, 1), (100.1, 2), (200.0, 2)])
def test_replicas_beyond_the_traffic_go(problem, model, qps, kept):
    stated = problem(model(demand={"a": qps}), supply={"a/h": 9.0})
    assert trim(stated, {at("a"): 5}, {("a", "a"): 1.0}) == {at("a"): kept}


def test_only_the_share_that_is_served_counts(problem, model):
    stated = problem(model(demand={"a": 400.0}, survive="region"), supply={"a/h": 9.0, "b/h": 9.0})
    assert trim(stated, {at("a"): 4, at("b"): 4}, {("a", "a"): 0.5}) == {at("a"): 2, at("b"): 2}


def test_the_dearest_replicas_a_request_go_first(problem, model):
    parts = {"p": {"g": (1.0, 100.0), "h": (1.0, 100.0)}}
    stated = problem(model(parts=parts), supply={"a/g": 9.0, "a/h": 9.0}, unit_cost={"a/g": 2.0})
    assert trim(stated, {at("a", "g"): 1, at("a", "h"): 1}, {("a", "a"): 1.0}) == {at("a", "h"): 1}


def test_hardware_without_replicas_carries_nothing(problem, model):
    parts = {"p": {"g": (1.0, 100.0), "h": (1.0, 100.0)}}
    stated = problem(model(parts=parts), supply={"a/g": 9.0, "a/h": 9.0})
    assert trim(stated, {at("a", "g"): 1}, {("a", "a"): 1.0}) == {at("a", "g"): 1}


@pytest.mark.parametrize(("least", "kept"), [(1, {}), (3, {at("b"): 3})])
def test_a_region_that_holds_a_part_keeps_its_least_replicas(problem, model, least, kept):
    stated = problem(model(min_replicas=least), supply={"a/h": 9.0, "b/h": 9.0})
    trimmed = trim(stated, {at("a"): least, at("b"): 4}, {("a", "a"): 1.0})
    assert trimmed == {at("a"): least, **kept}


@pytest.mark.parametrize(("regions", "kept"), [(["a", "b"], 2), (["a", "b", "c"], 1)])
def test_without_any_region_the_others_carry_what_is_served(problem, model, regions, kept):
    stated = problem(
        model(demand={"a": 200.0}, survive="region"), supply={f"{r}/h": 9.0 for r in regions}, regions=regions
    )
    trimmed = trim(stated, {at(region): 3 for region in regions}, {("a", r): 1 / len(regions) for r in regions})
    assert trimmed == {at(region): kept for region in regions}


# traffic


def test_what_no_replica_carries_stays_unserved(problem, model):
    stated = problem(model(demand={"a": 400.0, "b": 100.0}, tolerance=5.0), supply={"a/h": 9.0, "b/h": 9.0})
    shares = route_traffic(Index(stated), {at("a"): 1, at("b"): 1})
    assert shares == pytest.approx({("m", "a", "a"): 0.25, ("m", "b", "b"): 1.0})


def test_users_go_to_the_nearest_region_with_room(problem, model):
    stated = problem(model(demand={"a": 150.0}), supply={"a/h": 9.0, "b/h": 9.0})
    assert route_traffic(Index(stated), {at("a"): 2, at("b"): 2}) == {("m", "a", "a"): 1.0}
    split = route_traffic(Index(stated), {at("a"): 1, at("b"): 2})
    assert split == pytest.approx({("m", "a", "a"): 2 / 3, ("m", "a", "b"): 1 / 3})
    assert sum(split.values()) == 1.0


def test_a_model_that_survives_serves_what_the_others_carry(problem, model):
    stated = problem(model(demand={"a": 400.0}, survive="region"), supply={"a/h": 9.0, "b/h": 9.0})
    assert route_traffic(Index(stated), {at("a"): 3, at("b"): 1}) == pytest.approx({("m", "a", "a"): 0.25})
    assert route_traffic(Index(stated), {at("a"): 3}) == {}


@given(
    st.lists(st.integers(1, 4), min_size=2, max_size=5),
    st.sampled_from([0.0, 0.001]),
    st.integers(1, 60),
)
def test_all_is_served_that_fits_however_far_it_goes(problem, model, replicas, weight, far):
    """Users of each region are near it and reach the next one; those of the last reach only the first one."""
    regions = [f"r{i}" for i in range(len(replicas) + 1)]
    rtt = [[1000.0] * len(regions) for _ in regions]
    for i in range(len(replicas)):
        rtt[i][i], rtt[i][i + 1] = 1.0, float(far)
    rtt[-1][0] = float(far)
    stated = problem(
        model(demand=dict.fromkeys(regions, 100.0), tolerance=60.0),
        supply={f"{region}/h": 9.0 for region in regions},
        regions=regions,
        rtt_ms=rtt,
        objective={"latency_weight": weight, "unmet_cost": 10.0},
    )
    shares = route_traffic(Index(stated), {at(region): 1 for region in regions})
    assert sum(shares.values()) == pytest.approx(len(regions))


def test_a_solver_without_an_answer_leaves_the_demand_unserved(problem, model, monkeypatch):
    monkeypatch.setattr(solution, "linprog", lambda *_, **__: type("Failed", (), {"x": None}))
    assert route_traffic(Index(problem(model(), supply={"a/h": 1.0})), {at("a"): 1}) == {}


def test_users_without_requests_are_sent_to_the_nearest_region_that_holds_the_model(problem, model):
    parts = {"p": {"h": (1.0, 0.5)}}
    stated = problem(
        model(demand={"a": 0.0, "b": 0.25}, parts=parts), supply={"a/h": 9.0, "b/h": 9.0, "c/h": 9.0},
        regions=["a", "b", "c"], rtt_ms=[[1.0, 20.0, 10.0], [20.0, 1.0, 10.0], [10.0, 10.0, 1.0]],
    )  # fmt: skip
    index = Index(stated)
    assert route_traffic(index, {at("b"): 1, at("c"): 1})["m", "a", "c"] == 1.0
    assert route_traffic(index, {at("b"): 1})["m", "a", "b"] == 1.0
    assert ("m", "a", "a") not in route_traffic(index, {})


def test_users_without_requests_are_sent_nowhere_beyond_the_tolerance(problem, model):
    stated = problem(model(demand={"a": 0.0, "b": 50.0}, tolerance=5.0), supply={"b/h": 9.0})
    assert route_traffic(Index(stated), {at("b"): 1}) == {("m", "b", "b"): 1.0}
