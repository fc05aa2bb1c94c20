"""A child that is tied to its parent does not outlive it."""

import subprocess
import sys

import psutil
import pytest

from tests.processes import runs
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("subprocesses")

PARENT = """
import subprocess, sys, time
from ipnext.infra.process.parent_death import tether
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], preexec_fn=tether())
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_takes_its_child_along():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        until(lambda: not runs(child), why=lambda: "the child ends")
