"""Compiles the fleet-scale solver's kernels for this machine, so that no plan has to wait for it: `python -m planner.kernels`.

`make setup` runs it. Without it the first large plan does the same, in about a minute.
"""

import subprocess
import sys

import numpy as np

from planner.arrays import FleetArrays, Prices
from planner.generate import generate

HALVES = ("configurations", "bounds")


def compile_half(half: str) -> None:
    """Calls one half of the kernels on a small drawn fleet."""
    arrays = FleetArrays.of(generate(models=4, regions=3, hardware=2, current=True))
    prices = Prices(np.zeros_like(arrays.supply), np.zeros_like(arrays.owner_budget), 0.0)
    if half == "bounds":
        from planner.bounding import lower_bounds  # noqa: PLC0415 - each half loads its own kernels only

        lower_bounds(arrays, prices)
        return
    from planner.pricing import Placer, best_columns  # noqa: PLC0415

    best_columns(arrays, prices, np.arange(arrays.models, dtype=np.int64), effort=1)
    Placer(arrays).best(0, prices, arrays.supply, effort=1)


def main() -> int:
    """Both halves side by side; 0 where both went well."""
    halves = [subprocess.Popen([sys.executable, "-m", "planner.kernels", half]) for half in HALVES]  # noqa: S603
    return max(half.wait() for half in halves)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        compile_half(sys.argv[1])
    else:
        sys.exit(main())
