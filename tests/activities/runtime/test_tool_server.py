"""Tools as forks of one process: what a fork is given, and that none is left, whichever process is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from activities.runtime import tool_server
from activities.runtime.child_process import ChildFiles, child_environment
from activities.runtime.tool_server import ToolServer
from tests.processes import command_line, gone
from tests.serving.confinement.test_landlock import needs_landlock
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")

MODULE = "activities.validation.check_process"
CREDENTIALS = ("IPNEXT_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "TEMPORAL_API_KEY", "PGPASSWORD")


@pytest.fixture(scope="module")
def server():
    """Start at the first run, in an environment with credentials."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CREDENTIALS:
            patch.setenv(name, "of-the-worker")
        started = ToolServer()
        yield started
        started.stop()


class Run:
    """A check whose job is a pipe that nothing writes: it ends when it is killed, or by `end`."""

    def __init__(self, directory):
        self.workspace = directory / "check"
        self.workspace.mkdir(parents=True)
        self.files = ChildFiles(directory / "answer.json", directory / "errors.txt")
        self.job = self.workspace / "job.json"
        os.mkfifo(self.job)
        rights = [str(os.getpid()), str(8 << 30), "available", "none", str(directory), str(self.workspace)]
        self.command = [sys.executable, "-m", MODULE, *rights, str(self.job), str(self.workspace)]
        self.environment = child_environment({"HOME": str(self.workspace), "TMPDIR": str(self.workspace)})

    def carry_out(self, server, beat):
        return server.run(self.command, self.files, beat, environment=self.environment)

    def process(self):
        """The one process with its command line that is confined by now; None before."""
        found = [child for child in psutil.Process().children(recursive=True) if self.is_of(child)]
        return next((child for child in found if status_of(child).get("NoNewPrivs") == "1"), None)

    def is_of(self, process):
        return str(self.workspace) in command_line(process)


def status_of(process):
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def faults_of_children(process):
    """Page faults of its children that have ended (`cminflt` in proc_pid_stat(5)): any program has some."""
    return int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[8])


class Cancelled(Exception):
    pass


def when_begun(run, seen, act):
    """Return a heartbeat that looks at the process once, as soon as it is confined."""

    def beat(_):
        if not seen and (process := run.process()) is not None:
            seen.append(process)
            act(process)

    return beat


def cancel(_):
    raise Cancelled


def test_a_fork_is_confined_and_has_no_credential_of_its_worker(server, tmp_path):
    run, found = Run(tmp_path), {}

    def look(process):
        found.update(
            status=status_of(process),
            environments=[Path(f"/proc/{pid}/environ").read_text() for pid in (process.pid, server.pid)],
            descriptors=sorted(int(file.name) for file in Path(f"/proc/{process.pid}/fd").iterdir()),
            parent=process.ppid(),
            group=os.getpgid(process.pid) == os.getsid(process.pid) == process.pid,
            nice=process.nice() - psutil.Process().nice(),
            adjusted=Path(f"/proc/{process.pid}/oom_score_adj").read_text().strip(),
            memory=psutil.Process(process.pid).rlimit(psutil.RLIMIT_DATA),
            faults=faults_of_children(process),
        )
        cancel(process)

    with pytest.raises(Cancelled):
        run.carry_out(server, when_begun(run, [], look))
    assert not any("of-the-worker" in text for text in found["environments"])
    assert found["descriptors"][:3] == [0, 1, 2]
    assert len(found["descriptors"]) <= 4, "no more than the job that it waits for"
    assert (found["parent"], found["group"], found["nice"], found["adjusted"]) == (server.pid, True, 5, "1000")
    assert found["memory"] == (8 << 30, 8 << 30)
    assert found["faults"] == 0, "it started a program before it was confined"
    assert found["status"]["Seccomp"] == "2"
    assert found["status"]["Threads"] == "1"


@needs_landlock
def test_a_fork_does_not_read_the_workspace_of_another(server, tmp_path):
    other, run = Run(tmp_path / "other"), Run(tmp_path / "own")
    job = other.workspace / "secret.json"
    job.write_text("{}")
    rights = [str(os.getpid()), str(8 << 30), "required", "none", str(tmp_path / "own"), str(run.workspace)]
    run.command = [sys.executable, "-m", MODULE, *rights, str(job), str(run.workspace)]
    assert run.carry_out(server, lambda _: None) > 0
    assert "Permission denied" in run.files.errors.read_text()


def test_a_cancelled_fork_is_gone_and_the_server_forks_the_next(server, tmp_path):
    for name in ("one", "two"):
        run, seen = Run(tmp_path / name), []
        with pytest.raises(Cancelled):
            run.carry_out(server, when_begun(run, seen, cancel))
        assert gone(seen)
    assert server.pid is not None


def test_a_killed_server_takes_its_fork_along_and_the_next_run_starts_another(server, tmp_path):
    run, seen, killed = Run(tmp_path / "one"), [], []

    def kill_server(_):
        killed.append(server.pid)
        os.kill(server.pid, signal.SIGKILL)

    assert run.carry_out(server, when_begun(run, seen, kill_server)) == -signal.SIGKILL
    assert gone(seen)
    again = Run(tmp_path / "two")
    with pytest.raises(Cancelled):
        again.carry_out(server, when_begun(again, [], cancel))
    assert server.pid not in {None, *killed}


def test_a_fork_that_is_killed_ends_by_its_signal(server, tmp_path):
    run = Run(tmp_path)
    assert run.carry_out(server, when_begun(run, [], lambda process: process.kill())) == -signal.SIGKILL


@pytest.mark.parametrize("module", ["gone.module", "json.tool"])
def test_a_server_that_does_not_start_leaves_a_fresh_process(monkeypatch, tmp_path, module):
    parents, run = [], Run(tmp_path)
    start = subprocess.Popen
    monkeypatch.setattr(
        tool_server.subprocess,
        "Popen",
        lambda command, **rest: start(
            [module if word.endswith("tool_server_process") else word for word in command], **rest
        ),
    )
    with pytest.raises(Cancelled):
        run.carry_out(ToolServer(), when_begun(run, [], lambda process: parents.append(process.ppid()) or cancel(0)))
    assert parents == [os.getpid()]


def test_another_environment_is_a_fresh_process(server, monkeypatch, tmp_path):
    first = Run(tmp_path / "one")
    with pytest.raises(Cancelled):
        first.carry_out(server, when_begun(first, [], cancel))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    run, parents = Run(tmp_path / "two"), []
    with pytest.raises(Cancelled):
        run.carry_out(server, when_begun(run, [], lambda process: parents.append(process.ppid()) or cancel(0)))
    assert parents == [os.getpid()]


def test_a_server_that_may_open_no_more_files_refuses_one_run_and_keeps_the_other(tmp_path):
    server, first, second, parents = ToolServer(), Run(tmp_path / "one"), Run(tmp_path / "two"), []

    def ask_again(process):
        host = psutil.Process(server.pid)
        host.rlimit(psutil.RLIMIT_NOFILE, (host.num_fds(), host.num_fds()))
        with pytest.raises(Cancelled):
            second.carry_out(server, when_begun(second, [], lambda fresh: parents.append(fresh.ppid()) or cancel(0)))
        assert not gone([process])
        cancel(0)

    with pytest.raises(Cancelled):
        first.carry_out(server, when_begun(first, [], ask_again))
    server.stop()
    assert parents == [os.getpid()]


def test_a_worker_with_threads_for_its_operations_has_forks_with_one(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    server, run, parents = ToolServer(), Run(tmp_path), []
    with pytest.raises(Cancelled):
        run.carry_out(server, when_begun(run, [], lambda process: parents.append(process.ppid()) or cancel(0)))
    assert parents == [server.pid]
    server.stop()


def test_a_worker_with_many_open_files_has_forks(server, tmp_path):
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    run = Run(tmp_path)
    try:
        with pytest.raises(Cancelled):
            run.carry_out(server, when_begun(run, [], cancel))
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_a_server_whose_worker_ends_while_it_imports_ends():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        words = [sys.executable, "-X", "importtime", "-m", "activities.runtime.tool_server_process", "300"]
        server = subprocess.Popen(words, stdin=theirs.fileno(), stderr=subprocess.PIPE, text=True)
    _, imported = server.communicate(timeout=PATIENCE_SECONDS)
    assert server.returncode == 0
    assert "torch.export._trace" not in imported, "the last of its imports"


def test_an_idle_server_ends_and_nothing_of_it_is_left(tmp_path):
    server, run, pids = ToolServer(idle_seconds=0.0), Run(tmp_path), []
    with pytest.raises(Cancelled):
        run.carry_out(server, lambda _: pids.append(server.pid) or cancel(0))
    until(lambda: not psutil.pid_exists(pids[0]), why=lambda: f"process {pids[0]} is there")


WORKER = """
import json, sys
from pathlib import Path
import psutil
from activities.runtime.child_process import ChildFiles
from activities.runtime.tool_server import SERVER
directory, command, environment = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
SERVER.run(command, ChildFiles(directory / "answer.json", directory / "errors.txt"), lambda _: None,
           environment=environment)
"""


@pytest.mark.parametrize("victim", ["worker", "server of a worker that stands still"])
def test_a_killed_process_leaves_none_below_it(tmp_path, victim):
    run = Run(tmp_path)
    words = [sys.executable, "-c", WORKER, str(tmp_path), json.dumps(run.command), json.dumps(dict(run.environment))]
    worker = subprocess.Popen(words)
    try:
        until(run.process, why=lambda: "the tool has not begun")
        below = psutil.Process(worker.pid).children(recursive=True)
        assert len(below) == 2
        if victim != "worker":
            worker.send_signal(signal.SIGSTOP)
            psutil.Process(worker.pid).children()[0].kill()
            until(lambda: gone(below), why=lambda: "the fork runs on")
    finally:
        worker.kill()
        worker.wait()
    until(lambda: gone(below), why=lambda: "the server or its fork runs on")
