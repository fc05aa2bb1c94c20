"""Two replicas get the same requests in turns, and stay idle for most of the time."""

import asyncio

import pytest

from ipnext.errors import Unavailable
from ipnext.infra.host.replica_timing import time_replicas
from ipnext.model.gate.live import TimedReplica, TimingRound

NEW, SERVING = TimedReplica(id="b", generation=2), TimedReplica(id="a", generation=1)


class Hosts:
    """Hosts on a clock of their own: each answers after its seconds; requests at once wait for each other."""

    def __init__(self, **seconds):
        self.seconds = {"new": 0.02, "serving": 0.01} | seconds
        self.now = 0.0
        self.log = []
        self.busy = {NEW: 0.0, SERVING: 0.0}
        self.failing = set()
        self.hanging = {}  # replica -> requests to both after which it answers no more

    async def send(self, replica, body, seconds):
        took = min(self.seconds["new" if replica == NEW else "serving"], seconds)
        if replica in self.hanging and len(self.log) >= self.hanging[replica]:
            took = seconds
        self.now += took
        self.busy[replica] += took
        self.log.append((replica, body))
        if took == seconds:
            msg = "no answer in time"
            raise Unavailable(msg)
        if replica in self.failing:
            msg = "the host answered 500"
            raise Unavailable(msg)

    async def pause(self, seconds):
        self.now += seconds

    def run(self, **given):
        asked = {
            "requests": 40,
            "concurrency": 4,
            "seconds": 20,
            "bodies": ("1", "2", "3"),
            "new": NEW,
            "serving": SERVING,
        }
        round_ = TimingRound(model="m", part="p", **asked | given)
        return asyncio.run(time_replicas(round_, self.send, clock=lambda: self.now, pause=self.pause))


def test_half_of_the_requests_are_single_and_half_come_at_once():
    hosts = Hosts()
    times = hosts.run()
    assert [round(t, 6) for t in times.new.single] == [0.02] * 20
    assert [round(t, 6) for t in times.serving.single] == [0.01] * 20
    assert [round(t, 6) for t in times.new.together] == [0.08] * 5
    assert [round(t, 6) for t in times.serving.together] == [0.04] * 5


def test_both_get_the_same_requests_and_each_is_first_in_every_other_turn():
    hosts = Hosts()
    hosts.run()
    own = {replica: [body for to, body in hosts.log if to == replica] for replica in (NEW, SERVING)}
    assert own[NEW] == own[SERVING]
    assert set(own[NEW]) == {"1", "2", "3"}
    turns = [
        replica for index, (replica, _) in enumerate(hosts.log) if index == 0 or hosts.log[index - 1][0] != replica
    ]
    assert turns[:5] == [SERVING, NEW, SERVING, NEW, SERVING]  # a replica that ends a turn begins the next one


def test_no_replica_works_for_the_timing_longer_than_its_share():
    hosts = Hosts()
    hosts.run(share=0.25)
    assert hosts.busy[NEW] <= 0.25 * hosts.now + 1e-9
    assert hosts.busy[NEW] > 0.2 * hosts.now


def test_a_process_with_both_generations_keeps_the_share_for_both_together():
    hosts = Hosts()
    both = TimedReplica(id=SERVING.id, generation=2)
    hosts.busy[both] = 0.0
    hosts.run(new=both, share=0.25)
    assert sum(hosts.busy.values()) <= 0.25 * hosts.now + 1e-9


def test_a_slow_replica_ends_the_round_in_time_with_fewer_answers():
    hosts = Hosts(new=1.0)
    times = hosts.run(seconds=10)
    assert 0 < len(times.new.single) < 20
    assert hosts.now <= 10


def test_failed_requests_are_counted_and_give_no_time():
    hosts = Hosts()
    hosts.failing.add(NEW)
    times = hosts.run()
    assert (times.new.single, times.new.together, times.new.failed) == ((), (), 40)
    assert times.new.error == "the host answered 500"
    assert times.serving.failed == 0


@pytest.mark.parametrize("after", [0, 1, 7, 30])
@pytest.mark.parametrize("hanging", [(NEW,), (SERVING,), (NEW, SERVING)])
def test_a_replica_that_hangs_does_not_make_a_round_longer(after, hanging):
    hosts = Hosts()
    hosts.hanging = dict.fromkeys(hanging, after)
    hosts.run(seconds=10, concurrency=2)
    assert hosts.now <= 10


def test_a_replica_that_hangs_fails_its_request():
    hosts = Hosts()
    hosts.hanging = {NEW: 0}
    times = hosts.run(seconds=10)
    assert (times.new.single, times.new.failed, times.new.error) == ((), 1, "no answer in time")
    assert times.serving.failed == 0


def test_a_request_that_the_end_of_the_round_cut_short_is_no_failure():
    hosts = Hosts(new=0.7, serving=0.3)
    times = hosts.run(seconds=10, share=1.0)
    assert (times.new.failed, times.serving.failed) == (0, 0)
    assert hosts.now <= 10
