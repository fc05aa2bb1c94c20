"""DeDe on the relaxation of a program file (replicas divisible). Runs in its own environment: dede only.

    python dede_admm.py PROGRAM.npz ANSWER.json SECONDS

Its resources are the supplies of hardware in regions, its demands the models, each with all of its own rules. Budgets
of owners tie resources to each other, which DeDe cannot state: they are left out. It answers with the value that its
alternating steps end at, which is neither a plan nor a bound.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cvxpy as cp
import dede
import numpy as np

CPUS = 2


def constraints(data: dict[str, Any], columns: Any) -> Iterator[tuple[bool, Any]]:
    """(whether shared, constraint) of every row that DeDe can state; a row is measured by its largest figure."""
    order = np.lexsort((data["column"], data["row"]))
    row, column, value = data["row"][order], data["column"][order], data["value"][order]
    start = np.searchsorted(row, np.arange(len(data["low"]) + 1))
    for i, (low, high) in enumerate(zip(data["low"], data["high"], strict=True)):
        where = column[start[i] : start[i + 1]]
        if not len(where) or (data["row_rule"][i] == "budget" and data["row_model"][i] < 0):
            continue
        figures = value[start[i] : start[i + 1]] * data["scale"][where]
        size = max(float(abs(figures).max()), float(high) if data["row_rule"][i] == "supply" else 0.0)
        total = (figures / size) @ columns[where]
        shared = data["row_rule"][i] == "supply"
        if low == high:
            yield shared, total == low / size
        elif np.isfinite(high):
            yield shared, total <= high / size
        else:
            yield shared, total >= low / size


def main(program: str, answer: str) -> None:
    """Solves and writes the answer."""
    data = dict(np.load(program))
    wall, before = time.perf_counter(), cpu_seconds()
    columns = dede.Variable(len(data["cost"]), nonneg=True)
    rows = list(constraints(data, columns))
    prices = data["cost"] * data["scale"]
    unit = float(prices.max())
    objective = cp.sum([prices[j] / unit * columns[int(j)] for j in np.flatnonzero(prices)])  # type: ignore[attr-defined]  # cvxpy exports it by `*`
    problem = dede.Problem(
        dede.Minimize(objective), [row for shared, row in rows if shared], [row for shared, row in rows if not shared]
    )
    value = problem.solve(num_cpus=CPUS, solver=cp.CLARABEL) * unit
    built = time.perf_counter() - wall
    import ray  # noqa: PLC0415 - only to end what DeDe started, so that its processes count as ours

    ray.shutdown()
    written = {
        "status": "ended",
        "values": None,
        "bound": None,
        "note": f"value {value:.6g} of the relaxation without owners' budgets",
        "wall_seconds": built,
        "cpu_seconds": cpu_seconds() - before,
        "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    Path(answer).write_text(json.dumps(written), encoding="utf-8")


def cpu_seconds() -> float:
    """Of this process and the ones it ended."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
