"""Environments of their own for peers whose packages do not go with ours: made when asked for, under .ipnext/bench."""

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.environments import ROOT, make_environment

FOLDER = ROOT / ".ipnext" / "bench"

SIDES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ortools": (
        sys.executable,
        ("ortools==9.15.6755", "scipy"),
    ),  # needs an older protobuf than temporalio runs with here
    "rebalancer": ("python3.13", ("rebalancer==1.0.4",)),  # has no wheels for Python 3.11
    "dede": (sys.executable, ("dede==0.1.6", "scipy<1.14")),  # pins cvxpy 1.4, which a newer scipy breaks
}
"""Python and packages of each environment."""


def python_of(side: str) -> Path:
    """Its interpreter. Raises FileNotFoundError if it was never made."""
    python = FOLDER / side / "bin" / "python"
    if not (FOLDER / side / "ready").is_file():
        msg = f"{side} is not installed: add --with {side}"
        raise FileNotFoundError(msg)
    return python


def make(side: str) -> None:
    """Create the environment, unless it is there. Raises RuntimeError with the last line of what failed."""
    python, packages = SIDES[side]
    make_environment(FOLDER / side, packages, python=python)
