"""A platform that tests have started ends with their process, however that ends.

No client is given its key afterwards.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ipnext.errors import EXIT_FAILURE
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("platforms")]

ROOT = Path(__file__).parents[2]
TESTS = """
import json, sys, time
from pathlib import Path
from tests.e2e.conftest import NO_HOSTS, Running
running = Running(Path(sys.argv[1]), **NO_HOSTS).start()
pids = [running.process.pid, *(process.pid for process in running.family())]
print(json.dumps({"api": running.endpoints["api"], "pids": pids}), flush=True)
time.sleep(3600)
"""


def test_no_process_of_a_platform_outlives_tests_that_are_killed_and_its_key_is_struck_off(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials.json"
    environment = {**os.environ, "IPNEXT_CREDENTIALS_FILE": str(credentials)}
    command = [sys.executable, "-c", TESTS, str(tmp_path / "state")]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as tests:
        assert tests.stdout is not None
        started = json.loads(tests.stdout.readline())
        family = [psutil.Process(pid) for pid in started["pids"]]
        assert len(family) > 8
        tests.send_signal(signal.SIGKILL)
    until(lambda: gone(family), why=lambda: [process for process in family if not gone([process])])

    assert len(json.loads(credentials.read_text())) == 1, "it was killed before it could strike it off"
    asks = [sys.executable, "-m", "ipnext.cli", "whoami"]
    asked = subprocess.run(
        asks,
        env={**environment, "IPNEXT_API_URL": started["api"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert asked.returncode == EXIT_FAILURE, asked
    assert "no API answers" in asked.stderr
    assert json.loads(credentials.read_text()) == {}
