"""Tables of docs/genai-benchmarks.md.

Made from rows, put between its marks together with the command and the machine.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.environments import ROOT

PAGE: Final = ROOT / "docs" / "genai-benchmarks.md"


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, str]]) -> str:
    """Return a Markdown table; `columns` map a row's key to its heading and the form of its values."""
    lines = ["| " + " | ".join(heading for heading, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = (form.format(row[key]) if row.get(key) is not None else "" for key, (_, form) in columns.items())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rewrite(name: str, text: str) -> None:
    """Replace a measured block of the page. Of absolute paths the command tells the last name only."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- measured: {name} -->", "<!-- end -->"
    before, rest = page.split(begin, 1)
    _, after = rest.split(end, 1)
    words = (Path(word).name if word.startswith("/") else word for word in sys.argv[1:])
    program = sys.modules["__main__"].__spec__
    if program is None:
        msg = "the page tells a command: run the benchmark by `python -m`"
        raise RuntimeError(msg)
    command = f"python -m {program.name} {shlex.join(words)}".rstrip()
    told = f"`{command}`, {os.cpu_count()} cores:"
    PAGE.write_text(f"{before}{begin}\n\n{told}\n\n{text}\n{end}{after}", encoding="utf-8")
