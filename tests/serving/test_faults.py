"""Real hosts and a real router under load.

Processes are killed and stopped, requests go on, and capacity returns by itself.
"""

import signal
import time

import psutil
import pytest

from tests.serving.load import NO_CONNECTION, Load
from tests.waiting import until

CLIENTS = 4
PARTS = ("sparse", "dense")


class Fleet:
    """Hosts of these tests alone, each holding both parts of generation 1, behind a router of its own."""

    def __init__(self, machine, published, toolbox):
        self.machine, self.published, self.toolbox = machine, published, toolbox
        self.hosts = [machine.start_host(name, wait=False) for name in ("a", "b")]
        self.router = machine.start_router("router")
        for host in self.hosts:
            until(host.answers)
            self.hold(host)
        self.revision = 0
        self.route()

    def hold(self, host):
        host.hold(*(self.published.hold(part, 1) for part in PARTS))
        assert not host.settle().failures

    def route(self):
        self.revision += 1
        self.router.follow(self.toolbox.table_of(self.revision, self.hosts, 1))

    def be_fresh(self):
        """As after a start: both hosts run, and the router knows nothing of what happened to them."""
        for host in self.hosts:
            host.process.send_signal(signal.SIGCONT)
            until(host.answers)
            assert len(host.state().ready) == len(PARTS)
        self.revision += 1
        self.router.follow(self.toolbox.table_of(self.revision, [], 1))
        self.route()

    def takes_part(self, host):
        """Wait until a host works under the load; one without requests needs no processor time."""
        process = psutil.Process(host.process.pid)
        before = process.cpu_times().user
        until(lambda: process.cpu_times().user > before + 0.2)


@pytest.fixture(scope="module")
def own_fleet(tmp_path_factory, published, toolbox, subprocesses):
    machine = toolbox.machine(tmp_path_factory.mktemp("faults"), published.store.uri)
    yield Fleet(machine, published, toolbox)
    machine.close()


@pytest.fixture
def fleet(own_fleet):
    own_fleet.be_fresh()
    return own_fleet


def mixed(load):
    return [answer for answer in load.answers if answer.mixed or answer.apart or answer.proof != answer.used]


def overtaken(answer, answers):
    """Whether many that began after it were answered before it: it was held up, and not the machine as a whole."""
    end = answer.began + answer.seconds
    return sum(answer.began < other.began and other.began + other.seconds < end for other in answers) > 2 * CLIENTS


def costs_few(bad, during, most):
    """Whether a stopped host held up no more than so many.

    Among all answers few also where all clients waited for it together.
    """
    return sum(overtaken(answer, during) for answer in bad) <= most and 4 * len(bad) < len(during)


def answered_without(load, stopped_at):
    """Whether the other host has answered long and often enough since then."""
    return time.monotonic() - stopped_at > 5 and load.statuses(since=stopped_at)[200] > 200


def test_a_killed_host_fails_no_request_and_is_found_again_when_it_is_back(fleet, toolbox):
    victim, _ = fleet.hosts
    with Load(fleet.router, toolbox.example(2), clients=CLIENTS) as load:
        load.more(40)
        victim.process.kill()
        load.more(100)
        fleet.machine.restart(victim)
        fleet.hold(victim)
        fleet.takes_part(victim)
    assert set(load.statuses()) == {200}
    assert mixed(load) == []


def test_a_stopped_host_holds_up_only_the_requests_it_has_and_is_found_again_when_it_goes_on(fleet, toolbox):
    victim, _ = fleet.hosts
    with Load(fleet.router, toolbox.example(2), clients=CLIENTS) as load:
        load.more(40)
        victim.process.send_signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        until(lambda: answered_without(load, stopped_at), why=lambda: load.statuses(since=stopped_at))
        during = load.since(stopped_at)
        victim.process.send_signal(signal.SIGCONT)
        fleet.takes_part(victim)
    assert set(load.statuses()) == {200}
    assert mixed(load) == []
    assert costs_few([answer for answer in during if answer.seconds > 1.0], during, 2 * CLIENTS)


def test_a_stopped_host_costs_requests_of_short_deadlines_a_few_errors_and_no_more(fleet, toolbox):
    victim, _ = fleet.hosts
    with Load(fleet.router, toolbox.example(2), clients=CLIENTS, deadline_ms=400) as load:
        load.more(40)
        victim.process.send_signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        until(lambda: answered_without(load, stopped_at), why=lambda: load.statuses(since=stopped_at))
        during = load.since(stopped_at)
        victim.process.send_signal(signal.SIGCONT)
    assert {answer.status for answer in during} <= {200, 504}
    assert costs_few([answer for answer in during if answer.status == 504], during, 4 * CLIENTS)
    assert mixed(load) == []


def test_a_killed_router_is_as_it_was_once_it_is_back(fleet, toolbox):
    with Load(fleet.router, toolbox.example(2), clients=CLIENTS) as load:
        load.more(40)
        fleet.router.process.kill()
        fleet.machine.restart(fleet.router)
        back_at = time.monotonic()
        load.more(40)
        after = load.statuses(since=back_at)
    assert set(after) == {200}
    assert set(load.statuses()) == {200, NO_CONNECTION}
    assert mixed(load) == []
