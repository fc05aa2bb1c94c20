"""Small problems that the reference solves to optimality.

How close the planner's answers come, and whether all are valid.

    python -m benchmarks.planner.tiny --problems 200

Each problem is drawn by `planner.generate.generate` at a small size. `auto` is what `ipnext plan solve` does; `fleet`
is the fleet-scale solver alone, as a stress of it. Excess is over the reference's optimum (proved to the gap below).
"""

import argparse
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from ipnext.model.planning.plan import Limits, Plan, Problem
from planner.generate.generate import generate
from planner.solve import Method, solve
from planner.verify.plan_checker import check

PROVED = 1e-4
"""Gap at which the reference counts as the optimum."""
SECONDS = 10.0
"""That the reference may take for one problem."""
ASKED = 0.005
METHODS: tuple[Method, ...] = ("auto", "fleet")


def drawn(seed: int) -> Problem:
    """Draw a problem of 1 to 4 models, 2 to 4 regions, 2 or 3 kinds of hardware, loose to too tight."""
    problem = generate(
        models=1 + seed % 4,
        regions=2 + seed % 3,
        hardware=2 + seed % 2,
        supply_use=(0.5, 0.8, 0.95, 1.2)[seed // 4 % 4],
        seed=seed,
        current=seed % 5 == 0,
    )
    return problem.model_copy(update={"limits": Limits(time_seconds=SECONDS, gap=PROVED)})


@dataclass(frozen=True)
class Answer:
    """What one method gave for one problem, against the proved optimum."""

    excess: float
    valid: bool
    bound_is_true: bool


def answers(seed: int) -> dict[Method, Answer] | None:
    """Of both methods; nothing if the reference proved no optimum in its time."""
    problem = drawn(seed)
    optimum = solve(problem, method="reference")
    if optimum.gap > PROVED + 1e-6:
        return None
    return {method: _answer(problem, optimum, solve(problem, method=method)) for method in METHODS}


def _answer(problem: Problem, optimum: Plan, plan: Plan) -> Answer:
    excess = plan.objective / optimum.objective - 1 if optimum.objective else plan.objective
    return Answer(excess, not check(problem, plan), plan.bound <= optimum.objective * (1 + 1e-6))


def main(arguments: Sequence[str] | None = None) -> None:
    """Solve, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    asked = parser.parse_args(arguments)
    with ProcessPoolExecutor(asked.jobs) as processes:
        found = [row for row in processes.map(answers, range(asked.problems)) if row is not None]
    title = f"{len(found)} of {asked.problems} problems, against the optimum that the reference proved"
    table = Table("method", "invalid", "bound above", "mean excess", "worst excess", "above 0.5 %", title=title)
    for method in METHODS:
        rows = [row[method] for row in found]
        excess = [row.excess for row in rows]
        invalid, untrue = sum(not row.valid for row in rows), sum(not row.bound_is_true for row in rows)
        far = sum(value > ASKED for value in excess)
        mean = statistics.fmean(excess)
        table.add_row(method, str(invalid), str(untrue), f"{mean:.4%}", f"{max(excess):.4%}", str(far))
    Console().print(table)


if __name__ == "__main__":
    main()
