"""Whether processes have ended: also of one that ends while one looks."""

import subprocess
import sys

import psutil
import pytest

from tests.processes import gone, runs, stopped
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")


def started():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_one_that_runs_runs_until_it_ends_and_a_zombie_does_not():
    with started() as child:
        process = psutil.Process(child.pid)
        assert runs(process)
        assert not gone([process])
        child.kill()
        until(lambda: not runs(process))
    assert gone([process])


def test_one_that_ends_between_the_two_looks_has_ended(monkeypatch):
    with started() as child:
        process = psutil.Process(child.pid)
        child.kill()
        child.wait(PATIENCE_SECONDS)
        monkeypatch.setattr(process, "is_running", lambda: True)
        assert not runs(process)


def test_one_that_is_stopped_ends_only_if_it_is_killed():
    with started() as child, started() as ended:
        processes = [psutil.Process(child.pid), psutil.Process(ended.pid)]
        ended.kill()
        ended.wait(PATIENCE_SECONDS)
        assert stopped(processes) == processes[:1]
        until(lambda: processes[0].status() == psutil.STATUS_STOPPED)  # SIGTERM would be delivered before SIGSTOP
        child.terminate()
        assert runs(processes[0])
        child.kill()
