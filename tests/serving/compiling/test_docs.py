"""docs/compiling.md: its table is in the command's form; every option, file and field is named."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from ipnext.names import COMPILE_SETTING, LIBRARY_FILE
from serving.compiling.command import app as compile_app
from serving.compiling.cpu_levels import LEVELS, NATIVE
from serving.compiling.report import CompileReport
from serving.engines.torch.compiled import CALLS_FILE, COMPILED_FILE, LibraryDeviation

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "compiling.md").read_text(encoding="utf-8")
REFERENCE = (
    (DOCS / "reference" / "cli.md")
    .read_text(encoding="utf-8")
    .partition("### ipnext compile")[2]
    .partition("\n### ")[0]
)


@pytest.mark.parametrize("text", [PAGE, REFERENCE], ids=["page", "reference"])
def test_every_option_is_named(text):
    options = {
        option for parameter in get_command(compile_app).params for option in parameter.opts if option[:2] == "--"
    }
    general = {"--output", "--help", "--install-completion", "--show-completion"}
    assert {option for option in options - general if option not in text} == set()
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= options | {"--verify", "--part", "--key"}


def test_every_file_level_and_field_is_named():
    for name in (LIBRARY_FILE, CALLS_FILE, COMPILED_FILE, f"`{COMPILE_SETTING}`", *LEVELS, NATIVE):
        assert name in PAGE, name
    for name in (*CompileReport.model_fields, *LibraryDeviation.model_fields):
        assert f"`{name}`" in REFERENCE, name
