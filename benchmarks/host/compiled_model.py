"""What compiling a snapshot gives.

One forward pass of a DLRM, compiled, beside the eager module and the exported program.

    python -m benchmarks.host.compiled_model  (--tables 26 --rows 172000 --width 16 --seconds 5 --json out.json)

One process, one torch thread. The baseline is the module's own forward in inference mode, on tensors over the same
arrays; the others are what a host calls: numpy arrays in and out. All take the same requests in turns, so that what
else the machine does falls on all of them alike; ratios are of the same run.
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
from torch import Tensor, nn

from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from serving.compiling.compile import compile_snapshot
from serving.engines.torch.engine import TorchEngine, TorchPart
from serving.export import export_model
from serving.protocol.tensors import Array

BATCHES = (1, 64, 256)
DENSE = 13


class Ranker(nn.Module):
    """A DLRM: ids [B, T] and dense [B, 13] -> score [B], by the products of all pairs of vectors."""

    pairs: Tensor

    def __init__(self, tables: int, rows: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(DENSE, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.last = nn.Sequential(nn.Linear(256, width), nn.ReLU())
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU())
        self.score = nn.Linear(256, 1)
        self.register_buffer("pairs", torch.tril_indices(tables + 1, tables + 1, -1))

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        """Probabilities."""
        x = self.last(self.bottom(dense))
        vectors = torch.stack([x, *(table(ids[:, place]) for place, table in enumerate(self.tables))], 1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        first, second = self.pairs[0], self.pairs[1]
        whole = torch.cat([x, products[:, first, second]], 1)
        return torch.sigmoid(self.score(self.top(whole))).squeeze(1)


Request = Mapping[str, Array]


def requests(batch: int, tables: int, rows: int) -> list[Request]:
    """Fifty of a batch, so that no table's rows stay in the processor's cache by themselves."""
    random = np.random.default_rng(batch)
    return [
        {
            "ids": random.integers(0, rows, (batch, tables)),
            "dense": random.standard_normal((batch, DENSE)).astype(np.float32),
        }
        for _ in range(50)
    ]


def timed(
    calls: Mapping[str, Callable[[Request], object]], given: Sequence[Request], seconds: float
) -> dict[str, list[float]]:
    """Seconds of each call, taken in turns for as long."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for request in given:
            for name, call in calls.items():
                began = time.perf_counter()
                call(request)
                times[name].append(time.perf_counter() - began)
    return times


def eager(module: nn.Module) -> Callable[[Request], object]:
    """Return a call of the module itself. numpy's memory is used without a copy, which costs a microsecond a tensor."""

    def run(request: Request) -> object:
        with torch.inference_mode():
            return module(torch.from_numpy(request["ids"]), torch.from_numpy(request["dense"]))

    return run


def loaded(directory: Path, **settings: object) -> TorchPart:
    """Load a snapshot and warm it up."""
    manifest = SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes())
    part = TorchEngine(trusts_libraries=True).load(directory, manifest, settings)
    part.warm_up()
    return part


def row(name: str, batch: int, times: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Median and fastest in microseconds, and their ratios to the eager module's."""
    own, base = np.array(times[name]), np.array(times["eager module"])
    median, fastest = float(np.median(own)), float(own.min())
    return {
        "what": name,
        "batch": batch,
        "median_us": round(median * 1e6, 1),
        "min_us": round(fastest * 1e6, 1),
        "median_ratio": round(median / float(np.median(base)), 3),
        "min_ratio": round(fastest / float(base.min()), 3),
    }


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """All batches."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = Ranker(arguments.tables, arguments.rows, arguments.width).eval()
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        root = Path(place)
        first = requests(4, arguments.tables, arguments.rows)[0]
        export_model(module, {name: torch.from_numpy(array) for name, array in first.items()}, root / "source")
        report = compile_snapshot(root / "source", root / "compiled", cache=arguments.cache)
        print(f"compiled in {report.seconds:.0f} s, known: {report.library_known}; {report.differences}")
        calls = {
            "eager module": eager(module),
            "exported program": loaded(root / "source").infer,
            "compiled": loaded(root / "compiled", compile=True).infer,
        }
        lines = []
        for batch in BATCHES:
            given = requests(batch, arguments.tables, arguments.rows)
            timed(calls, given, arguments.seconds / 5)
            times = timed(calls, given, arguments.seconds)
            lines += [row(name, batch, times) for name in calls]
    return lines


def main() -> None:
    """Print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=26)
    parser.add_argument("--rows", type=int, default=172_000)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each batch")
    parser.add_argument("--cache", type=Path, help="where libraries are kept")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    lines = measure(arguments)
    table = Table(*lines[0])
    for line in lines:
        table.add_row(*map(str, line.values()))
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
