"""Which engine a request goes to: least loaded, or where its beginning is cached, within the guard."""

from collections import Counter
from contextlib import ExitStack

import pytest

from serving.openai.engines.load_balancer import (
    FEW,
    GUARD_REQUESTS,
    LOST_SECONDS,
    STALE_SECONDS,
    EngineLoads,
    EngineReport,
)
from serving.openai.engines.prefix_affinity import BLOCK_CHARACTERS, Affinity, RoutingHint, blocks_of, prompt_of
from serving.openai.engines.registry import report_of

URLS = ("a", "b", "c")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def loads(clock):
    return EngineLoads(clock)


def hint(text="", session=None):
    return RoutingHint(session, blocks_of("m", text))


def long(letter, blocks=4):
    return letter * (blocks * BLOCK_CHARACTERS)


def test_the_least_loaded_is_asked_and_equals_in_turn(loads):
    with loads.calling("a"):
        chosen = Counter(loads.choose(URLS, None, policy="least-loaded") for _ in range(20))
    assert chosen == {"b": 10, "c": 10}


def test_round_robin_minds_no_load(loads):
    with loads.calling("a"):
        chosen = Counter(loads.choose(URLS, None, policy="round-robin") for _ in range(30))
    assert chosen == dict.fromkeys(URLS, 10)


def test_requests_of_others_count_while_the_report_is_fresh(loads, clock):
    for _ in range(2):
        loads.note_report("a", EngineReport(running=3, waiting=1))
        loads.note_report("b", EngineReport(running=1))
    assert {loads.choose(("a", "b"), None, policy="least-loaded") for _ in range(4)} == {"b"}
    clock.now += STALE_SECONDS
    assert {loads.choose(("a", "b"), None, policy="least-loaded") for _ in range(4)} == {"a", "b"}


def test_our_own_requests_in_a_report_are_not_counted_twice(loads):
    with loads.calling("a"), loads.calling("a"):
        loads.note_report("a", EngineReport(running=2))
        with loads.calling("b"), loads.calling("b"), loads.calling("b"):
            assert loads.choose(("a", "b"), None, policy="least-loaded") == "a"


def test_what_only_one_report_says_of_others_is_no_load(loads):
    """It counts requests of ours that have ended just before."""
    loads.note_report("a", EngineReport(running=3))
    assert {loads.choose(("a", "b"), None, policy="least-loaded") for _ in range(4)} == {"a", "b"}


def test_a_session_stays_where_it_was(loads):
    first = loads.choose(URLS, hint(session="s"), policy="prefix")
    assert {loads.choose(URLS, hint(session="s"), policy="prefix") for _ in range(9)} == {first}


def test_a_prompt_goes_where_its_beginning_was(loads):
    first = loads.choose(URLS, hint(long("x") + "one"), policy="prefix")
    other = loads.choose(URLS, hint(long("y") + "one"), policy="prefix")
    assert first != other
    for number in range(6):
        assert loads.choose(URLS, hint(long("x") + str(number)), policy="prefix") == first
        assert loads.choose(URLS, hint(long("y") + str(number)), policy="prefix") == other


def test_new_beginnings_are_shared_out_evenly(loads):
    """Though the engine that has fewer of them is busier by one request."""
    loads._affinity.note(hint(long("x", 9)), "a", homes=URLS)
    with loads.calling("b"):
        assert {loads.choose(("a", "b"), hint(letter), policy="prefix") for letter in "yz"} == {"b"}
        with loads.calling("b"):
            assert loads.choose(("a", "b"), hint("y"), policy="prefix") == "a"


def test_the_longest_beginning_wins(loads):
    affinity = Affinity()
    affinity.note(hint(long("x", 4)), "a", homes=URLS)
    affinity.note(hint(long("x", 2) + long("y", 2)), "b", homes=URLS)
    assert affinity.near(hint(long("x", 5)), set(URLS)).urls == ("a",)
    assert affinity.near(hint(long("x", 2) + long("y", 3)), set(URLS)).urls == ("b",)
    assert affinity.near(hint(long("x", 2) + long("z", 2)), set(URLS)).urls == ("a", "b")


def test_a_beginning_that_all_share_gathers_nothing_in_one_place(loads):
    """A short system prompt before long prompts of their own: where it is cached, the least loaded is asked."""
    system = long("s", 1)
    for url in URLS:
        loads._affinity.note(hint(system), url, homes=URLS)
    held = [loads.calling(url) for url in ("a", "b")]
    for call in held:
        call.__enter__()
    assert loads.choose(URLS, hint(system + long("own", 8)), policy="prefix") == "c"


def crowd(loads, url, size):
    for _ in range(int(size)):
        loads.calling(url).__enter__()


def test_affinity_loses_where_its_engine_has_far_more_to_do(loads):
    first = loads.choose(URLS, hint(session="s"), policy="prefix")
    crowd(loads, first, GUARD_REQUESTS)
    assert loads.choose(URLS, hint(session="s"), policy="prefix") == first, "an engine computes as many together"
    crowd(loads, first, 1)
    moved = loads.choose(URLS, hint(session="s"), policy="prefix")
    assert moved != first
    assert loads.choose(URLS, hint(session="s"), policy="prefix") == moved, "it has moved"


def test_a_prompt_comes_back_to_its_home_when_that_is_no_longer_crowded(loads):
    """So that two caches don't hold what one can hold."""
    home = loads.choose(URLS, hint(long("x")), policy="prefix")
    with ExitStack() as calls:
        for _ in range(int(GUARD_REQUESTS) + 1):
            calls.enter_context(loads.calling(home))
        away = [loads.choose(URLS, hint(long("x")), policy="prefix") for _ in range(3)]
        assert away[0] != home
        assert set(away) == {away[0]}, "one other engine has it now"
    assert loads.choose(URLS, hint(long("x")), policy="prefix") == home


def test_a_prompt_whose_home_is_gone_has_another(loads):
    home = loads.choose(URLS, hint(long("x")), policy="prefix")
    left = tuple(url for url in URLS if url != home)
    moved = loads.choose(left, hint(long("x")), policy="prefix")
    assert {loads.choose(URLS, hint(long("x") + str(n)), policy="prefix") for n in range(3)} == {moved}


def test_a_beginning_that_most_requests_have_is_copied_to_engines_that_are_less_busy(loads):
    home = loads.choose(URLS, hint(long("x")), policy="prefix")
    crowd(loads, home, 3)
    assert {loads.choose(URLS, hint(long("x")), policy="prefix") for _ in range(FEW // 3)} == {home}, "too few to tell"
    assert home not in {loads.choose(URLS, hint(long("x")), policy="prefix") for _ in range(3)}


def test_a_beginning_of_few_requests_waits_for_its_home(loads):
    home = loads.choose(URLS, hint(long("x")), policy="prefix")
    for letter in "abcdefgh" * 8:
        loads.choose(URLS, hint(long(letter)), policy="prefix")
    crowd(loads, home, GUARD_REQUESTS)
    assert loads.choose(URLS, hint(long("x")), policy="prefix") == home


def test_affinity_loses_where_the_cache_is_full(loads):
    first = loads.choose(URLS, hint(session="s"), policy="prefix")
    loads.note_report(first, EngineReport(kv_use=0.95))
    assert loads.choose(URLS, hint(session="s"), policy="prefix") != first


def test_an_engine_that_was_lost_is_left_out_for_a_while_and_taken_where_there_is_no_other(loads, clock):
    loads.note_lost("a")
    assert {loads.choose(("a", "b"), None, policy="least-loaded") for _ in range(4)} == {"b"}
    assert loads.choose(("a",), None, policy="least-loaded") == "a"
    clock.now += LOST_SECONDS
    assert {loads.choose(("a", "b"), None, policy="least-loaded") for _ in range(4)} == {"a", "b"}


def test_what_was_used_least_lately_is_forgotten_first():
    affinity = Affinity(blocks=8, sessions=2)
    for letter in "xyz":
        affinity.note(hint(long(letter), session=letter), "a", homes=URLS)
    assert not affinity.near(hint(long("x"), session="x"), {"a"}).urls
    assert affinity.near(hint(long("z")), {"a"}).urls == ("a",)
    assert affinity.near(hint(session="y"), {"a"}).urls == ("a",)


def test_an_engine_that_is_gone_is_not_chosen_for_its_memory(loads):
    loads._affinity.note(hint(long("x"), session="s"), "gone", homes=("gone",))
    assert loads.choose(URLS, hint(long("x"), session="s"), policy="prefix") in URLS


def test_prompts_are_seen_as_engines_see_them_first():
    chat = {"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]}
    assert prompt_of(chat).startswith("system\0be kind\0user")
    assert prompt_of({"prompt": "once"}) == "once"
    assert prompt_of({"prompt": [1, 2]}) == "[1, 2]"
    assert prompt_of({"messages": "nonsense"}) == prompt_of({}) == ""
    assert prompt_of({**chat, "tools": [{"name": "t"}]}).startswith("[{")


@pytest.mark.parametrize("text", ["x" * 2**22, ["x" * 2**22] * 3, [{"text": "x" * 2**22}], [7] * 2**20])
def test_of_a_long_prompt_only_the_beginning_is_made_into_text(text):
    whole = f"user\0{text}\0"
    for body in (
        {"messages": [{"role": "user", "content": text}] * 9},
        {"messages": [[{"role": "user", "content": text}]]},
    ):
        assert len(prompt_of(body)) < 2**18
        assert blocks_of("m", prompt_of(body)) == blocks_of("m", whole)
    assert not blocks_of("m", "short")
    assert set(blocks_of("m", long("x"))).isdisjoint(blocks_of("other", long("x")))


def test_a_report_is_read_from_vllms_metrics():
    text = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.5
"""
    assert report_of(text) == EngineReport(running=5, waiting=4, kv_use=0.5)
    assert report_of(b"") == EngineReport()
