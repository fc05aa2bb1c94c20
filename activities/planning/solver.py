"""Solving for the whole fleet or a large model: in a separate process with a hard limit, or in the caller's thread."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

import structlog

from activities.planning.solver_process import OUT_OF_MEMORY, find_plan, memory_of
from activities.runtime.failed_attempts import Deferred
from ipnext.errors import Infeasible, InvalidInput, IPnextError
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import Plan, Problem
from ipnext.store.records import SolveUse
from planner import kernel_cache

POLL_SECONDS = 0.1
GRACE_SECONDS = 120.0
"""Beyond the problem's time limit, which does not cover reading, building the model, rounding and writing."""

SEARCHES = 2
"""A fleet whose owners have different priorities may be planned twice (`planner.owner_priority`)."""

LAST_WORDS_BYTES = 4000
"""Bytes that are read from the end of the process's standard error."""

NO_MEMORY = ("MemoryError", "bad_alloc", "memory allocation of", "Cannot allocate memory")
"""Messages of Python, C++, Rust and the C library before they end a process that gets no memory."""


@dataclass(frozen=True)
class SolverResult:
    """A plan, and the resources that the search used."""

    plan: Plan
    use: SolveUse


class SolveFailed(IPnextError):
    """The search ended without an answer. If it `died`, another attempt may succeed."""

    code = Reason.PLANNER_FAILED.value

    def __init__(self, message: str, *, died: bool = False) -> None:
        super().__init__(message)
        self.died = died


class Solver(Protocol):
    """Finds a plan. `beat` is called while it works; an error that it raises ends the work."""

    def solve(self, problem: Problem, *, beat: Callable[[str], None], model: str | None = None) -> SolverResult:
        """Return the plan of all models; of `model` alone, if that is given.

        Raises InvalidInput or Infeasible, and SolveFailed if there was no plan in time.
        """


class ThreadSolver:
    """Solves in the caller's thread: for few models, and for tests."""

    def solve(self, problem: Problem, *, beat: Callable[[str], None], model: str | None = None) -> SolverResult:
        """See Solver."""
        beat("solving")
        wall, cpu = time.monotonic(), time.thread_time()
        plan = find_plan(problem, model)
        return SolverResult(plan, SolveUse(wall_seconds=time.monotonic() - wall, cpu_seconds=time.thread_time() - cpu))


class LaterSolver:
    """Leaves every search to the activity of its step, which has slots and a time limit for it."""

    def solve(self, problem: Problem, *, beat: Callable[[str], None], model: str | None = None) -> SolverResult:  # noqa: ARG002 - the protocol's form
        """Raise Deferred."""
        msg = "the search is long; its step's activity runs it"
        raise Deferred(msg)


class ProcessSolver:
    """Solves in a child process, which is killed at the limit, on cancellation, and when its parent ends.

    `memory_bytes`: the most memory the process may take for its data; None if the machine is the only limit.
    """

    def __init__(self, *, grace_seconds: float = GRACE_SECONDS, memory_bytes: int | None = None) -> None:
        self._grace = grace_seconds
        self._memory = memory_bytes

    def solve(self, problem: Problem, *, beat: Callable[[str], None], model: str | None = None) -> SolverResult:
        """See Solver."""
        with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as errors:
            given.write(problem.model_dump_json(by_alias=True).encode())
            given.seek(0)
            files = (given.fileno(), answer.fileno())
            numbers = (os.getpid(), *files, self._memory or 0)
            command = [sys.executable, "-m", "activities.planning.solver_process", *map(str, numbers)]
            command += [] if model is None else [model]
            seconds = problem.limits.time_seconds * (SEARCHES if len(problem.levels) > 1 else 1)
            watch = _Watch(seconds + self._grace, beat)
            status = watch.run(command, files, errors)
            answer.seek(0)
            text = answer.read().decode()
            if status != 0 or not text:
                raise _without_answer(status, watch, _last_words(errors))
            return _read(text)


class _Watch:
    """Runs a process to its end, at most `limit_seconds`, and records the memory that it used last.

    The limit does not count while kernels are compiled on this machine, which the process may wait for.
    """

    def __init__(self, limit_seconds: float, beat: Callable[[str], None]) -> None:
        self.seconds = 0.0
        self.memory_bytes = 0
        self._limit = limit_seconds
        self._beat = beat
        self._compiling_since: float | None = None

    def run(self, command: list[str], files: Sequence[int], errors: IO[bytes]) -> int:
        """Run the process and return its exit status. It and all its children are gone when this returns or raises."""
        process = subprocess.Popen(  # noqa: S603 - our own program
            command, pass_fds=files, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True
        )
        try:
            return self._wait(process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        looked = time.monotonic()
        while (status := process.poll()) is None:
            now = time.monotonic()
            compiling = kernel_cache.is_compiling()
            self._log_compilation(now, compiling=compiling)
            self.seconds += 0.0 if compiling else now - looked
            looked = now
            if self.seconds > self._limit:
                msg = f"the planner took longer than {self._limit:g} s and was ended"
                raise SolveFailed(msg)
            self.memory_bytes = memory_of(process.pid) or self.memory_bytes
            self._beat(f"{self._doing(compiling=compiling)}, {_format_bytes(self.memory_bytes)} in use")
            time.sleep(POLL_SECONDS)
        return status

    def _log_compilation(self, now: float, *, compiling: bool) -> None:
        """Log why the plan waits, and when it goes on."""
        since = self._compiling_since
        if compiling and since is None:
            self._compiling_since = now
            hint = "the plan waits until they are ready: a minute or two, once for this machine and version"
            structlog.get_logger().info("planner_kernels_compile", folder=str(kernel_cache.folder()), hint=hint)
        elif not compiling and since is not None:
            self._compiling_since = None
            structlog.get_logger().info("planner_kernels_ready", seconds=round(now - since, 1))

    def _doing(self, *, compiling: bool) -> str:
        solving = f"solving for {self.seconds:.0f} s"
        return (
            f"{solving}, without the time in which the planner's kernels are compiled, as now" if compiling else solving
        )


def _read(text: str) -> SolverResult:
    found = json.loads(text)
    if "plan" in found:
        return SolverResult(Plan.model_validate(found["plan"]), SolveUse.model_validate(found["use"]))
    if found["code"] == Infeasible.code:
        raise Infeasible(found["message"], rules=found["rules"])
    if found["code"] == OUT_OF_MEMORY:
        msg = "the planner ran out of memory"
        raise SolveFailed(msg)
    raise InvalidInput(found["message"])


def _without_answer(status: int, watch: _Watch, words: str) -> SolveFailed:
    """Explain the end of a process that left no answer."""
    after = f"after {watch.seconds:.0f} s, when it held {_format_bytes(watch.memory_bytes)}"
    if any(sign in words for sign in NO_MEMORY):
        return SolveFailed(f"the planner ran out of memory {after}")
    if status == -signal.SIGKILL:
        return SolveFailed(
            f"the planner was killed {after}: by hand, or because the machine ran out of memory", died=True
        )
    if status < 0:
        return SolveFailed(f"the planner ended by {signal.Signals(-status).name} {after}", died=True)
    told = f": {words.splitlines()[-1]}" if words else ""
    return SolveFailed(f"the planner ended with status {status} and no answer{told}")


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
    return errors.read().decode("utf-8", "replace").strip()


def _format_bytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
