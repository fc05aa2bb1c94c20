"""Small problems that the reference solves to optimality: how close the planner's answers come, and whether all are valid.

    python benchmarks/planner_tiny.py --problems 200

Each problem is drawn by `planner.generate` at a small size. `auto` is what `ipnext plan solve` does; `fleet` is the
fleet-scale solver alone, as a stress of it. Excess is over the reference's optimum (proved to the gap below).
"""

import argparse
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ipnext.model.plan import Limits, Plan, Problem
from planner.generate import generate
from planner.solution import check
from planner.solve import Method, solve

PROVED = 1e-4
"""Gap at which the reference counts as the optimum."""


def drawn(seed: int) -> Problem:
    """A problem of 1 to 4 models, 2 to 4 regions, 2 or 3 kinds of hardware, loose to too tight."""
    problem = generate(
        models=1 + seed % 4,
        regions=2 + seed % 3,
        hardware=2 + seed % 2,
        supply_use=(0.5, 0.8, 0.95, 1.2)[seed // 4 % 4],
        seed=seed,
        current=seed % 5 == 0,
    )
    return problem.model_copy(update={"limits": Limits(time_seconds=60, gap=PROVED)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Solve, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    count = parser.parse_args(arguments).problems
    excess: dict[Method, list[float]] = {"auto": [], "fleet": []}
    broken, above, proved = {"auto": 0, "fleet": 0}, 0, 0
    for seed in range(count):
        problem = drawn(seed)
        optimum = solve(problem, method="reference")
        if optimum.gap > PROVED + 1e-6:
            continue
        proved += 1
        for method in ("auto", "fleet"):
            plan: Plan = solve(problem, method=method)  # type: ignore[arg-type]  # both are methods
            broken[method] += bool(check(problem, plan))
            above += plan.bound > optimum.objective * (1 + 1e-6)
            excess[method].append(plan.objective / optimum.objective - 1 if optimum.objective else 0.0)  # type: ignore[index]
    table = Table("method", "problems", "invalid", "mean excess", "worst excess", title="against the proved optimum")
    for name, values in excess.items():
        worst, mean = max(values, default=0.0), statistics.fmean(values)
        table.add_row(name, str(proved), str(broken[name]), f"{mean:.4%}", f"{worst:.4%}")
    Console().print(table)
    Console().print(f"bounds above the optimum: {above}; not proved by the reference in time: {count - proved}")


if __name__ == "__main__":
    main()
