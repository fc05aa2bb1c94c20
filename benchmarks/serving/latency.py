"""Serving beside its peers.

Latency, CPU and throughput of one model, as ratios over the eager forward in the same minutes.

    python -m benchmarks.serving.latency --with kserve,mlserver,litserve,bentoml,rayserve,fastapi --docs
    python -m benchmarks.serving.latency --only ours,split --rows 1000 --seconds 1
    python -m benchmarks.serving.latency --only large --docs
    python -m benchmarks.serving.latency --from results.json --docs

Each part's rows go into one JSON file at once, so that a run can be done in pieces. docs/serving-benchmarks.md says
what is measured.
"""

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import structlog
from rich.console import Console

from benchmarks.environments import FOLDER, ROOT
from benchmarks.serving.asking import Asking, our_host, own_ways
from benchmarks.serving.dlrm import FULL_ROWS, LARGE_ROWS, LARGE_WIDTH
from benchmarks.serving.peer_list import ENVIRONMENTS, PEERS, make_peer
from benchmarks.serving.reference import Reference
from benchmarks.serving.report import Report, Row, Section
from benchmarks.serving.rows.layers import layer_rows
from benchmarks.serving.rows.own import own_rows
from benchmarks.serving.rows.peers import peer_rows
from benchmarks.serving.rows.split import split_rows
from benchmarks.serving.rows.throughput import alone
from benchmarks.serving.servers.own import OwnServers
from benchmarks.serving.tables import PAGE, rewritten, show
from ipnext.errors import IPnextError

PARTS = ("ours", "peers", "split", "throughput", "layers")
CONSOLE = Console(stderr=True, width=160)


def names(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """Make an argument of comma-separated names."""

    def read(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        unknown = [name for name in chosen if name not in allowed]
        if unknown:
            msg = f"unknown: {', '.join(unknown)}; known: {', '.join(allowed)}"
            raise argparse.ArgumentTypeError(msg)
        return chosen

    return read


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", type=names([*PARTS, "large"]), default=list(PARTS), help=f"of {','.join(PARTS)},large")
    add("--large", action="store_true", help="the 2.6 GB model over three hosts too (needs 14 GB of memory)")
    add("--peers", type=names(list(PEERS)), default=list(PEERS), help=f"of {','.join(PEERS)}")
    add("--with", dest="environments", type=names(list(ENVIRONMENTS)), default=[], help="install these peers first")
    add("--peers-directory", type=Path, default=FOLDER, help="where peers' environments lie")
    add("--rows", type=int, default=FULL_ROWS, help="of each of the 26 tables")
    add("--batches", type=lambda text: [int(size) for size in text.split(",")], default=[1, 64, 256])
    add("--seconds", type=float, default=2.0, help="for each way at each batch size")
    add("--clients", type=int, default=32, help="of the closed loops")
    add("--results", type=Path, help="JSON file that rows are added to (default: below .ipnext/bench)")
    add("--from", dest="source", type=Path, help="only show and write what this file has")
    add(
        "--docs", action="store_true", help=f"rewrite the measured blocks of {PAGE.relative_to(ROOT)}, and the pictures"
    )
    return parser.parse_args()


def command() -> str:
    """Return this run's command as it was typed."""
    return f"python -m benchmarks.serving.latency {shlex.join(sys.argv[1:])}".rstrip()


def parts(asked: argparse.Namespace) -> Iterator[tuple[Section, Iterator[Row]]]:
    """Every piece of what was asked for, with its section, in turn."""
    wanted = {*asked.only, *(["large"] if asked.large else [])}
    reference = Reference(asked.rows) if wanted != {"large"} else None
    if reference is not None:
        if "ours" in wanted:
            yield "ours", _placed(lambda place: own_rows(reference, place, asked.batches, asked.seconds))
        if "layers" in wanted:
            yield "layers", _placed(lambda place: layer_rows(reference, place, asked.batches, asked.seconds))
        if "split" in wanted:
            yield "split", _placed(lambda place: split_rows("split", reference, place, asked.batches, asked.seconds))
        if wanted & {"peers", "throughput"}:
            yield from _peers(asked, reference, wanted)
        del reference
    if "large" in wanted:
        large = Reference(LARGE_ROWS if asked.rows == FULL_ROWS else asked.rows, LARGE_WIDTH)
        yield "large", _placed(lambda place: split_rows("large", large, place, asked.batches, asked.seconds))


def _placed(measured: Callable[[Path], Iterator[Row]]) -> Iterator[Row]:
    """Rows measured in a folder that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="ipn-") as place:
        yield from measured(Path(place))


def _peers(
    asked: argparse.Namespace, reference: Reference, wanted: set[str]
) -> Iterator[tuple[Section, Iterator[Row]]]:
    """One piece a peer; its rows may be of two sections."""
    with tempfile.TemporaryDirectory(prefix="ipn-") as place:
        asking = Asking(
            reference, Path(place), asked.peers_directory.resolve(), asked.batches, asked.seconds, asked.clients
        )
        with OwnServers(Path(place)) as own:
            host = our_host(own, asking)
            if "throughput" in wanted:
                yield "throughput", alone(own_ways(own, host, asking), asking)
            for name in asked.peers:
                latency, throughput = "peers" in wanted, "throughput" in wanted
                rows = list(peer_rows(PEERS[name], host.server, asking, latency=latency, throughput=throughput))
                for section in ("peers", "throughput"):
                    if section in wanted:
                        yield section, iter([row for row in rows if row.section == section])


def measure_sections(
    pieces: Iterable[tuple[Section, Iterator[Row]]], report: Report, path: Path
) -> tuple[Report, list[Section]]:
    """Measure one section after the other, and write each. Return the report, and the sections that failed."""
    missing: list[Section] = []
    for section, rows in pieces:
        try:
            found = list(rows)
        except (RuntimeError, OSError, IPnextError) as error:
            CONSOLE.print(f"{section}: not measured: {error}")
            missing.append(section)
            continue
        report = report.with_section(section, found, command())
        report.write(path)
        CONSOLE.print(f"{section}: {len(found)} rows in {path}")
    return report, missing


def main() -> None:
    """Measures, and writes what was asked for."""
    asked = arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    for environment in asked.environments:
        try:
            make_peer(environment, asked.peers_directory.resolve())
        except RuntimeError as error:
            CONSOLE.print(f"not installed: {error}")
    path = asked.source or asked.results or ROOT / ".ipnext" / "bench" / f"serving-{asked.rows}.json"
    if asked.source is not None and not asked.source.is_file():
        sys.exit(f"--from: {asked.source} is no file")
    report = Report.at(path, asked.rows)
    missing: list[Section] = []
    if asked.source is None:
        report, missing = measure_sections(parts(asked), report, path)
    show(report, Console(width=None if sys.stdout.isatty() else 200))
    if asked.docs:
        from benchmarks.serving.plots import draw  # noqa: PLC0415 - matplotlib is an extra

        draw(report, PAGE.parent / "images" / "serving")
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")
    if missing:
        sys.exit(f"not measured: {', '.join(missing)}")


if __name__ == "__main__":
    main()
