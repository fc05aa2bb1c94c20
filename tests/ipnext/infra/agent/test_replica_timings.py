"""A model's replicas are timed by one round at a time, and only if they are ready."""

import asyncio
from dataclasses import dataclass

import pytest

from ipnext.errors import NotFound, Unavailable
from ipnext.infra.agent.replica_timings import ReplicaTimings
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.gate.live import TimedReplica, TimingRound

NEW, SERVING = TimedReplica(id="b", generation=2), TimedReplica(id="a", generation=1)


@dataclass(frozen=True)
class Replica:
    name: str
    ready: frozenset[int]

    @property
    def url(self):
        return f"http://{self.name}"


class Hosts:
    """Answers once `open` is set."""

    def __init__(self):
        self.open = asyncio.Event()
        self.reached = asyncio.Event()
        self.asked = []

    async def infer(self, url, model, part, generation, body, *, seconds):
        assert seconds > 0
        self.asked.append((url, model, part, generation, body))
        self.reached.set()
        await self.open.wait()


def key(model, part="dense"):
    return DeploymentKey(model=model, part=part, region="eu", hardware="cpu")


REPLICAS = {
    key(model): [Replica("a", frozenset({1})), Replica("b", frozenset({1, 2}))] for model in ("ctr", "ranker")
} | {key("ctr", "tables"): [Replica("c", frozenset({1, 2}))]}


def timing(model="ctr", new=NEW):
    return TimingRound(
        model=model, part="dense", new=new, serving=SERVING, bodies=("{}",), requests=4, concurrency=2, seconds=20
    )


async def test_a_second_round_of_a_model_is_refused_until_the_first_ends():
    hosts = Hosts()
    timings = ReplicaTimings(hosts, REPLICAS)
    first = asyncio.create_task(timings.run(timing()))
    await hosts.reached.wait()
    with pytest.raises(Unavailable, match="replicas of ctr are being timed; try again"):
        await timings.run(timing())
    hosts.open.set()
    await timings.run(timing("ranker"))
    await first
    found = await timings.run(timing())
    assert (found.new.failed, found.serving.failed) == (0, 0)
    assert ("http://b", "ctr", "dense", 2, "{}") in hosts.asked
    assert ("http://a", "ctr", "dense", 1, "{}") in hosts.asked


@pytest.mark.parametrize("wrong", [TimedReplica(id="b", generation=3), TimedReplica(id="c", generation=2)])
async def test_a_replica_that_is_not_ready_or_of_another_part_is_not_timed(wrong):
    hosts = Hosts()
    timings = ReplicaTimings(hosts, REPLICAS)
    with pytest.raises(NotFound, match=f"no replica '{wrong.id}' of ctr/dense is ready for generation"):
        await timings.run(timing(new=wrong))
    assert not hosts.asked
    hosts.open.set()
    await timings.run(timing())


async def test_a_round_that_is_cancelled_lets_the_next_one_begin():
    hosts = Hosts()
    timings = ReplicaTimings(hosts, REPLICAS)
    first = asyncio.create_task(timings.run(timing()))
    await hosts.reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    hosts.open.set()
    await timings.run(timing())
