"""Children of the embedded platform that are forks of it: like processes that were started afresh, and gone with it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.processes import command_line, gone
from tests.waiting import PATIENCE_SECONDS, until

PROGRAMS = Path(__file__).parent / "programs"
pytestmark = pytest.mark.usefixtures("subprocesses")


@contextmanager
def supervising(directory: Path, how: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that starts the example and waits for it."""
    path = os.pathsep.join([str(PROGRAMS), *sys.path])
    command = [sys.executable, str(PROGRAMS / "supervising.py"), str(directory / "log"), how, *more]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"FIRST": "1", **os.environ, "PYTHONPATH": path, "INHERITED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def told(directory: Path) -> dict[str, Any]:
    """What the example said of itself."""
    until(lambda: "\n" in _text(directory), why=lambda: _text(directory))
    found: dict[str, Any] = json.loads(_text(directory).splitlines()[0])
    return found


def _text(directory: Path) -> str:
    log = directory / "log"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize(
    ("more", "forked"),
    [((), True), (("plain",), False), (("thread",), False), (("late",), False)],
    ids=["preloaded", "plain", "thread", "the environment has changed before"],
)
def test_a_child_is_a_fork_if_its_module_was_preloaded_no_other_thread_runs_and_it_gets_its_command_line(
    tmp_path: Path, more: tuple[str, ...], forked: bool
) -> None:
    with supervising(tmp_path, "sleeps", *more) as parent:
        said = told(tmp_path)
        words = command_line(psutil.Process(said["pid"])).strip()
        assert said == {
            "forked": forked,
            "pid": said["pid"],
            "parent": parent.pid,
            "leads": True,
            "arguments": ["sleeps", "--more"],
            "given": "1",
            "inherited": "1",
            "ending": True,
            "handlers": 0,
            "open": sorted(["/dev/null", str(tmp_path / "log")]),
        }
        assert words == f"{sys.executable} -m preloaded_example sleeps --more"


@pytest.mark.parametrize(
    ("how", "status", "words"), [("returns", 3, ""), ("exits", 4, ""), ("raises", 1, "ValueError: wrong on purpose")]
)
def test_the_status_of_a_fork_is_that_of_its_program(tmp_path: Path, how: str, status: int, words: str) -> None:
    with supervising(tmp_path, how) as parent:
        output, _ = parent.communicate(timeout=PATIENCE_SECONDS)
    assert output.splitlines()[1] == f"{status} {status}"
    assert words in _text(tmp_path)


def test_a_fork_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    with supervising(tmp_path, "sleeps") as parent:
        told(tmp_path)
        output, _ = parent.communicate("end\n", timeout=PATIENCE_SECONDS)
    assert output.splitlines()[1] == f"{-signal.SIGTERM} {-signal.SIGTERM}"


def test_a_fork_ends_with_the_process_that_forked_it(tmp_path: Path) -> None:
    with supervising(tmp_path, "sleeps") as parent:
        child = psutil.Process(told(tmp_path)["pid"])
        parent.kill()
        until(lambda: gone([child]))
