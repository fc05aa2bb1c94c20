"""Logs are kept for a while, and never grow without end; those that a process writes stay, and go on."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipnext.infra.host import log_retention
from ipnext.infra.host.log_retention import LogLimits, LogRetention, put_aside
from ipnext.infra.host.logs import read_logs
from ipnext.infra.process.child import ChildProcess, LoggedCommand
from ipnext.infra.settings import AgentSettings
from ipnext.model.deployment.logs import LogQuery
from tests.waiting import PATIENCE_SECONDS, eventually, until

NAME = "chat.llm.cpu.0.log"
NOW = 1_000_000.0
LIMITS = LogLimits(keep_seconds=100, keep_bytes=1000, file_bytes=50, look_seconds=30)


@pytest.fixture
def keeping(tmp_path):
    return LogRetention(tmp_path, LIMITS, clock=lambda: NOW)


ECHO = """
import os, sys
for line in sys.stdin:
    os.write(1, line.encode())
    os.write(int(sys.argv[1]), line.encode())
"""


class Writer:
    """A process that writes each line that it is told to its log, which it has opened as IPnext opens logs."""

    def __init__(self, path):
        reading, writing = os.pipe()
        with path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-c", ECHO, str(writing)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
            )
        os.close(writing)
        self.seen = os.fdopen(reading)

    def write(self, line):
        """Returns once it has been written."""
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        assert self.seen.readline() == f"{line}\n"

    def end(self):
        if self.process.returncode is not None:
            return
        self.process.stdin.close()
        self.process.wait(PATIENCE_SECONDS)
        self.seen.close()


@pytest.fixture
def writer(tmp_path, subprocesses):
    writer = Writer(tmp_path / NAME)
    yield writer
    writer.end()


def leave(directory, name, *, size=10, age=0.0):
    (directory / name).write_bytes(b"x" * size)
    os.utime(directory / name, (NOW - age, NOW - age))


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_a_log_goes_when_it_was_written_long_ago_and_nobody_writes_it(tmp_path, keeping):
    leave(tmp_path, "chat.llm.cpu.0.log", age=101)
    leave(tmp_path, "chat.llm.cpu.0.engine-1a2b3c4d.log.1", age=101)
    leave(tmp_path, "chat.llm.cpu.1.log", age=99)
    leave(tmp_path, "notes.txt", age=101)
    keeping.look()
    assert names(tmp_path) == {"chat.llm.cpu.1.log", "notes.txt"}


def test_beyond_their_bytes_the_oldest_go_until_the_others_fit(tmp_path, keeping):
    for age in range(5):
        leave(tmp_path, f"chat.llm.cpu.{age}.log", size=400, age=age)
    keeping.look()
    assert names(tmp_path) == {"chat.llm.cpu.0.log", "chat.llm.cpu.1.log"}


def test_others_make_room_for_the_log_of_a_process_that_runs(tmp_path, keeping, writer):
    writer.write("x" * 40)
    os.utime(tmp_path / NAME, (0, 0))
    leave(tmp_path, "chat.llm.cpu.1.log", size=500, age=1)
    leave(tmp_path, "chat.llm.cpu.2.log", size=480)
    keeping.look()
    assert names(tmp_path) == {NAME, "chat.llm.cpu.2.log"}


def test_the_log_of_a_process_that_runs_stays_however_old_and_goes_once_it_has_ended(tmp_path, keeping, writer):
    os.utime(tmp_path / NAME, (0, 0))
    leave(tmp_path, "chat.llm.cpu.1.log", size=1001)
    keeping.look()
    assert names(tmp_path) == {NAME}
    writer.end()
    keeping.look()
    assert names(tmp_path) == set()


@pytest.mark.usefixtures("subprocesses")
def test_a_log_that_a_process_opens_just_then_comes_back(tmp_path, keeping, monkeypatch):
    leave(tmp_path, NAME, age=101)
    told = iter([frozenset(), log_retention.written_files])
    started = []

    def written():
        answer = next(told)
        if not started:
            started.append(Writer(tmp_path / NAME))
            return answer
        return answer()

    monkeypatch.setattr(log_retention, "written_files", written)
    keeping.look()
    started[0].write("still there")
    started[0].end()
    assert (tmp_path / NAME).read_text().endswith("still there\n")


def test_the_log_of_a_process_that_runs_for_long_is_put_aside_and_goes_on(tmp_path, keeping, writer):
    sizes = []
    for number in range(60):
        writer.write(f"line {number:02}")
        keeping.look()
        sizes.append((tmp_path / NAME).stat().st_size)
    assert max(sizes) <= LIMITS.file_bytes
    kept = ((tmp_path / f"{NAME}.1").read_text() + (tmp_path / NAME).read_text()).splitlines()
    assert kept == [f"line {number:02}" for number in range(60 - len(kept), 60)]
    assert len(kept) > 6
    assert names(tmp_path) == {NAME, f"{NAME}.1"}


def test_a_long_log_that_nobody_writes_keeps_its_length(tmp_path, keeping):
    leave(tmp_path, NAME, size=60)
    keeping.look()
    assert (tmp_path / NAME).stat().st_size == 60
    assert names(tmp_path) == {NAME}


def test_a_log_is_cut_also_where_there_is_no_room_to_put_it_aside(tmp_path, writer, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(log_retention.shutil, "copyfileobj", full)
    writer.write("before")
    put_aside(tmp_path / NAME)
    writer.write("after")
    assert (tmp_path / NAME).read_text() == "after\n"
    assert names(tmp_path) == {NAME}


def test_what_follows_a_log_misses_nothing_when_it_is_put_aside(tmp_path, writer):
    seen, known = [], 0

    def read():
        (log,) = [
            log
            for log in read_logs(tmp_path, LogQuery(model="chat", after={NAME: known}), region="eu", running=())
            if not log.former
        ]
        seen.append(log.text)
        return log.end

    for line in ("one", "two"):
        writer.write(line)
    known = read()
    writer.write("three")
    put_aside(tmp_path / NAME)
    writer.write("four")
    known = read()
    writer.write("five")
    known = read()
    assert "".join(seen) == "one\ntwo\nthree\nfour\nfive\n"


def test_what_a_look_left_that_was_cut_off_goes_with_the_next_one(tmp_path, keeping):
    (tmp_path / f".{NAME}.copy").write_text("half")
    keeping.look()
    assert names(tmp_path) == set()


def test_a_directory_is_looked_at_now_and_then(tmp_path):
    now = [0.0]
    keeping = LogRetention(tmp_path, LIMITS, clock=lambda: now[0])
    assert keeping.due
    keeping.look()
    now[0] = 29.0
    assert not keeping.due
    now[0] = 30.0
    assert keeping.due


def test_an_agent_looks_after_the_logs_of_its_region(new_agent, builder):
    agent = new_agent(
        environment={"IPNEXT_AGENT_LOG_LIMIT_BYTES": "500", "IPNEXT_AGENT_LOG_LOOK_SECONDS": "0.1"}
    ).start()
    model, logs = builder("talking"), agent.state / "logs"
    (logs / "talking.main.cpu.7.log").write_text("long ago")
    os.utime(logs / "talking.main.cpu.7.log", (0, 0))
    agent.serve(model, {1: (1,)}, {1: 1.0})
    (replica,) = agent.replicas(model.key())
    own = Path(replica.log)
    with own.open("ab") as log:  # as if its process had
        log.write(b"much\n" * 200)
    os.utime(own, (0, 0))
    until(lambda: not (logs / "talking.main.cpu.7.log").exists(), why=lambda: "the log of a replica that is gone goes")
    until(lambda: own.stat().st_size < 500, why=lambda: "the log of a replica that runs is cut")
    assert "much" in (logs / f"{own.name}.1").read_text()
    assert agent.replicas(model.key())[0].pid == replica.pid


@pytest.mark.usefixtures("subprocesses")
async def test_a_log_beyond_the_limit_is_put_aside_at_a_start_too(tmp_path):
    log = tmp_path / "host.log"
    log.write_text("much\n" * 200)
    child = ChildProcess(
        "host",
        LoggedCommand(
            lambda: [sys.executable, "-c", "import time; print('hello', flush=True); time.sleep(60)"],
            log_file=log,
            environment=os.environ,
            log_limit_bytes=500,
        ),
        settings=AgentSettings(),
        on_change=lambda: None,
    )
    child.start()
    await eventually(lambda: log.exists() and log.read_text() == "hello\n")
    await child.stop(5)
    assert "much" in (tmp_path / "host.log.1").read_text()
