"""An endpoint is chosen by load, and not just after it failed."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serving.balancing import COOL_OFF_SECONDS, EndpointLoads, choose

URLS = ["a", "b", "c"]


def test_the_least_loaded_endpoint_is_chosen():
    assert choose(URLS, in_flight={"a": 2, "b": 1, "c": 3}, avoid=(), turn=0) == "b"


def test_equally_loaded_endpoints_take_turns():
    chosen = Counter(choose(URLS, in_flight={}, avoid=(), turn=turn) for turn in range(9))
    assert chosen == {"a": 3, "b": 3, "c": 3}


def test_an_avoided_endpoint_is_used_only_when_all_are_avoided():
    assert choose(URLS, in_flight={"b": 9}, avoid={"a", "c"}, turn=0) == "b"
    assert choose(URLS, in_flight={"b": 9}, avoid=set(URLS), turn=0) in {"a", "c"}


@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, unique=True),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 5)),
    st.sets(st.sampled_from("abcdef")),
    st.integers(0, 100),
)
def test_the_choice_is_always_one_of_the_endpoints_and_never_a_busier_one(urls, in_flight, avoid, turn):
    chosen = choose(urls, in_flight=in_flight, avoid=avoid, turn=turn)
    allowed = [url for url in urls if url not in avoid] or urls
    assert chosen in allowed
    assert in_flight.get(chosen, 0) == min(in_flight.get(url, 0) for url in allowed)


def test_loads_are_counted_while_a_call_lasts():
    loads = EndpointLoads(lambda: 0.0)
    with loads.calling("a"), loads.calling("b"), loads.calling("c"), loads.calling("a"):
        assert loads.choose(URLS, tried=()) in {"b", "c"}
    assert {loads.choose(URLS, tried=()) for _ in range(6)} == set(URLS)


def test_a_failed_endpoint_is_passed_over_for_a_moment():
    now = [0.0]
    loads = EndpointLoads(lambda: now[0])
    loads.note_failure("a")
    assert {loads.choose(["a", "b"], tried=()) for _ in range(4)} == {"b"}
    assert loads.choose(["a"], tried=()) == "a"
    now[0] = COOL_OFF_SECONDS + 0.01
    assert {loads.choose(["a", "b"], tried=()) for _ in range(4)} == {"a", "b"}


def test_an_endpoint_this_request_tried_is_not_chosen_again_while_another_is_there():
    loads = EndpointLoads(lambda: 0.0)
    loads.note_failure("b")
    assert loads.choose(["a", "b"], tried={"a"}) == "b"
    assert loads.choose(["a"], tried={"a"}) == "a"
