"""The planner beside its peers, on the same instances in one run: cost, unmet demand, validity, bound, time and memory.

    python -m benchmarks.planner.scale --models 300 --use 0.7,0.9,0.98 --report out.json
    python -m benchmarks.planner.scale --growth 1000,3000,10000 --peers ours,greedy
    python -m benchmarks.planner.scale --composition --with ortools,rebalancer,dede
    python -m benchmarks.planner.scale --report out.json --models 0 --plots docs/images/planner --docs

Every peer runs in a process of its own, one at a time; whatever happens to it is a row of the table.
docs/planner-benchmarks.md says what each peer is and how the instances come about.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.environments import ROOT
from benchmarks.planner.child import COMPILED
from benchmarks.planner.composition import compose
from benchmarks.planner.measuring import Instance, Row, measure, refused, too_large
from benchmarks.planner.peers.catalogue import PEERS
from benchmarks.planner.report import Report, rewritten, show
from benchmarks.planner.side_venvs import SIDES, make
from ipnext.errors import EXIT_BAD_INPUT, IPnextError
from ipnext.model.planning.plan import Problem
from planner.generate.generate import generate

PAGE = ROOT / "docs" / "planner-benchmarks.md"
GROWTH_PEERS = ("ours", "greedy", "partition")
CONSOLE = Console(stderr=True)


def names(allowed: Sequence[str]) -> "argparse._ActionType":
    """Make an argument of comma-separated names."""

    def read(text: str) -> list[str]:
        chosen = [name for name in text.split(",") if name]
        unknown = [name for name in chosen if name not in allowed]
        if unknown:
            msg = f"unknown: {', '.join(unknown)}; known: {', '.join(allowed)}"
            raise argparse.ArgumentTypeError(msg)
        return chosen

    return read


def numbers(text: str) -> list[float]:
    """Parse an argument of comma-separated numbers."""
    return [float(number) for number in text.split(",") if number]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", type=int, default=300, help="models of each drawn instance; 0 leaves the sweep out")
    add("--use", type=numbers, default=[0.7, 0.8, 0.9, 0.95, 0.98], help="supply use of each instance, 0.7,0.9,...")
    add("--peers", type=names(list(PEERS)), default=list(PEERS), help=f"of {','.join(PEERS)}")
    add("--seed", type=int, default=0, help="of the instances")
    add("--seconds", type=float, default=300.0, help="time limit that every peer gets")
    add("--memory-gb", type=float, default=16.0, help="a peer that takes more is ended")
    add("--growth", type=numbers, default=[], help="numbers of models, 1000,3000,... (at the first --use above 0.85)")
    add("--composition", action="store_true", help="the instances composed on real services, at each --use")
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the composition's files")
    add("--with", dest="sides", type=names(list(SIDES)), default=[], help=f"install first, of {','.join(SIDES)}")
    add("--all-sizes", action="store_true", help="ask peers above the size at which they are left out too")
    add("--report", type=Path, help="JSON file that the rows are added to, after each one")
    add("--plots", type=Path, help="folder for the pictures")
    add("--docs", action="store_true", help=f"rewrite the measured blocks of {PAGE.relative_to(ROOT)}")
    return parser.parse_args()


def instances(asked: argparse.Namespace) -> Iterator[tuple[Instance, Problem, list[str]]]:
    """Each instance with the peers to run on it."""
    for use in asked.use if asked.models else []:
        drawn = Instance(section="sweep", models=asked.models, supply_use=use, seed=asked.seed)
        yield drawn, generate(models=asked.models, supply_use=use, seed=asked.seed), asked.peers
    for use in asked.use if asked.composition else []:
        problem = compose(asked.data, supply_use=use, seed=asked.seed)
        composed = Instance(section="composition", models=len(problem.models), supply_use=use, seed=asked.seed)
        yield composed, problem, asked.peers
    use = next((use for use in asked.use if use > 0.85), asked.use[0])
    for models in map(int, asked.growth):
        grown = Instance(section="growth", models=models, supply_use=use, seed=asked.seed)
        peers = [peer for peer in asked.peers if peer in GROWTH_PEERS] or asked.peers
        yield grown, generate(models=models, supply_use=use, seed=asked.seed), peers


def row_of(asked: argparse.Namespace, instance: Instance, problem: Problem, peer: str) -> Row:
    """Return the row of one peer on one instance."""
    why = None if asked.all_sizes else too_large(peer, instance.models)
    if why is not None:
        return refused(instance, peer, why)
    CONSOLE.print(f"{instance.section}: {instance.models:,} models, use {instance.supply_use:g}: {peer}")
    return measure(instance, problem, peer, seconds=asked.seconds, memory_gb=asked.memory_gb)


def compile_first(asked: argparse.Namespace) -> None:
    """Lets every peer that is compiled do so once, so that no measured process holds the compiler's memory."""
    tiny = Instance(section="sweep", models=8, supply_use=0.9, seed=0)
    problem = generate(models=8, regions=3, hardware=2, supply_use=0.9)
    for peer in [peer for peer in asked.peers if peer in COMPILED]:
        CONSOLE.print(f"compiling: {peer}")
        measure(tiny, problem, peer, seconds=60, memory_gb=asked.memory_gb)


def main() -> None:
    """Measures, and writes what was asked for."""
    asked = arguments()
    for side in asked.sides:
        try:
            make(side)
        except RuntimeError as error:
            CONSOLE.print(f"not installed: {error}")
    report = Report.at(asked.report)
    if asked.models or asked.growth or asked.composition:
        compile_first(asked)
    for instance, problem, peers in instances(asked):
        for peer in peers:
            report = report.added(row_of(asked, instance, problem, peer))
            if asked.report:
                report.write(asked.report)
    show(report, Console(width=None if sys.stdout.isatty() else 200))
    if asked.plots:
        from benchmarks.planner.plots import draw  # noqa: PLC0415 - matplotlib is an extra

        draw(report, asked.plots)
    if asked.docs:
        PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8"), report), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except IPnextError as error:
        CONSOLE.print(f"error: {error.message}")
        sys.exit(EXIT_BAD_INPUT)
