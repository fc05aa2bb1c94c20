"""`python -m tests.nemesis`: one run of the nemesis, its table, and exit status 1 where a promise was broken."""

import argparse
import sys
import tempfile
from pathlib import Path

import stamina.instrumentation
from rich.console import Console

from tests.nemesis.checks.checker import check
from tests.nemesis.clients.load import PAUSE_SECONDS
from tests.nemesis.faults import network
from tests.nemesis.faults.schedule import KINDS, PLACES
from tests.nemesis.history import read_history
from tests.nemesis.models import PARTS
from tests.nemesis.report import print_report
from tests.nemesis.run import Arguments, run


def main() -> int:
    """Read the arguments, enter a network namespace where connections are to be cut, run, check, print."""
    given = _parser().parse_args()
    stamina.instrumentation.set_on_retry_hooks([])  # the history tells every try
    console = Console(width=120, highlight=False)
    if given.read is not None:
        return _judge(given.read, console)
    kinds = tuple(given.faults.split(","))
    unknown = set(kinds) - set(KINDS)
    if unknown:
        console.print(f"--faults: {sorted(unknown)} is not known; allowed: {','.join(KINDS)}", style="red")
        return 2
    if {"partition", "away"} & set(kinds) and not network.inside():
        if network.possible():
            network.enter(["-m", "tests.nemesis", *sys.argv[1:]])
        console.print("no network namespaces here: connections are not cut")
        kinds = tuple(kind for kind in kinds if kind not in {"partition", "away"})
    directory = given.directory or Path(tempfile.mkdtemp(prefix="ipnext-nemesis-"))
    places = PLACES if given.boundaries == "all" else tuple(filter(None, given.boundaries.split(",")))
    unknown = set(places) - set(PLACES)
    if unknown:
        console.print(f"--boundaries: {sorted(unknown)} is not known; allowed: {','.join(PLACES)}", style="red")
        return 2
    models = tuple(given.models.split(","))
    unknown = set(models) - set(PARTS)
    if unknown:
        console.print(f"--models: {sorted(unknown)} is not known; allowed: {','.join(PARTS)}", style="red")
        return 2
    arguments = Arguments(
        directory.resolve(), given.seed, given.seconds, kinds, places, given.each, models, given.pause
    )
    return _judge(run(arguments, lambda text: console.print(text, markup=False)), console)


def _judge(path: Path, console: Console) -> int:
    history = read_history(path)
    violations = check(history)
    print_report(history, violations, console)
    console.print(f"history: {path}", soft_wrap=True)
    return 1 if violations else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long faults strike")
    parser.add_argument("--each", type=int, default=0, help="instead: so many short faults of each kind")
    parser.add_argument("--models", default=",".join(PARTS), help="models that users ask, with commas between")
    parser.add_argument("--pause", type=float, default=PAUSE_SECONDS, help="seconds of a user between two requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", default=",".join(KINDS), help="kinds, with commas between")
    parser.add_argument(
        "--boundaries",
        nargs="?",
        const="all",
        default="",
        metavar="ACTIVITY:POINT,...",
        help="instead: kill the worker at every boundary once, or at these",
    )
    parser.add_argument("--directory", type=Path, help="where state and history go; default: a new temporary one")
    parser.add_argument("--read", type=Path, help="no run: check a history that was written before")
    return parser


if __name__ == "__main__":
    sys.exit(main())
