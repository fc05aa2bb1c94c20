"""How a generation that is cut is shown: its segments, and those of single hardware kinds."""

from io import StringIO

import pytest
from rich.console import Console

from ipnext.cli.tables.layouts import layout_tables
from ipnext.model.registry.registry import SplitLayout

LAYOUT = {
    "source": "whole",
    "digest": "0" * 64,
    "cut": "0" * 64,
    "equal_at": [1],
    "parts": [
        {
            "name": "tables",
            "modules": ["tables"],
            "size_bytes": 4,
            "hardware": [{"kind": "cpu", "units": 1, "qps": 1}],
            "segments": [{"name": "tables", "stage": 0, "snapshot": 1, "size_bytes": 4}],
        }
    ],
    "graph": {
        "nodes": [{"name": "tables", "part": "tables", "inputs": {"x": "request.x"}}],
        "outputs": {"x": "tables.x"},
    },
}


def kinds(**segments):
    return {kind: {"digest": "1" * 64, "segments": cut} for kind, cut in segments.items()}


@pytest.mark.parametrize(
    ("by_hardware", "head", "line"),
    [
        ({}, ["segment", "stage", "snapshot", "bytes"], "tables 0 1 4"),
        (
            kinds(small={"tables": 3}, large={}),
            ["segment", "stage", "snapshot", "bytes", "on", "hardware"],
            "tables 0 1 4 3 on small",
        ),
    ],
)
def test_segments_are_shown_with_their_snapshots_on_each_hardware_kind(by_hardware, head, line):
    text = StringIO()
    console = Console(width=200, file=text)
    console.print(*layout_tables(SplitLayout.model_validate({**LAYOUT, "by_hardware": by_hardware}), "parts"))
    shown = [each.split() for each in text.getvalue().splitlines()]
    assert shown[shown.index(head) + 1] == line.split()
