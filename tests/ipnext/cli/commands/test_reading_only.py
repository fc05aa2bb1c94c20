"""Commands that only read leave every directory as it was, whether what they look at is there or not."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from ipnext.cli import app

ROOT = Path(__file__).parents[4]
NOBODY = "127.0.0.1:1"
"""An address at which nothing listens."""

WORDS = [
    "platform check",
    "platform builds",
    "get models",
    "describe m",
    "replan status",
    f"apply --dry-run -f {ROOT}/examples/fleet.yaml",
    f"render {ROOT}/examples/chat-model.yaml",
    "plan check problem.json plan.json",
    "plan show problem.json plan.json",
    "plan diff plan.json plan.json",
    "plan explain problem.json plan.json",
    "plan conflict problem.json",
    "plan what-if problem.json --demand *=*1.1",
]


def ask(words):
    return CliRunner().invoke(app, words.split(), prog_name="ipnext")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a problem and its plan; database, artifacts and home are absent below it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IPNEXT_DATABASE_URL", f"sqlite:///{tmp_path}/data/ipnext.db")
    monkeypatch.setenv("IPNEXT_ARTIFACTS_URI", f"file://{tmp_path}/artifacts")
    monkeypatch.setenv("IPNEXT_API_URL", f"http://{NOBODY}")
    monkeypatch.setenv("TEMPORAL_ADDRESS", NOBODY)
    for words in ("plan generate --models 3 --regions 2 -o problem.json", "plan solve problem.json -o plan.json"):
        assert ask(words).exit_code == 0
    return tmp_path


def content(directory):
    return {path: path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


@pytest.mark.parametrize("words", WORDS)
def test_a_command_that_reads_creates_nothing(place, words):
    before = content(place)
    found = ask(words)
    assert found.output
    assert found.exception is None or isinstance(found.exception, SystemExit)
    assert content(place) == before


def test_a_check_names_the_file_of_the_database_and_what_to_do(place):
    found = ask("platform check -o json")
    assert found.exit_code == 1
    assert f'"no file {place}/data/ipnext.db"' in found.output
    assert "run `ipnext platform setup`, which creates it, or correct IPNEXT_DATABASE_URL" in found.output
