"""docs/deltas.md: its example runs; every option and field is named."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from ipnext.model.registry.delta import ChangedTensor, DeltaDocument
from serving.deltas.command import app
from serving.host.delta_loader import LONGEST_CHAIN

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "deltas.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("subprocesses")
def test_the_example_writes_what_the_page_says(tmp_path):
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {
        name: json.loads((tmp_path / name / "delta.json").read_text())["tensors"]["state:items.weight"]["rows"]
        for name in ("tuesday", "by-hand")
    }
    assert rows == {"tuesday": 3, "by-hand": 2}


@pytest.mark.parametrize("page", ["deltas.md", "reference/cli.md"])
def test_every_option_is_named(page):
    options = {option for parameter in get_command(app).params for option in parameter.opts if option[:2] == "--"}
    text = (DOCS / page).read_text(encoding="utf-8")
    general = {"--output", "--help", "--install-completion", "--show-completion"}
    assert {option for option in options - general if option not in text} == set()


def test_every_field_and_limit_is_named():
    assert {
        name for kind in (DeltaDocument, ChangedTensor) for name in kind.model_fields if f"`{name}`" not in PAGE
    } == set()
    assert f"At most {LONGEST_CHAIN} deltas" in PAGE
