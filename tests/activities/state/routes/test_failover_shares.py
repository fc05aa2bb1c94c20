"""Traffic around lost regions: nothing is sent there, sums stay, free capacity is filled before any is overloaded."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.state.routes.failover_shares import Nearness, Survivor, without_regions
from ipnext.model.deployment.route_table import RouteShare

REGIONS = ("r1", "r2", "r3", "r4", "r5")

demands = st.dictionaries(st.sampled_from(REGIONS), st.floats(0, 1000), min_size=1)
survivors = st.lists(
    st.builds(Survivor, region=st.sampled_from(REGIONS), generation=st.integers(1, 3), qps=st.floats(0, 2000)),
    unique_by=lambda found: (found.region, found.generation),
    max_size=8,
)
trips = st.dictionaries(st.tuples(st.sampled_from(REGIONS), st.sampled_from(REGIONS)), st.floats(0, 300))


@st.composite
def tables(draw):
    found = {}
    for origin in draw(st.lists(st.sampled_from(REGIONS), unique=True, min_size=1)):
        ends = draw(st.lists(st.tuples(st.sampled_from(REGIONS), st.integers(1, 3)), unique=True, min_size=1))
        weights = draw(st.lists(st.floats(0.01, 1), min_size=len(ends), max_size=len(ends)))
        total = sum(weights)
        found[origin] = tuple(
            RouteShare(to=to, generation=number, fraction=weight / total)
            for (to, number), weight in zip(ends, weights, strict=True)
        )
    return found


lost_regions = st.sets(st.sampled_from(REGIONS), min_size=1, max_size=4)


def share(to, fraction, generation=1):
    return RouteShare(to=to, generation=generation, fraction=fraction)


def sent(shares, demand, region):
    return sum(
        s.fraction * demand.get(origin, 0.0) for origin, found in shares.items() for s in found if s.to == region
    )


@given(tables(), lost_regions, survivors, demands, trips)
def test_no_share_is_left_to_a_lost_region_and_the_sums_stay(shares, lost, able, demand, rtt):
    found = without_regions(shares, lost, able, demand=demand, nearness=Nearness(rtt, 100.0))

    assert found.keys() == shares.keys()
    left = [survivor for survivor in able if survivor.region not in lost and survivor.qps > 1e-12]
    for origin, after in found.items():
        assert not {s.to for s in after} & lost
        kept = sum(s.fraction for s in shares[origin] if s.to not in lost)
        assert math.isclose(sum(s.fraction for s in after), 1.0 if left else kept, abs_tol=1e-9)
        assert len({(s.to, s.generation) for s in after}) == len(after)


@given(tables(), lost_regions, survivors, demands, trips)
def test_what_is_kept_only_grows_and_what_comes_goes_to_survivors(shares, lost, able, demand, rtt):
    found = without_regions(shares, lost, able, demand=demand, nearness=Nearness(rtt, 100.0))

    places = {(survivor.region, survivor.generation) for survivor in able}
    for origin, after in found.items():
        before = {(s.to, s.generation): s.fraction for s in shares[origin] if s.to not in lost}
        now = {(s.to, s.generation): s.fraction for s in after}
        assert all(now.get(place, 0.0) >= fraction - 1e-9 for place, fraction in before.items())
        assert now.keys() - before.keys() <= places


@given(tables(), lost_regions, survivors, demands)
def test_none_is_overloaded_where_the_free_capacity_holds_everything(shares, lost, able, demand):
    """One generation, so that every survivor can take every share."""
    shares = {
        origin: tuple(share(to, sum(s.fraction for s in all_ if s.to == to)) for to in sorted({s.to for s in all_}))
        for origin, all_ in shares.items()
    }
    able = [survivor for survivor in able if survivor.generation == 1]
    free = sum(max(0.0, s.qps - sent(shares, demand, s.region)) for s in able if s.region not in lost)
    moved = sum(sent(shares, demand, region) for region in lost)
    found = without_regions(shares, lost, able, demand=demand)

    if moved <= free * (1 - 1e-6):
        for survivor in able:
            if survivor.region not in lost:
                before = sent(shares, demand, survivor.region)
                assert sent(found, demand, survivor.region) <= max(survivor.qps, before) + 1e-6 * (1 + survivor.qps)


@given(tables(), lost_regions, survivors, demands, trips)
def test_done_twice_is_done_once(shares, lost, able, demand, rtt):
    once = without_regions(shares, lost, able, demand=demand, nearness=Nearness(rtt, 100.0))
    assert without_regions(once, lost, able, demand=demand, nearness=Nearness(rtt, 100.0)) == once


@given(tables(), survivors, demands)
def test_without_a_lost_region_in_the_shares_nothing_changes(shares, able, demand):
    assert without_regions(shares, {"elsewhere"}, able, demand=demand) == shares


def test_free_capacity_decides_how_much_each_gets():
    shares = {"r1": (share("r1", 1.0),), "r2": (share("r2", 1.0),), "r3": (share("r3", 1.0),)}
    able = [Survivor("r2", 1, 400.0), Survivor("r3", 1, 250.0)]
    found = without_regions(shares, {"r1"}, able, demand={"r1": 90.0, "r2": 100.0, "r3": 50.0})
    assert {s.to: s.fraction for s in found["r1"]} == pytest.approx({"r2": 300 / 500, "r3": 200 / 500})
    assert found["r2"] == shares["r2"]


def test_near_regions_are_filled_before_far_ones_take_the_rest():
    shares = {"r1": (share("r1", 1.0),)}
    able = [Survivor("r2", 1, 60.0), Survivor("r3", 1, 1000.0)]
    rtt = Nearness({("r1", "r2"): 20.0, ("r1", "r3"): 200.0}, 100.0)
    found = without_regions(shares, {"r1"}, able, demand={"r1": 100.0}, nearness=rtt)
    assert {s.to: s.fraction for s in found["r1"]} == pytest.approx({"r2": 0.6, "r3": 0.4})


def test_a_region_whose_latency_is_not_known_is_near():
    assert Nearness({("r1", "r2"): 1.0}, 0.5).near("r1", "r3")
    assert not Nearness({("r1", "r2"): 1.0}, 0.5).near("r1", "r2")


def test_what_exceeds_all_free_capacity_is_spread_by_whole_capacity():
    shares = {"r1": (share("r1", 1.0),)}
    able = [Survivor("r2", 1, 30.0), Survivor("r3", 1, 10.0)]
    found = without_regions(shares, {"r1"}, able, demand={"r1": 400.0})
    assert {s.to: s.fraction for s in found["r1"]} == pytest.approx({"r2": 0.75, "r3": 0.25})


def test_a_generation_is_answered_by_itself_where_it_is_held_and_else_by_the_one_with_most_capacity():
    able = [Survivor("r2", 1, 300.0), Survivor("r3", 3, 900.0)]
    for generation, stands_in in ((1, ("r2", 1)), (2, ("r3", 3))):
        found = without_regions({"r1": (share("r1", 1.0, generation),)}, {"r1"}, able, demand={"r1": 10.0})
        assert {(s.to, s.generation): s.fraction for s in found["r1"]} == pytest.approx({stands_in: 1.0})


def test_what_serves_stands_in_for_a_generation_that_no_region_left_holds():
    """Not what users were rolled back from, though it is newer and held in the same processes."""
    shares = {"r1": (share("r1", 1.0, 184),)}
    able = [Survivor("r2", 167, 100.0), Survivor("r2", 169, 100.0)]
    found = without_regions(shares, {"r1"}, able, demand={"r1": 10.0}, serving=167)
    assert {(s.to, s.generation): s.fraction for s in found["r1"]} == pytest.approx({("r2", 167): 1.0})


def test_what_is_sent_to_already_stands_in_before_what_nobody_is_sent_to():
    shares = {"r1": (share("r1", 1.0, 5),), "r2": (share("r2", 1.0, 3),)}
    able = [Survivor("r2", 3, 100.0), Survivor("r2", 4, 900.0)]
    found = without_regions(shares, {"r1"}, able, demand={"r1": 10.0, "r2": 10.0}, serving=5)
    assert {(s.to, s.generation): s.fraction for s in found["r1"]} == pytest.approx({("r2", 3): 1.0})


def test_without_any_survivor_the_share_is_dropped_so_that_requests_fail_at_once():
    assert without_regions({"r1": (share("r1", 1.0),)}, {"r1"}, [], demand={"r1": 1.0}) == {"r1": ()}
