"""Texts of others on a terminal."""

import json

import pytest
import yaml

from ipnext.cli.output import Form, rows, write
from ipnext.cli.terminal import escape_controls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b]52;c;aGk=\x07", r"\x1b]52;c;aGk=\x07"),
        ("\x1b[2J\rforged", r"\x1b[2J\rforged"),
        ("\x9b31m \u202egnp.exe", r"\x9b31m \u202egnp.exe"),
        ("två\trader\nmed 漢字", "två\trader\nmed 漢字"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, expected):
    assert escape_controls(text) == expected


def test_cells_and_titles_of_tables_are_written_out():
    table = rows("\x1b[2Jmodels", ["name"], [["\x1b]0;title\x07"]])
    assert table.title == r"\x1b[2Jmodels"
    assert [cell.plain for cell in table.columns[0].cells][-1] == r"\x1b]0;title\x07"


@pytest.mark.parametrize(("form", "read"), [(Form.JSON, json.loads), (Form.YAML, yaml.safe_load)])
def test_documents_have_what_a_terminal_would_obey_as_escapes(capsys, form, read):
    given = {"a": "\x9b31m \u202egnp.exe\x7f", "\u2066key": ["två\nmed 漢字", "\x1b]0;\x07"]}
    write(given, form, list)
    text = capsys.readouterr().out
    assert escape_controls(text) == text
    assert read(text) == given
    assert "漢字" in text
