"""The README's tour, run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


def tour() -> list[str]:
    """The commands of the section, without their remarks."""
    section = (ROOT / "README.md").read_text().split("## A tour in ten lines", 1)[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line.split("  #")[0].strip() for line in block.group(1).splitlines()]


def test_the_tour_is_ten_lines_and_each_one_works(platform: Any) -> None:
    lines = tour()
    assert len(lines) == 10
    assert lines[0].startswith("ipnext dev --state")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "IPNEXT_API_URL": platform.endpoints["api"], "OMP_NUM_THREADS": "1"}
    for line in lines[1:]:
        run(line, environment)


def run(line: str, environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
