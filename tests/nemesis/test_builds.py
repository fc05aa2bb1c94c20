"""Which processes of a run start as the next build."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.nemesis.builds import build_of, command_of, set_build
from tests.workflows.builds.next_build import ADDED

API = [sys.executable, "-m", "ipnext.api", "--port", "1"]


def test_a_child_starts_as_the_build_that_is_set_for_its_name(tmp_path: Path) -> None:
    assert command_of(tmp_path, "api", API) == API

    set_build(tmp_path, "api", "next")

    python, *arguments = command_of(tmp_path, "api", API)
    assert Path(python).is_relative_to(tmp_path)
    assert arguments == API[1:]
    assert command_of(tmp_path, "api", API)[0] == python, "one environment for all"
    assert command_of(tmp_path, "worker-1", API) == API
    assert build_of(tmp_path, "worker-1") == "this"

    set_build(tmp_path, "api", "this")
    assert command_of(tmp_path, "api", API) == API


def test_a_program_that_is_no_module_of_the_platform_stays_as_it_is(tmp_path: Path) -> None:
    set_build(tmp_path, "temporal", "next")
    assert command_of(tmp_path, "temporal", ["temporal", "server"]) == ["temporal", "server"]


@pytest.mark.usefixtures("subprocesses")
def test_what_the_next_build_writes_has_a_field_more(tmp_path: Path) -> None:
    set_build(tmp_path, "api", "next")
    python = Path(command_of(tmp_path, "api", API)[0])
    imported = "from ipnext.model.wire import *; from ipnext.model.deployment.host_control import HostHolds"
    program = f"{imported}; print(HostHolds(holds=()).model_dump_json())"
    written = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout
    assert ADDED in written
