"""Which processes of a run start as the next build."""

import sys
from pathlib import Path

from tests.nemesis.builds import NEXT_BUILD, build_of, command_of, set_build

API = [sys.executable, "-m", "ipnext.api", "--port", "1"]


def test_a_child_starts_as_the_build_that_is_set_for_its_name(tmp_path: Path) -> None:
    assert command_of(tmp_path, "api", API) == API

    set_build(tmp_path, "api", "next")

    expected = [sys.executable, str(NEXT_BUILD), str(tmp_path / "next-migrations"), "ipnext.api", "--port", "1"]
    assert command_of(tmp_path, "api", API) == expected
    assert command_of(tmp_path, "worker-1", API) == API
    assert build_of(tmp_path, "worker-1") == "this"

    set_build(tmp_path, "api", "this")
    assert command_of(tmp_path, "api", API) == API


def test_a_program_that_is_no_module_of_the_platform_stays_as_it_is(tmp_path: Path) -> None:
    set_build(tmp_path, "temporal", "next")
    assert command_of(tmp_path, "temporal", ["temporal", "server"]) == ["temporal", "server"]


def test_the_script_that_runs_the_next_build_is_there() -> None:
    assert NEXT_BUILD.is_file()
