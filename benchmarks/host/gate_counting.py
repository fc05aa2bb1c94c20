"""What a request pays for the sketches that gates compare.

One model behind routers that sample none, some or all answers.

    python -m benchmarks.host.gate_counting  (--rows 10000 --batches 1 64 --seconds 10 --json out.json)

One host holds the model; three routers stand before it: one samples no answer (`--sample-seconds inf`, the baseline),
one as routers do by default, one each answer (`--sample-seconds 0`). One client asks each in turns over a connection of
its own, with binary tensors. Latencies are of whole exchanges, CPU of router and host together; ratios are of the same
run.
"""

import argparse
import json
import math
import tempfile
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.serving.bodies import V2_BINARY
from benchmarks.serving.reference import Asked, Reference
from benchmarks.serving.rows.own import WHOLE
from benchmarks.serving.servers.own import INFER_PATH, OwnServers
from benchmarks.serving.timing import Sample, measure
from ipnext.model.registry.registry import single_part_graph
from serving.metrics.prediction_sketches import SAMPLE_SECONDS

NONE = "no answer is sampled"
WAYS = {NONE: math.inf, "as by default": SAMPLE_SECONDS, "each answer is sampled": 0.0}


def lines_of(batch: int, samples: dict[str, Sample]) -> list[dict[str, object]]:
    """One line for each router, with its ratios to the first."""
    found = {way: next(s for name, s in samples.items() if name.startswith(way)) for way in WAYS}
    base = found[NONE]
    return [
        {
            "batch": batch,
            "router": way,
            "median_us": round(sample.quantile(0.5) * 1e6, 1),
            "median_ratio": round(sample.quantile(0.5) / base.quantile(0.5), 4),
            "p99_ratio": round(sample.quantile(0.99) / base.quantile(0.99), 4),
            "cpu_ratio": round(sample.cpu_per_call / base.cpu_per_call, 4),
            "calls": sample.calls,
        }
        for way, sample in found.items()
    ]


def main() -> None:
    """Print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000, help="of each embedding table")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each router and batch size")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    reference = Reference(arguments.rows)
    lines: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place, OwnServers(Path(place)) as own:
        manifest = reference.export(Path(place) / WHOLE)
        host = own.host("host", {WHOLE: Path(place) / WHOLE})
        graph = single_part_graph(WHOLE, manifest.signature)
        asked = []
        for number, (way, every) in enumerate(WAYS.items()):
            router = own.router(f"router-{number}", graph, [host], "--sample-seconds", str(every))
            asked.append(Asked(way, [router, host.server], INFER_PATH, V2_BINARY, {}))
        for batch in arguments.batches:
            with ExitStack() as stack:
                contenders = [one.contender(reference, batch, stack) for one in asked]
                lines += lines_of(batch, measure(contenders, arguments.seconds))
    table = Table(*lines[0])
    for line in lines:
        table.add_row(*map(str, line.values()))
    Console(width=160).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
