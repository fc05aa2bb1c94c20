"""The process in which `ProcessSolver` solves: `python -m activities.planning.solver_process`.

Its arguments are PARENT_PID PROBLEM ANSWER MEMORY_BYTES [MODEL]. It reads one JSON document and writes another. Both
are open files that it inherits by their numbers: they have no names, so nothing is left behind. MEMORY_BYTES is 0 if
the machine is the only limit; with MODEL only that model is placed.

It imports little beside the planner, since each plan waits for these imports.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from ipnext.errors import IPnextError
from ipnext.model.planning.plan import Plan, Problem
from ipnext.store.records import SolveUse

PR_SET_PDEATHSIG = 1

PLANNER, KERNELS = "planner.last_resort", "planner.kernels"
"""Imported at the first use: that takes a second, and a restarted worker should serve at once."""

OUT_OF_MEMORY = "OutOfMemory"
"""Code of the answer of a process that had no memory left."""

NICENESS = 5
"""A publish and the data plane have priority over a plan of the whole fleet, if they share a machine."""

FIRST_TO_GO = b"1000"
"""If memory runs out, the kernel ends the solver, and not the worker that waits for it."""


def main(arguments: list[str]) -> int:
    """Solve PROBLEM into ANSWER: `{"plan": ..., "use": ...}` or `{"code": ..., "message": ..., "rules": ...}`."""
    parent, given, answer, memory = map(int, arguments[:4])
    model = next(iter(arguments[4:]), None)
    _end_with(parent)
    os.nice(NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_bytes(FIRST_TO_GO)
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    try:
        with os.fdopen(given, "rb") as file:
            problem = Problem.model_validate_json(file.read())
        text = _solve_problem(problem, model)
    except MemoryError:
        text = json.dumps({"code": OUT_OF_MEMORY, "message": ""})
    except IPnextError as error:
        text = json.dumps({"code": error.code, "message": error.message, "rules": list(getattr(error, "rules", ()))})
    with os.fdopen(answer, "wb") as file:
        file.write(text.encode())
    return 0


def find_plan(problem: Problem, model: str | None) -> Plan:
    """Return the plan of all models; of `model` alone, if that is given. Raises InvalidInput or Infeasible."""
    planner = import_module(PLANNER)
    plan: Plan = planner.solve(problem) if model is None else planner.place(problem, [model])
    return plan


def memory_of(pid: int, *, field: str = "VmRSS") -> int | None:
    """Return the bytes of memory that a process uses (VmRSS) or used at most (VmHWM).

    None if /proc does not have them.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _solve_problem(problem: Problem, model: str | None) -> str:
    import_module(KERNELS).compile_in_processes()
    wall, cpu = time.monotonic(), time.process_time()
    plan = find_plan(problem, model)
    kernels = import_module(KERNELS).preparation()
    use = SolveUse(
        wall_seconds=time.monotonic() - wall - kernels.wall_seconds,
        cpu_seconds=time.process_time() - cpu - kernels.cpu_seconds,
        peak_memory_bytes=memory_of(os.getpid(), field="VmHWM"),
    )
    return f'{{"plan":{plan.model_dump_json(by_alias=True)},"use":{use.model_dump_json()}}}'


def _end_with(parent: int) -> None:
    """Die with the parent, even if it is killed; the kernel does it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
