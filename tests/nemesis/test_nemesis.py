"""Real processes under real faults: every promise holds, and a history tells so."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.nemesis.checks.story import Story
from tests.nemesis.faults.schedule import PLACES
from tests.nemesis.history import read_history

ROOT = Path(__file__).parents[2]


ELSEWHERE = {"ask_replan:before", "ask_replan:after"}
"""Places of what only a way back asks that a disaster left short of replicas:
tests/workflows/regions/test_lost_on_the_way.py."""


def nemesis(directory: Path, *arguments: str) -> Story:
    """One run that keeps every promise; its story."""
    command = [sys.executable, "-m", "tests.nemesis", "--directory", str(directory), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return Story(read_history(directory / "history.jsonl"))


@pytest.mark.e2e
def test_every_promise_holds_under_some_faults(tmp_path: Path) -> None:
    """One fault of each kind, over two models, with users who ask a quarter as often as in a minute of faults.

    The seed has an engineer who drains no region so soon.
    """
    few = ("--each", "1", "--models", "pair,solo", "--seed", "879", "--faults", "kill,stop,partition", "--pause", "0.3")
    story = nemesis(tmp_path, *few)
    assert {window.fault["kind"] for window in story.windows} >= {"kill", "stop"}  # and a partition where one may
    assert len(story.answers) > 200
    assert any(change.state == "done" for changes in story.changes.values() for change in changes)


@pytest.mark.nemesis
@pytest.mark.parametrize("seed", [7, 11])
def test_every_promise_holds_under_a_minute_of_faults(tmp_path: Path, seed: int) -> None:
    story = nemesis(tmp_path, "--seconds", "60", "--seed", str(seed))
    assert len(story.windows) >= 5


@pytest.mark.nemesis
@pytest.mark.timeout(1500)
def test_every_promise_holds_with_runs_terminated_a_region_away_for_long_and_builds_mixed(tmp_path: Path) -> None:
    story = nemesis(tmp_path, "--each", "6", "--faults", "terminate,away,build", "--seed", "5")
    assert {window.fault["kind"] for window in story.windows} >= {"terminate", "build"}


@pytest.mark.nemesis
@pytest.mark.timeout(1500)
def test_every_promise_holds_with_the_worker_killed_at_each_boundary_under_load(tmp_path: Path) -> None:
    story = nemesis(tmp_path, "--boundaries")
    assert {window.fault["role"] for window in story.windows} >= set(PLACES) - ELSEWHERE
