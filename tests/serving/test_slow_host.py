"""A real host that gets a twentieth of the time: it is left out while it is slow, and works again when it is fast."""

import json
import re
import signal
import threading
from contextlib import contextmanager

import pytest

from tests.serving.load import Load
from tests.waiting import until

CLIENTS = 8
PARTS = ("sparse", "dense")
RUNS_SECONDS, STANDS_SECONDS = 0.03, 0.57
"""Of each 0.6 s: a request that comes meanwhile waits 0.27 s in the mean."""
_REQUESTS = re.compile(r'ipnext_part_requests_total\{[^}]*part="dense"[^}]*\} ([0-9.]+)')


class Pair:
    """Two hosts of both parts behind a router."""

    def __init__(self, machine, published, toolbox):
        self.log = machine.root / "router.log"
        self.hosts = [machine.start_host(name, wait=False) for name in ("a", "b")]
        self.router = machine.start_router("router")
        for host in self.hosts:
            until(host.answers)
            host.hold(*(published.hold(part, 1) for part in PARTS))
            assert not host.settle().failures
        self.router.follow(toolbox.table_of(1, self.hosts, 1))

    def left_out(self):
        """How often the router has left the first host out so far because it fell behind."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        out = [(line["url"], line["why"]) for line in lines if line["event"] == "host left out for a while"]
        return out.count((self.hosts[0].url, "behind"))

    def walks(self):
        """Requests that each host has walked, by its own count."""
        return [sum(map(float, _REQUESTS.findall(host.get("/metrics").text))) for host in self.hosts]

    def share_of_first(self, load, count):
        """The first host's share of the next `count` requests or so."""
        before = self.walks()
        load.more(count)
        first, second = (now - then for now, then in zip(self.walks(), before, strict=True))
        return first / (first + second)


@contextmanager
def slowed(host):
    """Stop the process nineteen twentieths of the time."""
    done = threading.Event()

    def throttle():
        while not done.is_set():
            host.process.send_signal(signal.SIGSTOP)
            done.wait(STANDS_SECONDS)
            host.process.send_signal(signal.SIGCONT)
            done.wait(RUNS_SECONDS)

    thread = threading.Thread(target=throttle)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.fixture
def pair(machine, published, toolbox):
    return Pair(machine, published, toolbox)


def test_a_slow_host_gets_few_requests_and_comes_back_when_it_is_fast_again(pair, toolbox):
    slow, _ = pair.hosts
    with Load(pair.router, toolbox.example(2), clients=CLIENTS) as load:
        load.more(200)
        until(lambda: pair.share_of_first(load, 400) > 0.3)
        before = pair.left_out()
        with slowed(slow):
            until(lambda: pair.left_out() > before)
            share = pair.share_of_first(load, 1000)
        until(lambda: pair.share_of_first(load, 200) > 0.3)
    assert set(load.statuses()) == {200}
    assert share < 0.1
