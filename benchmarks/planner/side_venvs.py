"""Environments of their own for peers whose packages do not go with ours: made when asked for, under .ipnext/bench."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    """Its interpreter. Raises FileNotFoundError where it was never made."""
    python = FOLDER / side / "bin" / "python"
    if not (FOLDER / side / "ready").is_file():
        msg = f"{side} is not installed: add --with {side}"
        raise FileNotFoundError(msg)
    return python


def make(side: str) -> None:
    """Creates the environment, unless it is there. Raises RuntimeError with the last line of what failed."""
    python, packages = SIDES[side]
    folder = FOLDER / side
    if (folder / "ready").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    for command in ([python, "-m", "venv", str(folder)], pip):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            msg = f"{side}: {error}"
            raise RuntimeError(msg) from None
        if done.returncode:
            last = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
            msg = f"{side}: {last}"
            raise RuntimeError(msg)
    (folder / "ready").write_text(" ".join(packages) + "\n", encoding="utf-8")
