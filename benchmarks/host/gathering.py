"""What it gives to look rows of many tables up in one call: the benchmark's DLRM with and without joined lookups.

    python -m benchmarks.host.gathering  (--rows 172000 --batches 1 8 64 512 --seconds 5 --json out.json)

One process, one torch thread. The baseline is the same loaded snapshot with each call by itself; the exported graph,
which both are checked against, stands beside them. All take the same requests in turns; ratios are of the same run.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.serving.dlrm import FULL_ROWS, draw, make
from serving.engines.torch.program import read_program
from serving.export import export_model

REQUESTS = 50
Pass = Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]


def passes(directory: Path, example: Mapping[str, torch.Tensor]) -> dict[str, Pass]:
    """Return the ways to run the snapshot. Raises RuntimeError if no lookups are joined."""
    program = read_program(directory)
    graph = program.direct([example[name] for name in program.inputs])
    if graph.plain is None:
        msg = "no lookups were joined: nothing to measure"
        raise RuntimeError(msg)
    joined, single = graph.whole(), graph.plain.whole()
    return {"joined": lambda given: joined(*given), "single": lambda given: single(*given), "exported": program.run}


def timed(
    ways: Mapping[str, Pass], requests: Sequence[Sequence[torch.Tensor]], seconds: float
) -> dict[str, list[float]]:
    """Seconds of each pass, the ways in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for given in requests:
            for name, way in ways.items():
                began = time.perf_counter()
                way(given)
                times[name].append(time.perf_counter() - began)
    return times


def measure(ways: Mapping[str, Pass], batch: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One batch size."""
    requests = [tuple(draw(arguments.rows, batch, number).values()) for number in range(REQUESTS)]
    timed(ways, requests, arguments.seconds / 5)
    equal = all(torch.equal(ways["joined"](given)[0], ways["exported"](given)[0]) for given in requests)
    found = {name: np.array(times) * 1e6 for name, times in timed(ways, requests, arguments.seconds).items()}
    row: dict[str, object] = {"batch": batch}
    for name, times in found.items():
        row[f"{name}_median_us"], row[f"{name}_min_us"] = (
            round(float(np.median(times)), 1),
            round(float(times.min()), 1),
        )
    row["median_ratio"] = round(float(np.median(found["joined"]) / np.median(found["single"])), 3)
    row["min_ratio"] = round(float(found["joined"].min() / found["single"].min()), 3)
    return row | {"equal_bits": equal}


def main() -> None:
    """Print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=FULL_ROWS, help="of each of the 26 tables")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each batch size")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place, torch.inference_mode():
        example = draw(arguments.rows, 3, 0)
        with torch.inference_mode(mode=False):
            export_model(make(arguments.rows), example, Path(place) / "dlrm")
        ways = passes(Path(place) / "dlrm", example)
        rows = [measure(ways, batch, arguments) for batch in arguments.batches]
    table = Table(*rows[0], title="A pass with joined lookups, over the same pass with each by itself")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
