"""Solving for the whole fleet: in a process of its own with a hard limit, or in the caller's thread.

As a program (`python -m activities.solving PARENT_PID PROBLEM ANSWER`) it reads one JSON file and writes another.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from ipnext.errors import Infeasible, InvalidInput, IPnextError, Unavailable
from ipnext.model.plan import Plan, Problem
from planner.solve import solve

PR_SET_PDEATHSIG = 1
POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0
"""Beyond the problem's own time limit: building the model and rounding are not counted there."""


class Solver(Protocol):
    """Finds a plan for a whole problem. `beat` is called while it works; what it raises ends the work."""

    def solve(self, problem: Problem, *, beat: Callable[[str], None]) -> Plan:
        """The plan. Raises InvalidInput or Infeasible, and Unavailable where no plan could be had in time."""


class ThreadSolver:
    """Solves in the caller's thread: for few models, and for tests."""

    def solve(self, problem: Problem, *, beat: Callable[[str], None]) -> Plan:
        """See Solver."""
        beat("solving")
        return solve(problem)


class ProcessSolver:
    """Solves in a child process, which is killed at the limit, on cancellation, and when its parent ends."""

    def __init__(self, *, grace_seconds: float = GRACE_SECONDS) -> None:
        self._grace = grace_seconds

    def solve(self, problem: Problem, *, beat: Callable[[str], None]) -> Plan:
        """See Solver."""
        with tempfile.TemporaryDirectory(prefix="ipnext-solve-") as directory:
            given, answer = Path(directory, "problem.json"), Path(directory, "answer.json")
            given.write_text(problem.model_dump_json(by_alias=True), encoding="utf-8")
            command = [sys.executable, "-m", "activities.solving", str(os.getpid()), str(given), str(answer)]
            with subprocess.Popen(command) as process:  # noqa: S603 - our own program
                try:
                    status = self._wait(process, problem.limits.time_seconds + self._grace, beat)
                finally:
                    process.kill()
            if not answer.is_file():
                msg = f"the planner's process ended with status {status} and no answer; trying again"
                raise Unavailable(msg)
            return _read(answer.read_text(encoding="utf-8"))

    def _wait(self, process: subprocess.Popen[bytes], limit_seconds: float, beat: Callable[[str], None]) -> int:
        started = time.monotonic()
        while (status := process.poll()) is None:
            seconds = time.monotonic() - started
            if seconds > limit_seconds:
                msg = f"the planner took longer than {limit_seconds:g} s and was ended; the plan in force stays"
                raise Infeasible(msg, rules=["time_seconds"])
            beat(f"solving for {seconds:.0f} s")
            time.sleep(POLL_SECONDS)
        return status


def main(arguments: list[str]) -> int:
    """Solve PROBLEM into ANSWER: `{"plan": ...}` or `{"code": ..., "message": ..., "rules": ...}`."""
    parent, given, answer = int(arguments[0]), Path(arguments[1]), Path(arguments[2])
    _end_with(parent)
    problem = Problem.model_validate_json(given.read_text(encoding="utf-8"))
    try:
        text = json.dumps({"plan": json.loads(solve(problem).model_dump_json(by_alias=True))})
    except IPnextError as error:
        text = json.dumps({"code": error.code, "message": error.message, "rules": list(getattr(error, "rules", ()))})
    half = answer.with_suffix(".half")
    half.write_text(text, encoding="utf-8")
    half.replace(answer)
    return 0


def _read(text: str) -> Plan:
    found = json.loads(text)
    if "plan" in found:
        return Plan.model_validate(found["plan"])
    if found["code"] == Infeasible.code:
        raise Infeasible(found["message"], rules=found["rules"])
    raise InvalidInput(found["message"])


def _end_with(parent: int) -> None:
    """Die when the parent does, also where it is killed; the kernel does it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
