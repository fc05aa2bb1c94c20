"""PDLP on the relaxation of a program file (replicas divisible).

Runs in its own environment: ortools, numpy, scipy only.

    python pdlp.py PROGRAM.npz ANSWER.json SECONDS

The bound is the dual objective it ends with: it is exact only up to the tolerance that PDLP reached.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from ortools.pdlp import solve_log_pb2, solvers_pb2
from ortools.pdlp.python import pdlp

TOLERANCE = 1e-6
THREADS = 2


def relaxation(data: dict[str, Any]) -> Any:
    """Return the relaxation as PDLP takes it.

    Columns are shares of their model's demand, rows have a comparable size.
    """
    scale = data["scale"]
    matrix = sp.csr_matrix((data["value"], (data["row"], data["column"])), shape=(len(data["low"]), len(scale)))
    matrix = matrix @ sp.diags(scale)
    largest = abs(matrix).max(axis=1).toarray().ravel()
    shared = np.isin(data["row_rule"], ["supply", "budget"]) & (data["high"] > 0)
    size = np.maximum(np.where(shared, data["high"], largest), 1e-9)  # a row is a share of its limit, where it has one
    program = pdlp.QuadraticProgram()
    program.objective_vector = data["cost"] * scale
    program.constraint_matrix = (sp.diags(1 / size) @ matrix).tocsc()
    program.constraint_lower_bounds = data["low"] / size
    program.constraint_upper_bounds = data["high"] / size
    program.variable_lower_bounds = np.zeros(len(scale))
    program.variable_upper_bounds = data["upper"] / scale
    return program


def main(program: str, answer: str, seconds: float) -> None:
    """Solves and writes the answer."""
    data = dict(np.load(program))
    wall, cpu = time.perf_counter(), time.process_time()
    parameters = solvers_pb2.PrimalDualHybridGradientParams()
    parameters.termination_criteria.simple_optimality_criteria.eps_optimal_relative = TOLERANCE
    parameters.termination_criteria.simple_optimality_criteria.eps_optimal_absolute = TOLERANCE
    parameters.termination_criteria.time_sec_limit = seconds
    parameters.num_threads = THREADS
    result = pdlp.primal_dual_hybrid_gradient(relaxation(data), parameters)
    log = result.solve_log
    stats = log.solution_stats.convergence_information[0]
    reason = solve_log_pb2.TerminationReason.Name(log.termination_reason)
    written = {
        "status": reason.removeprefix("TERMINATION_REASON_"),
        "values": None,
        "bound": stats.dual_objective if reason.endswith("OPTIMAL") else None,
        "note": (
            f"primal {stats.primal_objective:.6g}, dual {stats.dual_objective:.6g}, {log.iteration_count} iterations"
        ),
        "wall_seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    Path(answer).write_text(json.dumps(written), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
