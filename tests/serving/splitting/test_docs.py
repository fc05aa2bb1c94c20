"""docs/splitting.md: its example runs and prints what the page shows; every option and field is named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ipnext.cli.app import app
from ipnext.model.manifest.split import ShardSpec, SplitPart, SplitPolicy
from serving.splitting.command import app as split_app

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "splitting.md").read_text(encoding="utf-8")


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[1]


@pytest.mark.usefixtures("subprocesses")
def test_the_example_prints_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.yaml").write_text(block("yaml"))
    done = subprocess.run([sys.executable, "-c", block("python")], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    result = CliRunner().invoke(app, ["split", "shop", "--policy", "policy.yaml", "--verify"])
    assert result.exit_code == 0, result.stderr
    assert [line.rstrip() for line in result.stdout.splitlines()] == block("text").splitlines()


@pytest.mark.parametrize("page", ["splitting.md", "reference/cli.md"])
def test_every_option_is_named(page):
    options = {option for parameter in get_command(split_app).params for option in parameter.opts if option[:2] == "--"}
    text = (DOCS / page).read_text(encoding="utf-8")
    general = {"--output", "--help", "--install-completion", "--show-completion"}
    assert {option for option in options - general if f"{option}" not in text} == set()


def test_every_field_of_a_policy_is_named():
    for model in (SplitPolicy, SplitPart, ShardSpec):
        for name in model.model_fields:
            assert name in PAGE, name
