"""Virtual environments of what is measured beside IPnext: made once, each with packages of its own."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".ipnext" / "peers"
"""Where those of serving peers lie, if nothing is said."""


def make_environment(
    place: Path,
    packages: Sequence[str],
    *,
    python: str = sys.executable,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Create an environment of this Python, unless it is there. RuntimeError with the last line of what failed.

    `finish` does in a new one what packages do not.
    """
    if (place / "ready").is_file():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([python, "-m", "venv", "--clear", str(place)], [*pip, *packages]):
        _run(command, place.name)
    finish(place)
    (place / "ready").write_text(" ".join(packages) + "\n", encoding="utf-8")


def _run(command: Sequence[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        msg = f"{name}: {error}"
        raise RuntimeError(msg) from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        msg = f"{name}: {lines[-1] if lines else 'no message'}"
        raise RuntimeError(msg)
