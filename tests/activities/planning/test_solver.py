"""The planner's process: it answers, or it is gone within the limit and the reason says why. Real processes."""

import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import structlog
from structlog.testing import capture_logs

from activities.planning.solver import ProcessSolver, SolveFailed, ThreadSolver
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import (
    Limits,
    ModelProblem,
    PartOption,
    PartProblem,
    Problem,
    RegionDemand,
    RegionSupply,
)
from planner import kernel_cache
from tests.processes import command_line
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")


@pytest.fixture
def problem() -> Problem:
    part = PartProblem(part="dense", options=(PartOption(hardware="cpu", units=1, qps=100),))
    demand = (RegionDemand(region="r", qps=250),)
    model = ModelProblem(model="m", owner="o", latency_tolerance_ms=10, demand=demand, parts=(part,))
    supply = (RegionSupply(region="r", hardware="cpu", units=10, unit_cost=1),)
    return Problem(regions=("r",), rtt_ms=((1.0,),), hardware=("cpu",), supply=supply, models=(model,))


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a shell script in the place of the planner's program."""

    def put(script: str) -> None:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr("activities.planning.solver.sys.executable", str(path))

    return put


def children() -> list[psutil.Process]:
    """The solvers that this process has started; other tests of this process may have servers of their own."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "activities.planning.solver_process" in command_line(child)]


def ended(pid: int) -> bool:
    """Whether a process has ended; a zombie that no one waits for any more has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Beats:
    """What is beaten, and something done once, to the first process that has a command line at a beat."""

    def __init__(self, act=lambda: None) -> None:
        self.words: list[str] = []
        self._act = act
        self._acted = False

    def __call__(self, words: str) -> None:
        self.words.append(words)
        self._acted = self._acted or bool(self._act())


def test_a_process_gives_the_same_plan_as_a_thread_and_says_what_it_took(problem):
    beats = Beats()

    solved = ProcessSolver().solve(problem, beat=beats)

    assert solved.plan == ThreadSolver().solve(problem, beat=beats).plan
    assert solved.plan.solver.seconds == 0, "the document is the same whatever the clock says"
    assert solved.use.cpu_seconds > 0
    assert solved.use.wall_seconds > 0
    assert solved.use.peak_memory_bytes > 10 * 2**20
    assert "solving for 0 s" in beats.words[0]


def test_a_process_places_one_model_as_a_thread_does(problem):
    named = (problem.models[0], problem.models[0].model_copy(update={"model": "-n"}))
    two = problem.model_copy(update={"models": named})

    placed = ProcessSolver().solve(two, beat=Beats(), model="-n").plan

    assert placed == ThreadSolver().solve(two, beat=Beats(), model="-n").plan
    assert {row.model for row in placed.replicas} == {"-n"}


def test_what_the_planner_refuses_comes_back_as_it_is(problem):
    twice = problem.model_copy(update={"models": (*problem.models, *problem.models)})

    with pytest.raises(InvalidInput, match="m"):
        ProcessSolver().solve(twice, beat=Beats())


def test_a_process_that_hangs_is_ended_at_its_limit(problem):
    beats = Beats(lambda: [child.suspend() for child in children()])
    short = problem.model_copy(update={"limits": Limits(time_seconds=0.3)})

    with pytest.raises(SolveFailed, match=r"took longer than 0\.8 s and was ended") as caught:
        ProcessSolver(grace_seconds=0.5).solve(short, beat=beats)

    assert not caught.value.died, "another attempt would take as long"
    assert Reason(caught.value.code) is Reason.PLANNER_FAILED
    assert children() == []


def test_the_limit_does_not_count_while_kernels_are_compiled(problem, tmp_path, monkeypatch):
    """Thirty polls take three seconds or more: far beyond the limit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel_cache.folder.cache_clear()
    short = problem.model_copy(update={"limits": Limits(time_seconds=0.3)})
    seen = []
    structlog.reset_defaults()
    with ExitStack() as compiling, capture_logs() as log:
        compiling.enter_context(kernel_cache.compiling_alone())

        def beat(words):
            for child in children():
                child.suspend()
            seen.append(words)
            if len(seen) == 30:
                compiling.close()

        with pytest.raises(SolveFailed, match=r"took longer than 0\.8 s and was ended"):
            ProcessSolver(grace_seconds=0.5).solve(short, beat=beat)
    kernel_cache.folder.cache_clear()

    assert all(
        words.startswith("solving for 0 s, without the time in which the planner's kernels") for words in seen[:30]
    )
    assert "kernels" not in seen[30]
    assert [line["event"] for line in log] == ["planner_kernels_compile", "planner_kernels_ready"]


def test_a_process_that_is_killed_is_told_with_the_memory_it_held(problem):
    beats = Beats(lambda: [child.kill() for child in children()])

    with pytest.raises(SolveFailed, match=r"was killed after .* MiB: by hand, or .* out of memory") as caught:
        ProcessSolver().solve(problem, beat=beats)

    assert caught.value.died, "another attempt may come through"


def test_a_process_without_memory_says_so(problem):
    with pytest.raises(SolveFailed, match="ran out of memory") as caught:
        ProcessSolver(memory_bytes=2**20).solve(problem, beat=Beats())

    assert not caught.value.died


def test_a_process_that_ends_by_itself_is_told_with_its_last_words(problem, program):
    program("echo first >&2; echo 'ImportError: no planner' >&2; exit 7")

    with pytest.raises(SolveFailed, match="ended with status 7 and no answer: ImportError: no planner"):
        ProcessSolver().solve(problem, beat=Beats())


def test_a_process_that_crashes_is_told_by_its_signal(problem, program):
    program("kill -SEGV $$")

    with pytest.raises(SolveFailed, match="ended by SIGSEGV") as caught:
        ProcessSolver().solve(problem, beat=Beats())

    assert caught.value.died


def test_a_cancelled_solve_leaves_no_process_behind_whatever_the_planner_has_started(problem, program, tmp_path):
    program(f"sleep 600 & echo $! > {tmp_path}/grandchild; exec sleep 600")

    def cancel(_: str) -> None:
        if (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text().strip():
            msg = "cancelled"
            raise RuntimeError(msg)

    with pytest.raises(RuntimeError, match="cancelled"):
        ProcessSolver().solve(problem, beat=cancel)

    grandchild = int((tmp_path / "grandchild").read_text())
    until(lambda: ended(grandchild))
    assert children() == []


def test_its_program_imports_neither_a_database_nor_temporal():
    """Each plan waits for its imports."""
    look = "import sys, activities.planning.solver_process; print({'sqlalchemy', 'temporalio'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


WAITS = """
import sys, time
from activities.planning.solver import ProcessSolver
from ipnext.model.planning.plan import Problem
ProcessSolver().solve(Problem.model_validate_json(sys.stdin.read()), beat=lambda words: print(words, flush=True))
"""


def test_a_worker_that_is_killed_takes_its_planner_with_it(problem):
    worker = subprocess.Popen(
        [sys.executable, "-c", WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    watchdog = threading.Timer(PATIENCE_SECONDS, worker.kill)
    watchdog.start()
    try:
        worker.stdin.write(problem.model_dump_json(by_alias=True))
        worker.stdin.close()
        assert "solving" in worker.stdout.readline()
        (planner,) = psutil.Process(worker.pid).children()
        began = Path(f"/proc/{planner.pid}/oom_score_adj")
        until(lambda: began.read_text().strip() == "1000")  # it has tied its life to the worker's just before
        os.kill(planner.pid, signal.SIGSTOP)
        worker.kill()
        worker.wait(PATIENCE_SECONDS)
        until(lambda: ended(planner.pid))
    finally:
        watchdog.cancel()
        worker.kill()
        worker.stdout.close()
        worker.wait()
