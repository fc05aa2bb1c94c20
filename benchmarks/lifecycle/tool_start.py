"""Time of a `quantize` step of a small model: as a fork of the fork server, and as a fresh process, by turns."""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from activities.optimization.step_process import StepSource, derive_in_process
from activities.runtime import child_process, tool_process, tool_server
from ipnext.model.manifest.optimization import OptimizationStep
from tests.serving.optimizing.models import export


def main() -> None:
    """Print medians and their ratio. The first fork, which starts the server, is printed by itself."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as place:
        snapshot = Path(place) / "whole"
        export(snapshot)
        print(f"first run, with the start of the server: {_time(snapshot, tool_server.run_forked)[0]:.2f} s")
        runs = [
            (_time(snapshot, child_process.run_child), _time(snapshot, tool_server.run_forked)) for _ in range(rounds)
        ]
    for name, index in (("elapsed", 0), ("processor", 1)):
        fresh, forked = (statistics.median(pair[way][index] for pair in runs) for way in (0, 1))
        print(f"{name}: fresh {fresh:.2f} s, fork {forked:.2f} s, ratio {forked / fresh:.2f}")


def _time(snapshot: Path, run: Callable[..., int]) -> tuple[float, float]:
    """Return seconds elapsed and seconds of processor time of the step's processes."""
    step = OptimizationStep.model_validate({"quantize": {"embeddings": "int8"}})
    with patch.object(tool_process, "run_forked", run), tempfile.TemporaryDirectory() as scratch:
        started, before = time.perf_counter(), _processor_seconds()
        derive_in_process(StepSource(snapshot), step, Path(scratch) / "out", lambda _: None)
        return time.perf_counter() - started, _processor_seconds() - before


def _processor_seconds() -> float:
    """Return the processor time of ended children: those of this process and those of the server."""
    own = os.times()
    server = tool_server.SERVER.pid
    if server is None:
        return own.children_user + own.children_system
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])  # utime, stime, cutime, cstime
    return own.children_user + own.children_system + ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
