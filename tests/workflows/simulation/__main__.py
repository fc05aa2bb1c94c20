"""`python -m tests.workflows.simulation --seeds 0:100000 --processes 2`.

Many histories, or one again with its trace.
"""

import argparse
import sys

from .campaign import run_campaign
from .world import Outcome, history


def main(arguments: list[str] | None = None) -> int:
    """0 where everything held, 1 where something did not."""
    parser = argparse.ArgumentParser(prog="python -m tests.workflows.simulation", description=__doc__)
    parser.add_argument("--seeds", default="0:1000", help="FROM:TO, the last one left out")
    parser.add_argument("--seed", type=int, help="one history alone")
    parser.add_argument("--trace", action="store_true", help="tell every step of it")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--parts", action="store_true", help="manifests add and remove parts, too")
    given = parser.parse_args(arguments)
    if given.seed is not None:
        found = history(given.seed, tracing=given.trace, manifests=True, parts=given.parts)
        sys.stdout.write(
            "\n".join([*found.trace, f"seed {found.seed}: {found.violated or 'all held'} {found.told}"]) + "\n"
        )
        return 1 if found.violated else 0
    first, last = (int(number) for number in given.seeds.split(":"))
    total, broken = run_campaign(range(first, last), given.processes, parts=given.parts, on_broken=_report)
    for name in sorted(total):
        sys.stdout.write(f"{total[name]:>12,}  {name}\n")
    sys.stdout.write(f"{len(broken)} violations; again: python -m tests.workflows.simulation --seed N --trace\n")
    return 1 if broken else 0


def _report(outcome: Outcome) -> None:
    """A campaign of an hour may be ended before its counts."""
    sys.stdout.write(f"seed {outcome.seed}: {outcome.violated}: {outcome.told}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
