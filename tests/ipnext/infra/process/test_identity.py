"""A process id that is in use again is not taken for the process that had it."""

import os
import signal
import subprocess
import sys

import pytest

from ipnext.infra.process.identity import ProcessIdentity, identify, kill, open_process, runs
from tests.waiting import until


@pytest.fixture
def sleeper(subprocesses):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as process:
        yield process
        process.kill()


def written(place, pid, stat):
    """A /proc with one process."""
    (place / str(pid)).mkdir()
    (place / str(pid) / "stat").write_text(stat)
    return place


def test_the_start_time_is_read_behind_any_name_of_a_command(tmp_path):
    fields = " ".join(str(number) for number in range(3, 53))
    proc = written(tmp_path, 7, f"7 (a) R 1) 2 3 (x) {fields}\n")
    assert identify(7, proc=proc) == ProcessIdentity(7, 22)


def test_there_is_no_identity_without_a_process(tmp_path):
    assert identify(7, proc=tmp_path) is None


def test_a_process_is_known_by_its_identity(sleeper):
    identity = identify(sleeper.pid)
    assert identity.pid == sleeper.pid
    assert runs(identity)
    os.close(open_process(identity))


def test_a_process_id_that_is_in_use_again_is_neither_opened_nor_signalled(sleeper, tmp_path):
    """As /proc tells it, another process has the id now."""
    identity = identify(sleeper.pid)
    fields = " ".join(["S", *["0"] * 18, str(identity.started_ticks + 1), *["0"] * 30])
    proc = written(tmp_path, sleeper.pid, f"{sleeper.pid} (python) {fields}\n")
    assert open_process(identity, proc=proc) is None
    assert not runs(identity, proc=proc)
    assert not kill(identity, signal.SIGKILL, proc=proc)
    assert sleeper.poll() is None


def test_a_process_that_ended_does_not_run_though_it_was_not_waited_for(sleeper):
    identity = identify(sleeper.pid)
    assert kill(identity, signal.SIGKILL)
    until(lambda: not runs(identity))
    sleeper.wait()
    assert open_process(identity) is None
    assert not kill(identity, signal.SIGKILL)
