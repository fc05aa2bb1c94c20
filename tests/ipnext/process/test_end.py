"""Processes that use Temporal's client end without finalizing: its threads can abort an interpreter that does."""

import os
import subprocess
import sys

import pytest

from ipnext.errors import EXIT_BAD_INPUT

PROGRAM = """
import atexit, runpy, sys
atexit.register(print, "finalized")
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("module", ["ipnext.api", "workflows.worker"])
def test_api_and_worker_end_with_their_status_and_without_finalizing(tmp_path, module):
    environment = {
        **os.environ,
        "IPNEXT_DATABASE_URL": "mysql://nowhere",
        "IPNEXT_AGENTS": '{"eu": "http://127.0.0.1:1"}',
    }
    command = [sys.executable, "-c", PROGRAM, module]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == EXIT_BAD_INPUT, ended.stderr
    assert "finalized" not in ended.stdout
    assert "database url" in ended.stderr + ended.stdout
