"""A call goes to the least loaded host.

Hosts that are lost or fall behind the others are left out for a growing while.
"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routing.load_balancer import (
    ENOUGH_ANSWERS,
    FIRST_SECONDS,
    FORGIVEN_SECONDS,
    LONGEST_SECONDS,
    SOUGHT_SECONDS,
    STRIKES,
    HostLoadBalancer,
)
from serving.routing.sync_policy import HostCandidate


def tier(*urls):
    return tuple(HostCandidate(url, 1, 1) for url in urls)


ABC = (tier("a", "b", "c"),)


class Router:
    """Loads with a clock that a test sets, and a few words to say what hosts did."""

    def __init__(self):
        self.now = 0.0
        self.said = []
        self.loads = HostLoadBalancer(lambda: self.now, on_ejected=lambda url, why: self.said.append((url, why)))

    def chosen(self, tiers=ABC, *, times=12, tried=()):
        return Counter(self.loads.choose(tiers, tried=tried).url for _ in range(times))

    def answers(self, url, *seconds, tiers=ABC):
        for taken in seconds:
            self.loads.note_answer(url, taken, tiers=tiers)

    def all_answer(self, seconds=0.01, tiers=ABC):
        for candidate in tiers[0]:
            self.answers(candidate.url, *[seconds] * ENOUGH_ANSWERS, tiers=tiers)

    def strikes(self, url, count=STRIKES, tiers=ABC, given=None):
        for _ in range(count):
            self.loads.note_strike(url, tiers=tiers, given=given)


@pytest.fixture
def router():
    return Router()


def test_the_least_loaded_host_is_chosen(router):
    with router.loads.calling("a"), router.loads.calling("a"), router.loads.calling("b"), router.loads.calling("c"):
        assert set(router.chosen()) == {"b", "c"}
    assert router.chosen() == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize(("given", "out"), [(0.015, False), (0.025, True), (None, True)])
def test_a_deadline_too_short_for_any_host_is_no_strike(router, given, out):
    router.all_answer(0.01)
    router.answers("b", *[5.0] * ENOUGH_ANSWERS)
    router.loads.note_found("b")
    router.strikes("a", given=given)
    assert (router.loads.standing("a") == "behind") == out


def test_without_an_answer_each_passed_deadline_is_a_strike(router):
    router.answers("b", 0.01)
    router.strikes("a", given=1.0)
    assert router.loads.standing("a") == "behind"


def test_calls_under_way_are_known_until_they_end(router):
    with router.loads.calling("a"), router.loads.calling("a"):
        assert router.loads.busy("a")
    assert not router.loads.busy("a")


def test_a_host_this_request_tried_is_not_chosen_again_while_another_is_there(router):
    router.loads.note_lost("b")
    assert set(router.chosen((tier("a", "b"),), tried={"a"})) == {"b"}
    assert set(router.chosen((tier("a"),), tried={"a"})) == {"a"}


def test_a_worse_tier_is_used_only_where_no_host_of_a_better_one_is_left(router):
    tiers = (tier("a", "b"), tier("c"), tier("d"))
    assert set(router.chosen(tiers)) == {"a", "b"}
    assert set(router.chosen(tiers, tried={"a"})) == {"b"}
    assert set(router.chosen(tiers, tried={"a", "b"})) == {"c"}
    router.loads.note_lost("c")
    assert set(router.chosen(tiers, tried={"a", "b"})) == {"d"}
    assert set(router.chosen(tiers, tried={"a", "b", "d"})) == {"c"}
    assert set(router.chosen(((), tier("d")))) == {"d"}


def test_a_lost_host_is_out_until_it_is_found_however_long_that_takes(router):
    router.loads.note_lost("a")
    assert set(router.chosen()) == {"b", "c"}
    router.now = 1000.0
    assert set(router.chosen()) == {"b", "c"}
    router.loads.note_found("a")
    assert "a" in router.chosen()
    assert router.said == [("a", "lost")]


def test_lost_hosts_are_used_only_when_all_are(router):
    for url in "abc":
        router.loads.note_lost(url)
    assert set(router.chosen()) == {"a", "b", "c"}


def test_the_while_before_a_lost_host_is_sought_doubles_up_to_the_longest(router):
    waits = []
    for _ in range(8):
        router.loads.note_lost("a")
        router.loads.note_lost("a")  # the second of two calls that were lost together counts for nothing
        waits.append(router.loads.seconds_until_sought("a"))
        router.now += waits[-1]
    assert waits == [min(SOUGHT_SECONDS, FIRST_SECONDS * 2**n) for n in range(8)]
    router.loads.note_found("a")
    assert router.loads.seconds_until_sought("a") is None


def test_a_host_that_did_well_for_long_begins_with_the_first_while_again(router):
    router.loads.note_lost("a")
    router.loads.note_found("a")
    router.now += FORGIVEN_SECONDS / 2
    router.loads.note_lost("a")
    assert router.loads.seconds_until_sought("a") == 2 * FIRST_SECONDS
    router.loads.note_found("a")
    router.now += FORGIVEN_SECONDS + 1
    router.loads.note_lost("a")
    assert router.loads.seconds_until_sought("a") == FIRST_SECONDS


def test_strikes_in_a_row_put_a_host_out_where_others_do_well(router):
    router.all_answer()
    router.strikes("a", STRIKES - 1)
    router.answers("a", 0.01)
    router.strikes("a", STRIKES - 1)
    assert "a" in router.chosen()
    router.strikes("a", 1)
    assert set(router.chosen()) == {"b", "c"}
    assert router.said == [("a", "behind")]


def test_whether_one_more_strike_puts_a_host_out_is_known_before_it(router):
    router.strikes("a", STRIKES - 1)
    assert not router.loads.would_eject("a", tiers=ABC), "no other host has answered"
    router.answers("a", 0.01)
    router.all_answer()
    for _ in range(STRIKES):
        known = router.loads.would_eject("a", tiers=ABC)
        router.strikes("a", 1)
        assert router.said == ([("a", "behind")] if known else [])
    assert known
    assert not router.loads.would_eject("a", tiers=ABC), "it is out already"


def test_strikes_of_all_hosts_put_none_out(router):
    """Requests that nobody can answer in time say nothing about a host."""
    router.all_answer()
    for _ in range(3 * STRIKES):
        for url in "abc":
            router.strikes(url, 1)
    assert set(router.chosen()) == {"a", "b", "c"}


def test_a_host_far_slower_than_the_others_is_put_out(router):
    router.all_answer(0.02)
    router.answers("a", *[0.19] * 20)
    assert "a" in router.chosen(), "not slow by a tenth of a second and five times the others"
    router.answers("a", *[0.4] * 20)
    assert set(router.chosen()) == {"b", "c"}


def test_hosts_that_are_slow_together_stay(router):
    for url in "abc":
        router.answers(url, *[3.0] * 20)
    assert set(router.chosen()) == {"a", "b", "c"}


def test_a_few_answers_prove_no_host_slow(router):
    router.answers("a", *[0.01] * 20)
    router.answers("b", *[0.01] * 20)
    router.answers("c", *[9.0] * (ENOUGH_ANSWERS - 1))
    assert set(router.chosen()) == {"a", "b", "c"}


def test_a_host_that_was_behind_is_tried_with_one_call_at_a_time_until_it_has_done_well(router):
    router.all_answer()
    router.strikes("a")
    router.now = FIRST_SECONDS + 0.01
    with router.loads.calling("b"), router.loads.calling("c"):
        assert set(router.chosen()) == {"a"}
        with router.loads.calling("a"):
            assert set(router.chosen()) == {"b", "c"}
        router.answers("a", *[0.01] * ENOUGH_ANSWERS)
        with router.loads.calling("a"):
            assert set(router.chosen()) == {"a", "b", "c"}


def test_a_host_that_fails_on_trial_is_out_for_twice_as_long(router):
    router.all_answer()
    router.strikes("a")
    for out in (2, 4, 8):
        router.now += out * FIRST_SECONDS / 2 + 0.01
        assert router.loads.standing("a") == "in"
        router.strikes("a", 1)
        router.now += out * FIRST_SECONDS - 0.01
        assert router.loads.standing("a") == "behind"
        router.now -= out * FIRST_SECONDS - 0.01


def test_the_while_grows_up_to_the_longest(router):
    router.all_answer()
    router.strikes("a")
    for _ in range(8):
        router.now += 1.5 * LONGEST_SECONDS
        assert router.loads.standing("a") == "in"
        router.strikes("a", 1)
    router.now += LONGEST_SECONDS - 0.01
    assert router.loads.standing("a") == "behind"
    router.now += 0.02
    assert router.loads.standing("a") == "in"


def test_never_more_than_half_of_the_hosts_are_left_out_for_being_behind(router):
    router.all_answer()
    router.strikes("a")
    router.strikes("b")
    chosen = set(router.chosen())
    assert "c" in chosen
    assert len(chosen) == 2
    assert set(router.chosen((tier("a"),))) == {"a"}


def test_a_host_that_is_behind_is_better_than_a_lost_one(router):
    router.all_answer()
    router.strikes("a")
    router.loads.note_lost("b")
    assert set(router.chosen((tier("a", "b"),))) == {"a"}


def test_a_host_that_left_the_table_comes_back_without_a_past(router):
    router.loads.note_lost("a")
    router.loads.forget({"b", "c"})
    assert set(router.chosen()) == {"a", "b", "c"}
    assert router.loads.seconds_until_sought("a") is None


EVENTS = st.tuples(st.sampled_from("abcdef"), st.sampled_from(["answer", "late", "strike", "lost", "found", "wait"]))


@given(
    st.lists(EVENTS, max_size=60), st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef"), min_size=1)
)
def test_whatever_happened_a_host_is_chosen_and_one_left_out_only_where_another_is_there(events, tried, urls):
    router = Router()
    everyone = (tier(*"abcdef"),)
    for url, what in events:
        match what:
            case "answer" | "late":
                router.answers(url, 0.01 if what == "answer" else 5.0, tiers=everyone)
            case "strike":
                router.strikes(url, 1, tiers=everyone)
            case "lost":
                router.loads.note_lost(url)
            case "found":
                router.loads.note_found(url)
            case "wait":
                router.now += 1.0
    tiers = (tier(*sorted(urls)),)
    chosen = set(router.chosen(tiers, times=20, tried=tried))
    assert chosen <= urls
    left = urls - tried or urls
    assert chosen <= left
    lost = {url for url in left if router.loads.standing(url) == "lost"}
    assert chosen.isdisjoint(lost) or lost == left
    assert len(left - lost - chosen) <= len(left) // 2
