"""Figures of a run, as a table and as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def report(title: str, found: Mapping[str, Any], file: Path | None) -> None:
    """Print the figures, and write them to `file` if it is given."""
    shown = Table(title=title)
    shown.add_column("figure")
    shown.add_column("value", justify="right")
    for name, value in found.items():
        shown.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(shown)
    if file is not None:
        file.write_text(json.dumps(found, indent=2), encoding="utf-8")
