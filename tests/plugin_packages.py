"""Writes distributions with entry points, as a package manager would install them."""

import importlib
from collections.abc import Mapping
from pathlib import Path


def write_distribution(directory: Path, name: str, code: str, points: Mapping[str, Mapping[str, str]]) -> None:
    """A module `name` with this code, and its metadata: entry-point group -> name -> value."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.py").write_text(code, encoding="utf-8")
    information = directory / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    groups = (f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in found.items()) for group, found in points.items())
    (information / "entry_points.txt").write_text("\n".join(groups), encoding="utf-8")
    importlib.invalidate_caches()
