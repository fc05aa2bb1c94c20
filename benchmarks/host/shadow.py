"""What a client pays while its requests are mirrored to a shadow.

One model behind routers without a shadow, and with one that gets a tenth or all of the requests.

    python -m benchmarks.host.shadow  (--rows 10000 --batches 1 64 --seconds 10 --json out.json)

Two hosts hold the same snapshot, one for clients, one for the shadow; three routers stand before them. One client asks
each in turns over a connection of its own, with binary tensors, as a gateway does that chose the generation. Latencies
are of whole exchanges; ratios are to the router without a shadow, of the same run. `mirrored` is the share of the
client's requests that was compared, by the router's own counts; the rest was not chosen or was dropped.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.serving.bodies import V2_BINARY
from benchmarks.serving.http_wire import LOOPBACK
from benchmarks.serving.reference import Asked, Reference
from benchmarks.serving.rows.own import WHOLE
from benchmarks.serving.servers.own import INFER_PATH, SHADOW, OwnServers
from benchmarks.serving.servers.process import ServerProcess
from benchmarks.serving.timing import Sample, measure
from ipnext.model.deployment.router_table import RouterState
from ipnext.model.registry.registry import single_part_graph
from ipnext.names import CHOSEN_HEADER

NONE = "no shadow"
WAYS = {NONE: 0.0, "a shadow of a tenth": 0.1, "a shadow of all": 1.0}


def mirrored(router: ServerProcess) -> tuple[int, int]:
    """Return the requests that a router has answered, and those of them that it compared."""
    answer = httpx.get(f"http://{LOOPBACK}:{router.port}/control/state", trust_env=False)
    state = RouterState.model_validate_json(answer.content)
    return sum(one.requests for one in state.traffic), sum(one.compared for one in state.shadows)


def lines_of(batch: int, samples: dict[str, Sample], shares: dict[str, float]) -> list[dict[str, object]]:
    """One line for each router, with its ratios to the one without a shadow."""
    found = {way: next(s for name, s in samples.items() if name.startswith(way)) for way in WAYS}
    base = found[NONE]
    return [
        {
            "batch": batch,
            "router": way,
            "p50_us": round(sample.quantile(0.5) * 1e6, 1),
            "p50_ratio": round(sample.quantile(0.5) / base.quantile(0.5), 3),
            "p99_ratio": round(sample.quantile(0.99) / base.quantile(0.99), 3),
            "mirrored": round(shares[way], 3),
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
        parts = {WHOLE: Path(place) / WHOLE}
        hosts = [own.host("host", parts), own.host("shadow", parts, generation=SHADOW)]
        graph = single_part_graph(WHOLE, manifest.signature)
        routers = {
            way: own.router(f"router-{number}", graph, hosts, shadow_share=share)
            for number, (way, share) in enumerate(WAYS.items())
        }
        asked = [
            Asked(way, [router, hosts[0].server], INFER_PATH, V2_BINARY, {CHOSEN_HEADER: "weight"})
            for way, router in routers.items()
        ]
        for batch in arguments.batches:
            before = {way: mirrored(router) for way, router in routers.items()}
            with ExitStack() as stack:
                contenders = [one.contender(reference, batch, stack) for one in asked]
                samples = measure(contenders, arguments.seconds)
            shares = {}
            for way, router in routers.items():
                answered, compared = (now - then for now, then in zip(mirrored(router), before[way], strict=True))
                shares[way] = compared / answered
            lines += lines_of(batch, samples, shares)
    table = Table(*lines[0])
    for line in lines:
        table.add_row(*map(str, line.values()))
    Console(width=160).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
