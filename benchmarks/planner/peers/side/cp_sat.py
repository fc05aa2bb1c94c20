"""CP-SAT on a program file, with every figure as a scaled whole number.

Runs in its own environment: ortools and numpy only.

    python cp_sat.py PROGRAM.npz ANSWER.json SECONDS

QPS become millionths of the model's whole demand: demand rounded up, throughput down, so that whatever CP-SAT finds
holds in real figures. The bound is that of the scaled program; rounding may have raised it by some millionths.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ortools.sat.python import cp_model

QPS_SCALE = 1_000_000
UNIT_SCALE = 1_000
MONEY_SCALE = 1_000
OBJECTIVE_SCALE = 1_000_000
WORKERS = 2
SLACK = 1e-7


def rows_of(data: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(columns, values) of every row."""
    order = np.lexsort((data["column"], data["row"]))
    column, value = data["column"][order], data["value"][order]
    start = np.searchsorted(data["row"][order], np.arange(len(data["low"]) + 1))
    return [(column[start[i] : start[i + 1]], value[start[i] : start[i + 1]]) for i in range(len(start) - 1)]


def scaled_rows(data: dict[str, Any]) -> Iterator[tuple[Any, Any, int | None, int | None]]:
    """(columns, whole values, low, high) of every row; low and high are None if there is no limit."""
    scale, rules, models = data["scale"], data["row_rule"], data["row_model"]
    rows = rows_of(data)
    demand = {
        int(i): int(np.ceil(data["low"][i] / scale[rows[i][0][0]] * QPS_SCALE - SLACK))
        for i in np.flatnonzero(rules == "served")
    }
    whole: dict[Any, int] = {}
    for i, qps in demand.items():
        whole[models[i]] = whole.get(models[i], 0) + qps
    totals = {models[i]: scale[rows[i][0][0]] for i in demand}
    for i, (columns, values) in enumerate(rows):
        if not len(columns):
            continue
        if rules[i] == "served":
            yield columns, np.ones(len(columns), dtype=np.int64), demand[i], demand[i]
        elif rules[i] in ("capacity", "survive"):
            total = totals[models[i]]
            by_qps = scale[columns] > 1
            counts = np.floor(values / total * QPS_SCALE + SLACK).astype(np.int64)
            flows = np.sign(values).astype(np.int64)
            least = whole[models[i]] if rules[i] == "survive" else 0
            yield columns, np.where(by_qps, flows, counts), least, None
        elif rules[i] == "min_replicas":
            low, high = data["low"][i], data["high"][i]
            whole_values = np.round(values).astype(np.int64)
            yield columns, whole_values, 0 if np.isfinite(low) else None, 0 if np.isfinite(high) else None
        else:
            by = UNIT_SCALE if rules[i] == "supply" else MONEY_SCALE
            taken = np.ceil(values * by - SLACK).astype(np.int64)
            yield columns, taken, None, int(np.floor(data["high"][i] * by + SLACK))


def main(program: str, answer: str, seconds: float) -> None:
    """Solves and writes the answer."""
    data = dict(np.load(program))
    wall, cpu = time.perf_counter(), time.process_time()
    model = cp_model.CpModel()
    scale, integer = data["scale"], data["integer"] == 1
    upper = np.where(integer, data["upper"], np.ceil(data["upper"] / scale * QPS_SCALE)).astype(np.int64)
    columns = [model.new_int_var(0, int(most), "") for most in upper]
    lowest, highest = -(2**60), 2**60
    for where, values, low, high in scaled_rows(data):
        row = cp_model.LinearExpr.weighted_sum([columns[j] for j in where], values.tolist())
        limits = lowest if low is None else low, highest if high is None else high
        model.add_linear_constraint(row, *limits)
    by = np.where(integer, OBJECTIVE_SCALE, scale / QPS_SCALE * OBJECTIVE_SCALE)
    cost = np.round(data["cost"] * by).astype(np.int64)
    used = np.flatnonzero(cost)
    model.minimize(cp_model.LinearExpr.weighted_sum([columns[j] for j in used], cost[used].tolist()))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(1.0, seconds - (time.perf_counter() - wall))
    solver.parameters.num_workers = WORKERS
    solver.parameters.random_seed = 0
    solver.parameters.relative_gap_limit = 0.01
    status = solver.solve(model)
    found = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
    result = {
        "status": solver.status_name(status),
        "values": [solver.value(column) for column, whole in zip(columns, integer, strict=True) if whole]
        if found
        else None,
        "bound": solver.best_objective_bound / OBJECTIVE_SCALE,
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
