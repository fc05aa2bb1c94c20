"""What the summary of the tests' processor time tells."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.processor_time import MOST, spent_seconds, summarize
from tests.waiting import until


def test_the_summary_has_tiers_then_the_rest_then_the_files_and_tests_that_took_most():
    spent = Counter({"tests/a.py": 1.0, "tests/b.py": 30.0, "tier pure": 31.0, "tier e2e": 40.0, "imports": 12.0})
    spent.update({"tests/b.py::test_b[a.py]": 29.0, "tests/b.py::test_a": 30.0})

    assert summarize(spent) == [
        "    40.0  tier e2e",
        "    31.0  tier pure",
        "    12.0  imports",
        "    30.0  tests/b.py",
        "     1.0  tests/a.py",
        "    30.0  tests/b.py::test_a",
        "    29.0  tests/b.py::test_b[a.py]",
    ]


def test_the_summary_ends():
    assert len(summarize(Counter({f"tests/{number}.py": 1.0 for number in range(1000)}))) == MOST


def test_work_of_this_process_counts():
    before = spent_seconds()
    while spent_seconds() == before:
        sum(range(10**5))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is asked for its children")
@pytest.mark.usefixtures("subprocesses")
def test_work_of_a_process_counts_while_it_runs_and_only_once():
    def of_others():
        return spent_seconds() - time.process_time()

    before = of_others()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            until(lambda: of_others() > before + 0.2)
            busy.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, busy.pid, os.WSTOPPED)
            stopped = of_others()
        finally:
            busy.kill()
    assert of_others() == pytest.approx(stopped, abs=0.1)
