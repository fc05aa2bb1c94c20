"""What each sync policy lets answer, and in which order of preference."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import SnapshotFacts
from ipnext.model.registry.registry import SyncPolicy
from serving.routing.sync_policy import HostCandidate, Version, candidates_for, of_snapshot
from serving.routing.table import compile_routes

START = datetime(2026, 1, 1, tzinfo=UTC)
LOCKED = SyncPolicy()
UNSYNCED = SyncPolicy(policy="unsynced")


def bounded(*, snapshots=None, seconds=None):
    return SyncPolicy(policy="bounded", max_snapshots=snapshots, max_seconds=seconds)


def facts(snapshot, signature="s"):
    """Snapshots come an hour apart."""
    return SnapshotFacts(created_at=START + timedelta(hours=snapshot), signature=signature)


def version(snapshot, generation=None, **changes):
    return Version(generation or snapshot, snapshot, facts(snapshot, **changes))


def urls(policy, wanted, **held):
    """The urls of each tier; `held` maps an url to snapshots, or versions."""
    versions = {url: [v if isinstance(v, Version) else version(v) for v in one] for url, one in held.items()}
    return [[candidate.url for candidate in tier] for tier in candidates_for(policy, version(wanted), versions)]


def test_locked_takes_the_hosts_of_the_generation_and_no_others():
    assert urls(LOCKED, 3, a=[3], b=[2, 3], c=[2], d=[4]) == [["a", "b"]]
    assert urls(LOCKED, 3, a=[2], b=[version(3, generation=7)]) == [[]]


def test_bounded_takes_the_exact_snapshot_first_then_nearer_ones_and_of_two_as_near_the_older():
    held = {"a": [4], "b": [3], "c": [2], "d": [1], "e": [5, 3]}
    assert urls(bounded(snapshots=2), 3, **held) == [["b", "e"], ["c"], ["a"], ["d"]]
    assert urls(bounded(snapshots=1), 3, **held) == [["b", "e"], ["c"], ["a"]]
    assert urls(bounded(snapshots=0), 3, **held) == [["b", "e"]]


def test_a_host_offers_the_nearest_of_its_snapshots():
    [[], [candidate]] = candidates_for(bounded(snapshots=3), version(5), {"a": [version(2), version(4), version(7)]})
    assert candidate == HostCandidate("a", 4, 4)


def derived(snapshot, published, generation=None):
    known = SnapshotFacts(created_at=START + timedelta(hours=published), signature="s", published=published)
    return Version(generation or snapshot, snapshot, known)


def test_all_snapshots_that_were_derived_of_one_count_as_one():
    """Published 1, 3 and 5, each derived once: 2, 4 and 6. Numbers lie two apart, publishes one."""
    held = {"a": [derived(2, 1)], "b": [version(3, generation=9)], "c": [derived(6, 5)]}
    versions = {url: tuple(one) for url, one in held.items()}

    def near(policy):
        return [[candidate.url for candidate in tier] for tier in candidates_for(policy, derived(4, 3), versions)]

    assert near(bounded(snapshots=0)) == [["b"]]
    assert near(bounded(seconds=2 * 3600)) == [["b"], ["a"], ["c"]]
    assert near(LOCKED) == [[]]


def test_a_bound_in_seconds_counts_from_snapshot_to_snapshot_to_either_side():
    held = {"a": [1], "b": [2], "c": [3], "d": [4], "e": [5]}
    assert urls(bounded(seconds=3600), 3, **held) == [["c"], ["b"], ["d"]]
    assert urls(bounded(seconds=3599), 3, **held) == [["c"]]


def test_of_two_bounds_both_hold():
    held = {"a": [1], "b": [2]}
    assert urls(bounded(snapshots=5, seconds=3600), 3, **held) == [[], ["b"]]
    assert urls(bounded(snapshots=1, seconds=9e9), 3, **held) == [[], ["b"]]


def test_one_snapshot_under_two_generations_is_the_same_snapshot():
    for policy in (bounded(snapshots=0), UNSYNCED):
        assert urls(policy, 3, a=[version(3, generation=7)]) == [["a"]]
        [[candidate]] = candidates_for(policy, version(3), {"a": [version(3, generation=7), version(3)]})
        assert candidate.generation == 3


def test_unsynced_takes_every_host_with_its_newest_that_is_not_newer_than_the_generations():
    [tier] = candidates_for(UNSYNCED, version(3), {"a": [version(1), version(2)], "b": [version(3), version(4)]})
    assert tier == (HostCandidate("a", 2, 2), HostCandidate("b", 3, 3))


def test_unsynced_takes_newer_ones_only_on_hosts_that_have_no_others():
    """So a generation with a little traffic on trial, or one that was rolled back, does not answer for the others."""
    tiers = candidates_for(UNSYNCED, version(3), {"a": [version(6), version(5)], "b": [version(1)]})
    assert tiers == ((HostCandidate("b", 1, 1),), (HostCandidate("a", 5, 5),))


@pytest.mark.parametrize("policy", [bounded(snapshots=9), UNSYNCED])
def test_a_snapshot_of_another_signature_or_an_unknown_one_never_stands_in(policy):
    assert urls(policy, 3, a=[version(2, signature="other")], b=[Version(2, 2)]) == [[]]
    assert candidates_for(policy, Version(3, 3), {"a": [version(2)], "b": [Version(3, 3)]}) == (
        (HostCandidate("b", 3, 3),),
    )


def test_offers_of_one_snapshot_keep_their_tiers():
    tiers = ((HostCandidate("a", 1, 1), HostCandidate("b", 2, 2)), (HostCandidate("c", 2, 2),))
    assert of_snapshot(tiers, 2) == ((HostCandidate("b", 2, 2),), (HostCandidate("c", 2, 2),))


SNAPSHOTS = st.integers(1, 6)
HELD = st.dictionaries(st.sampled_from("abcd"), st.lists(SNAPSHOTS, max_size=4, unique=True))


@given(SNAPSHOTS, HELD, st.integers(0, 3), st.sampled_from(["locked", "bounded", "unsynced"]))
def test_no_offer_breaks_its_policy_and_no_host_is_refused_without_need(wanted, held, bound, policy):
    sync = SyncPolicy(policy=policy, max_snapshots=bound if policy == "bounded" else None)
    allowed = {"locked": 0, "bounded": bound, "unsynced": 99}[policy]
    tiers = candidates_for(sync, version(wanted), {url: [version(n) for n in one] for url, one in held.items()})
    offered = {candidate.url: candidate for tier in tiers for candidate in tier}
    assert len(offered) == sum(map(len, tiers)), "each host once"
    assert all(abs(candidate.snapshot - wanted) <= allowed for candidate in offered.values())
    assert all(candidate.snapshot in held[url] for url, candidate in offered.items())
    assert offered.keys() == {url for url, one in held.items() if any(abs(n - wanted) <= allowed for n in one)}


@pytest.fixture
def routes(toolbox):
    """Routes of generations 1 and 2 where `dense` 2 is ready nowhere."""

    def make(policy):
        served = [toolbox.served(number, policy) for number in (1, 2)]
        endpoints = (
            PartEndpoint(part="sparse", url="s1", generations=(1, 2)),
            PartEndpoint(part="sparse", url="s2", generations=(2, 9)),
            PartEndpoint(part="dense", url="d1", generations=(1,)),
        )
        model = RoutedModel(model="click", served=tuple(served), endpoints=endpoints)
        return compile_routes(RouterTable(revision=1, region="north", models=(model,))).model("click")

    return make


def test_without_a_pin_the_newest_generation_that_the_policy_wishes_is_chosen(routes):
    assert routes(LOCKED).choose(None).generation == 1
    assert routes(bounded(snapshots=1)).choose(None).generation == 1
    assert routes(UNSYNCED).choose(None).generation == 2, "the newest of each part"


def test_a_generation_without_hosts_is_answered_by_what_the_policy_lets_stand_in(routes):
    route = routes(bounded(snapshots=1)).choose("2")
    assert route.candidates["dense"] == ((), (HostCandidate("d1", 1, 1),))
    assert route.candidates["sparse"] == ((HostCandidate("s1", 2, 2), HostCandidate("s2", 2, 2)),)
    assert (route.missing, route.whole) == ((), False)
    assert routes(LOCKED).generations[2].missing == ("dense",)
    assert routes(bounded(snapshots=0)).generations[2].missing == ("dense",)
