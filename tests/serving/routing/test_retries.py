"""A request whose host ended goes to no other host: it waits for that one, and a second end of it is told."""

import time

import pytest

from ipnext.errors import HostLost, QueryOfDeath, Unavailable
from serving.routing.host_call import CallState, HostEnded, RetryOnOtherHost
from serving.routing.lost_requests import REMEMBERED_SECONDS, LostRequests
from serving.routing.retries import run_with_retry

BODY = bytearray(b"a body")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Hosts:
    """Does as `script` says, attempt by attempt, and notes which hosts might be asked."""

    def __init__(self, *script, seconds=60.0):
        self.script = list(script)
        self.asked = CallState(time.monotonic() + seconds)
        self.allowed = []
        self.again = []

    async def attempt(self):
        self.allowed.append(dict(self.asked.only))
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return step

    async def run(self, record=None):
        return await run_with_retry(self.attempt, self.asked, again=self.again.append, subject="m", record=record)


def ended(url="http://a", part="p", *, in_company=False):
    return HostEnded(part, url, in_company=in_company)


async def test_a_refused_request_is_made_again_once_anywhere():
    hosts = Hosts(RetryOnOtherHost("not held"), "answer")
    assert await hosts.run() == "answer"
    assert (hosts.allowed, hosts.again) == ([{}, {}], [True])
    with pytest.raises(Unavailable, match="m: no host answers; not held"):
        await Hosts(RetryOnOtherHost("not held")).run()


async def test_a_request_whose_host_ended_waits_for_that_host_alone():
    hosts = Hosts(ended(), RetryOnOtherHost("http://a is not ready"), RetryOnOtherHost("not held"), "answer")
    assert await hosts.run() == "answer"
    assert hosts.allowed == [{}, *[{"p": "http://a"}] * 3]
    assert hosts.again.count(True) == 1, "one retry, however long it waits"


async def test_a_request_that_was_lost_with_others_goes_to_one_other_host_at_once():
    hosts = Hosts(ended(in_company=True), "answer")
    record = LostRequests()
    assert await hosts.run(record.of("m", lambda: (BODY,))) == "answer"
    assert (hosts.allowed, hosts.again) == ([{}, {}], [True])
    assert not record.known, "others were lost with it, and it was answered elsewhere"


@pytest.mark.parametrize("with_others", [True, False])
async def test_a_request_that_takes_a_second_host_with_it_goes_to_no_third_one(with_others):
    hosts = Hosts(ended("http://a", in_company=True), ended("http://b", in_company=with_others), "answer")
    assert await hosts.run() == "answer"
    assert hosts.allowed == [{}, {}, {"p": "http://b"}]
    with pytest.raises(QueryOfDeath):
        await Hosts(*[ended("http://a", in_company=True)] * 3).run()


async def test_where_no_other_host_takes_what_was_lost_with_others_it_waits_for_its_own():
    for script in ([RetryOnOtherHost("not held")], []):
        hosts = Hosts(
            *script, ended(in_company=True), RetryOnOtherHost("not held"), RetryOnOtherHost("not ready"), "answer"
        )
        assert await hosts.run() == "answer"
        assert hosts.allowed[-1] == {"p": "http://a"}


async def test_a_request_that_only_its_own_host_would_take_again_is_remembered_as_lost():
    lost = LostRequests()
    hosts = Hosts(ended(in_company=True), RetryOnOtherHost("not held"), seconds=0.3)
    with pytest.raises(HostLost):
        await hosts.run(lost.of("m", lambda: (BODY,)))
    assert lost.known


async def test_where_its_host_is_not_back_in_time_another_one_is_asked_once():
    hosts = Hosts(ended(), *[RetryOnOtherHost("http://a is not ready")] * 3, "answer", seconds=0.6)
    assert await hosts.run() == "answer"
    assert hosts.allowed[1] == {"p": "http://a"}
    with pytest.raises(HostLost, match="http://a ended while it had this request, and is not back; http://a is"):
        await Hosts(ended(), RetryOnOtherHost("http://a is not ready"), seconds=0.4).run()
    last = Hosts(ended(), RetryOnOtherHost("http://a is not ready"), seconds=0.4)
    with pytest.raises(HostLost):
        await last.run()
    assert last.allowed[-1] == {}
    assert last.allowed[1:-1] == [{"p": "http://a"}] * (len(last.allowed) - 2)


async def test_a_request_that_ends_its_host_twice_is_a_query_of_death():
    with pytest.raises(QueryOfDeath, match="http://a ended while it had this request, and http://a when"):
        await Hosts(ended(), ended()).run()


async def test_the_same_bytes_are_known_for_a_minute():
    clock = Clock()
    lost = LostRequests(clock)
    with pytest.raises(QueryOfDeath):
        await Hosts(ended(), ended()).run(lost.of("m", lambda: (BODY,)))
    hosts = Hosts("answer")
    with pytest.raises(QueryOfDeath, match="ended its host twice; it is sent to none"):
        await hosts.run(lost.of("m", lambda: (bytearray(BODY),)))
    assert hosts.allowed == []
    assert await hosts.run(lost.of("m", lambda: (b"another",))) == "answer"
    assert await hosts.run(lost.of("other", lambda: (BODY,))) == "answer"
    clock.now += REMEMBERED_SECONDS
    assert await hosts.run(lost.of("m", lambda: (BODY,))) == "answer"
    assert not lost.known


@pytest.mark.parametrize("with_others", [True, False])
async def test_a_lost_request_that_comes_again_goes_anywhere_and_is_refused_once_it_ends_a_second_host(with_others):
    """Its bytes may be those of many innocent requests, such as a probe's."""
    for last in ("answer", ended("http://b", in_company=with_others)):
        lost = LostRequests()
        with pytest.raises(HostLost):
            await Hosts(ended(), RetryOnOtherHost("not ready"), seconds=0.3).run(lost.of("m", lambda: (BODY,)))
        hosts = Hosts(last)
        if last == "answer":
            assert await hosts.run(lost.of("m", lambda: (BODY,))) == "answer"
            assert not lost.known, "it was answered"
        else:
            with pytest.raises(QueryOfDeath, match="http://b ended while it had this request, as http://a had"):
                await hosts.run(lost.of("m", lambda: (BODY,)))
            with pytest.raises(QueryOfDeath, match="it is sent to none"):
                await Hosts("answer").run(lost.of("m", lambda: (BODY,)))
        assert hosts.allowed == [{}]


async def test_a_query_of_death_of_a_host_that_executes_a_graph_is_remembered_and_what_it_lost_is_not():
    for error in (HostLost("part 'q': gone"), QueryOfDeath("part 'q': twice")):
        lost = LostRequests()
        hosts = Hosts(error)
        with pytest.raises(type(error), match="part 'q'"):
            await hosts.run(lost.of("m", lambda: (BODY,)))
        assert len(hosts.allowed) == 1
        if isinstance(error, QueryOfDeath):
            with pytest.raises(QueryOfDeath, match="the same request"):
                await Hosts("answer").run(lost.of("m", lambda: (BODY,)))
        else:
            assert await Hosts("answer").run(lost.of("m", lambda: (BODY,))) == "answer"


@pytest.mark.parametrize("size", [0, 1, 2**19, 2**20, 3 * 2**20])
def test_bodies_are_known_by_length_beginning_and_end(size):
    lost = LostRequests()
    body = bytearray(size)
    others = [bytearray(size + 1), *([b"x" + body[1:], body[:-1] + b"y"] if size else [])]
    keys = {lost.of("m", lambda content=content: (bytes(content),)).key for content in (body, *others)}
    assert len(keys) == 1 + len(others)
    assert lost.of("m", lambda: (bytearray(size),)).key in keys
