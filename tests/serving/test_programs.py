"""What agents and hosts start by `python -m` is there by that name, and says so of itself."""

import subprocess
import sys
from importlib import import_module

import pytest

from ipnext.infra.settings import AgentSettings
from tests.waiting import PATIENCE_SECONDS

SETTINGS = AgentSettings()
COMMANDS = (SETTINGS.host_command, SETTINGS.vllm_host_command, SETTINGS.router_command)
PROGRAMS = (*(command[2] for command in COMMANDS), "serving.snapshots.fetch_process")


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_names_itself_as_it_is_started(program):
    command = [sys.executable, "-m", program, "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    assert ran.stdout.startswith(f"usage: python -m {program} ")


@pytest.mark.parametrize("program", SETTINGS.fork_server)
def test_what_is_forked_is_what_the_agent_starts_and_what_python_would_run(program):
    assert program in PROGRAMS
    found = import_module(f"{program}.__main__")
    assert found.main.__module__.startswith(program)
