"""Hosts that are forked from the agent's fork server live and end as those that are started afresh, and survive it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ipnext.infra.process.fork_server import ForkServer
from ipnext.infra.settings import AgentSettings
from tests.processes import command_line, gone, runs
from tests.waiting import PATIENCE_SECONDS, until

HERE = str(Path(__file__).parents[1])
FORKABLE = {
    "PYTHONPATH": HERE,
    "IPNEXT_AGENT_FORK_SERVER": '["forkable_host"]',
    "IPNEXT_AGENT_HOST_ENVIRONMENT_INHERIT": '["FORKABLE_BROKEN", "FORKABLE_THREAD", "FORKABLE_GATE"]',
    "IPNEXT_AGENT_HOST_COMMAND": json.dumps(
        [
            *("{python}", "-m", "forkable_host", "--port", "{port}", "--region", "{region}", "--id", "{id}"),
            *("--artifacts", "{artifacts}", "--cache", "{cache}"),
        ]
    ),
}


class Forking:
    """An agent with a fork server, and what its hosts told of themselves."""

    def __init__(self, agent, builder):
        self.agent, self.builder = agent, builder

    def start(self, servers=1):
        self.agent.start()
        self.server_ready(servers)
        return self

    def server_ready(self, servers):
        """Once the supervisor has said so for the so-manieth time."""
        log = self.agent.state / "logs" / "supervisor.log"
        until(
            lambda: log.read_text().count("fork server ready") >= servers,
            why=lambda: f"the fork server is ready: {log.read_text()}",
        )

    @property
    def server(self):
        return self.agent.child("fork_server_process")

    def apply(self, model, replicas=1):
        self.agent.infra.apply(self.builder(model).deployment({1: (1,)}, replicas=replicas))

    def run(self, model, replicas=1):
        """Hosts of a model, ready."""
        self.apply(model, replicas)
        self.agent.await_ready(self.builder(model).key(), 1, replicas)
        return self.replicas(model)

    def replicas(self, model):
        return self.agent.replicas(self.builder(model).key())

    def told(self, model, number=0):
        """What each process of a replica has told, the first one first."""
        log = self.agent.state / "logs" / f"{model}.dense.cpu.{number}.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line) for line in lines if line.startswith('{"forked"')]

    def message(self, model, word):
        """The message of a replica that has a word in it."""
        found = lambda: [r.message for r in self.replicas(model) if word in (r.message or "")]  # noqa: E731
        return until(found, why=lambda: f"{model} ends: {self.replicas(model)}")[0]


@pytest.fixture
def forking(new_agent, builder):
    return lambda **more: Forking(new_agent(environment=FORKABLE | more), builder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory, builder, running_agent):
    """For tests that leave agent and fork server running."""
    agent = running_agent("eu", tmp_path_factory.mktemp("forking"), environment=FORKABLE)
    try:
        yield Forking(agent, builder).start()
    finally:
        agent.close()


def test_a_forked_host_is_as_one_that_was_started(shared):
    first, second = shared.run("plain", replicas=2)
    told = [shared.told("plain", number)[0] for number in (0, 1)]
    log = str(shared.agent.state / "logs" / "plain.dense.cpu.0.log")
    assert [one["forked"] for one in told] == [True, True]
    assert {one["pid"] for one in told} == {first.pid, second.pid}
    assert {one["parent"] for one in told} == {shared.agent.supervisor.pid}
    assert told[0]["leads"]
    assert told[0]["ending"]
    assert told[0]["threads"] == 1
    assert told[0]["open"] == sorted(["/dev/null", log])
    assert told[0]["omp"] == "1"
    words = psutil.Process(told[0]["pid"]).cmdline()
    assert words == [sys.executable, "-m", "forkable_host", *told[0]["arguments"]]
    assert told[0]["random"] != told[1]["random"]
    assert told[0]["numpy"] != told[1]["numpy"]


@pytest.mark.parametrize(
    ("model", "message"),
    [("ends-0", "ended with status 0"), ("ends-3", "ended with status 3"), ("raises", "ended with status 1")],
)
def test_it_is_told_how_a_forked_host_ended(shared, model, message):
    shared.apply(model)
    assert message in shared.message(model, "ended")
    assert all(one["forked"] for one in shared.told(model))


def test_the_last_words_of_a_forked_host_are_told(shared):
    shared.apply("raises")
    assert "ValueError: wrong on purpose" in shared.message("raises", "wrong")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_forked_host_that_is_ended_by_a_signal_comes_back_forked(shared, number):
    model = f"signalled-{number.value}"
    [victim] = shared.run(model)
    os.kill(victim.pid, number)
    until(lambda: [r for r in shared.replicas(model) if r.restarts == 1 and r.pid], why=lambda: "it is started again")
    shared.agent.await_ready(shared.builder(model).key(), 1)
    [again] = shared.replicas(model)
    assert ("ended by SIGKILL" if number == signal.SIGKILL else "ended with status 0") in again.message
    assert [one["forked"] for one in shared.told(model)] == [True, True]


def test_what_a_killed_host_leaves_behind_ends_and_is_no_zombie(shared):
    [victim] = shared.run("parent")
    family = psutil.Process(victim.pid).children(recursive=True)
    stray = next(process for process in family if os.getsid(process.pid) == process.pid)
    assert len(family) == 2
    os.kill(victim.pid, signal.SIGKILL)
    until(lambda: [r for r in shared.replicas("parent") if r.restarts == 1], why=lambda: "the crash is seen")
    stray.kill()  # it left the group, so it outlives the host, as always
    until(lambda: not any(process.is_running() for process in family), why=lambda: "nothing is left, no zombie either")


def test_hosts_outlive_the_fork_server_and_another_one_takes_its_place(forking):
    run = forking().start()
    [first] = run.run("first")
    former = run.server
    former.kill()
    [second] = run.run("second")
    run.server_ready(2)
    [third] = run.run("third")
    assert run.server.pid != former.pid
    assert run.replicas("first") == [first]
    assert runs(psutil.Process(second.pid))
    assert [run.told(name)[-1]["forked"] for name in ("first", "third")] == [True, True]
    assert third.restarts == 0
    until(lambda: not former.is_running(), why=lambda: "the fork server that was killed is no zombie")


def test_a_fork_server_that_hangs_costs_no_host_and_makes_no_second_one(forking):
    run = forking().start()
    hanging = run.server
    hanging.send_signal(signal.SIGSTOP)
    [replica] = run.run("late")
    assert [one["forked"] for one in run.told("late")] == [False]
    run.server_ready(2)
    until(lambda: not hanging.is_running(), why=lambda: "it is gone")
    there = [p for p in run.agent.children() if "late.dense.cpu.0" in command_line(p) and runs(p)]
    assert [process.pid for process in there] == [replica.pid]


def test_a_fork_server_with_threads_forks_nothing(forking):
    run = forking(FORKABLE_THREAD="1").start()
    run.run("careful")
    assert [one["forked"] for one in run.told("careful")] == [False]
    assert "2 threads run" in (run.agent.state / "logs" / "supervisor.log").read_text()


def test_a_fork_server_that_cannot_import_costs_no_host(forking):
    run = forking(FORKABLE_BROKEN="1")
    run.agent.start()
    log = run.agent.state / "logs" / "fork-server.log"
    until(lambda: log.exists() and "broken on purpose" in log.read_text(), why=lambda: "the fork server ends")
    run.run("stubborn")
    assert [one["forked"] for one in run.told("stubborn")] == [False]


class Importing:
    """A region whose fork server makes its imports until `gate` is there, and a host that was wanted meanwhile."""

    def __init__(self, forking, place):
        self.gate = place / "gate"
        self.run = forking(FORKABLE_GATE=str(self.gate))
        self.run.agent.start()
        self.run.apply("early")
        self.supervisor = self.run.agent.supervisor
        until(lambda: self.run.replicas("early"), why=lambda: "the agent wants the host")

    def forked(self):
        self.run.agent.await_ready(self.run.builder("early").key(), 1)
        return [one["forked"] for one in self.run.told("early")]


@pytest.fixture
def importing(forking, tmp_path):
    return Importing(forking, tmp_path)


def test_a_host_waits_while_the_fork_server_imports_what_it_would_import(importing):
    importing.gate.touch()
    assert importing.forked() == [True]


def test_a_host_does_not_wait_for_imports_that_failed(importing):
    importing.run.server.kill()
    assert importing.forked() == [False]


def test_the_next_agent_does_not_wait_for_imports(importing):
    importing.run.agent.kill()
    importing.run.agent.start()
    assert importing.forked() == [False]
    assert importing.run.agent.supervisor == importing.supervisor


def test_a_region_ends_during_imports(importing):
    children = importing.run.agent.children()
    importing.run.agent.end()
    assert gone(children), [command_line(p) for p in children if runs(p)]


def test_a_terminated_agent_ends_forked_hosts_fork_server_and_supervisor(forking):
    run = forking().start()
    run.run("last", replicas=2)
    children = run.agent.children()
    assert len(children) == 6, [command_line(p) for p in children]  # two hosts, router, Envoy, fork server, supervisor
    run.agent.process.send_signal(signal.SIGTERM)
    run.agent.process.wait(PATIENCE_SECONDS)
    assert gone(children), [command_line(p) for p in children if runs(p)]
    with suppress(psutil.NoSuchProcess):
        assert not [p for p in psutil.process_iter() if str(run.agent.state) in command_line(p)]


def test_forked_hosts_and_the_fork_server_end_with_a_supervisor_that_is_killed(forking):
    run = forking().start()
    run.run("last", replicas=2)
    children = run.agent.children()
    run.agent.supervisor.kill()
    until(lambda: gone(children), why=lambda: f"all are gone: {[command_line(p) for p in children if runs(p)]}")


def test_a_forked_host_and_the_fork_server_outlive_an_agent_and_the_next_one_is_forked(forking):
    run = forking().start()
    [first] = run.run("first")
    server = run.server.pid
    run.agent.kill()
    run.agent.start()
    run.run("second")
    assert run.replicas("first") == [first]
    assert run.server.pid == server
    assert [one["forked"] for one in run.told("second")] == [True]
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: [r for r in run.replicas("first") if r.restarts == 1 and r.pid], why=lambda: "it is started again")
    assert "ended by SIGKILL" in run.message("first", "ended")


OTHER_ENVIRONMENT = """
import asyncio, os, sys
from pathlib import Path
from ipnext.infra.settings import AgentSettings
from ipnext.infra.process.fork_server import ForkServer

async def main(place, python, module):
    environment, log = dict(os.environ), place / "fork-server.log"
    server = ForkServer([module], log_file=log, environment=environment, settings=AgentSettings(), python=python)
    server.start()
    while not server.ready:
        await asyncio.sleep(0.01)
    for name, more in (("same", {}), ("other", {"OMP_NUM_THREADS": "7"})):
        with (place / name).open("ab") as log:
            command = [python, "-m", module, "--id", "ends-0.dense"]
            process = await server.spawn(command, environment | more, log)
        assert await process.wait() == 0
    await server.stop(5)

asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
"""


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("build", ["this one", "another one"])
def test_another_environment_needs_another_interpreter(tmp_path, build):
    """A supervisor forks for an agent of another build, whose interpreter is another one than its own."""
    python = Path(sys.executable)
    if build == "another one":
        python = tmp_path / "python"
        python.symlink_to(sys.executable)
    same, other = told_in_two_environments(tmp_path, python, "forkable_host")
    assert (same["forked"], same["omp"]) == (True, "1")
    assert (other["forked"], other["omp"]) == (False, "7")


@pytest.mark.usefixtures("subprocesses")
def test_a_package_is_forked_as_python_would_run_it(tmp_path):
    package = tmp_path / "forkable"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PACKAGE_PROGRAM)
    forked, started = told_in_two_environments(tmp_path, Path(sys.executable), "forkable")
    assert (forked["forked"], started["forked"]) == (True, False)
    assert forked["arguments"] == started["arguments"]


PACKAGE_PROGRAM = """
from forkable_host import main

if __name__ == "__main__":
    main()
"""


def told_in_two_environments(place, python, module):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([HERE, str(place), *sys.path]), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-c", OTHER_ENVIRONMENT, str(place), str(python), module],
        env=environment,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    return [json.loads((place / name).read_text()) for name in ("same", "other")]


async def test_a_look_for_orphans_that_fails_is_not_the_last(tmp_path):
    server, again = ForkServer([], log_file=tmp_path / "log", environment={}, settings=AgentSettings()), asyncio.Event()

    class Failing:
        looks = 0

        def look(self):
            self.looks += 1
            if self.looks == 1:
                raise OSError
            again.set()
            return False

    server._orphans = Failing()
    reaping = asyncio.create_task(server._reap())
    async with asyncio.timeout(PATIENCE_SECONDS):
        await again.wait()
    reaping.cancel()
