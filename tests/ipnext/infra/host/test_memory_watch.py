"""A host that takes more memory than its part may is ended, and its agent says why."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from ipnext.infra.host import memory_watch
from ipnext.infra.host.memory_watch import TREE_SECONDS, UNDECLARED_SECONDS, MemoryWatch, ProcessTree
from tests.waiting import until

MIB = 2**20

GROWS = """
import os, subprocess, sys
held = bytearray(b"x") * (2**20 * int(sys.argv[1]))
if sys.argv[2] == "child":
    subprocess.Popen([sys.executable, "-c", sys.argv[3], sys.argv[1], "", ""])
if sys.argv[2] == "fork":
    os.fork()
os.write(1, b"grown\\n")
sys.stdin.read()
"""


@pytest.fixture
def grown(subprocesses):
    """Starts a process that takes some MiB, and perhaps a child that takes as many, or shares them."""
    started = []

    def start(mebibytes, *, child=False, fork=False):
        more = "child" if child else "fork" if fork else ""
        command = [sys.executable, "-c", GROWS, str(mebibytes), more, GROWS]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        for _ in range(2 if more else 1):
            assert process.stdout.readline() == b"grown\n"
        return process.pid

    yield start
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def watch(budget, allowance=0, undeclared=2**50):
    found = MemoryWatch(allowance, undeclared, tree=ProcessTree())
    found.budget_bytes = budget
    return found


def test_a_process_is_too_large_beyond_its_budget_and_what_is_allowed_beside(grown):
    pid = grown(256)
    assert "MB of memory; its memoryBytes are 104.9 MB, and 0.0 MB beyond" in watch(100 * MIB).excess(pid)
    assert watch(100 * MIB, 1024 * MIB).excess(pid) is None
    assert watch(1024 * MIB).excess(pid) is None
    assert watch(None).excess(pid) is None


def test_a_process_without_a_budget_has_the_limit_of_the_machine(grown):
    pid, now = grown(256), 0.0
    found = MemoryWatch(0, 100 * MIB, lambda: now, tree=ProcessTree())
    expected = "its part has no memoryBytes, and without them a host may take 104.9 MB"
    assert expected in found.excess(pid)
    assert found.excess(pid) is None, "looked at every few seconds"
    now = UNDECLARED_SECONDS
    assert expected in found.excess(pid)
    assert watch(None, undeclared=1024 * MIB).excess(pid) is None


def test_what_it_has_started_counts(grown):
    alone, family = grown(200), grown(200, child=True)
    assert watch(300 * MIB).excess(alone) is None
    assert watch(300 * MIB).excess(family)


def test_hosts_that_are_checked_at_a_time_share_one_reading_of_the_machines_processes(grown, monkeypatch):
    readings, clock = [], SimpleNamespace(now=0.0)
    read = memory_watch._read_children
    monkeypatch.setattr(memory_watch, "_read_children", lambda: readings.append(clock.now) or read())
    hosts, tree = [grown(200, child=True) for _ in range(2)], ProcessTree(lambda: clock.now)
    for moment in (0.0, TREE_SECONDS / 2, TREE_SECONDS):
        clock.now = moment
        for pid in hosts:
            found = MemoryWatch(0, 2**50, tree=tree)
            found.budget_bytes = 300 * MIB
            assert found.excess(pid)
    assert readings == [0.0, TREE_SECONDS]


@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_has_gone_takes_nothing():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert watch(1).excess(process.pid) is None


def test_pages_that_processes_share_are_counted_once(grown):
    """A fork has all that its parent had."""
    family = grown(256, fork=True)
    assert watch(400 * MIB).excess(family) is None
    assert watch(200 * MIB).excess(family)


def test_an_agent_ends_a_host_that_takes_too_much_and_no_other(new_agent, builder):
    agent = new_agent(environment={"IPNEXT_AGENT_HOST_MEMORY_ALLOWANCE_BYTES": "0"}).start()
    limited, free = builder("limited"), builder("free")
    for model, budget in ((limited, 256 * MIB), (free, None)):
        wanted = model.deployment({1: (1,)}, grow_bytes=512 * MIB).model_copy(update={"memory_bytes": budget})
        agent.infra.apply(wanted)
    until(lambda: agent.replicas(free.key())[0].ready == (1,))

    def message():
        (replica,) = agent.replicas(limited.key())
        return replica.message if replica.restarts else None

    assert "MB of memory; its memoryBytes are 268.4 MB, and 0.0 MB beyond are allowed" in until(message)
    (other,) = agent.replicas(free.key())
    assert (other.restarts, other.ready) == (0, (1,))
