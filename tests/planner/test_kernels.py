"""Kernels are ready before a plan's time limit begins, and making them ready makes all of them ready."""

import json
import subprocess
import sys
from threading import Event
from types import SimpleNamespace

import pytest

from planner import kernel_cache, kernels
from planner.fleet import solver as scale
from planner.generate.generate import generate

COMPILING_SECONDS = 1000.0

PROGRAM = """
import json, sys
import planner.fleet.solver, planner.fleet.rounding, planner.explain.runner_up, planner.explain.marginal_value
from planner.explain.explanation import explain
from planner.generate.generate import generate
from planner.kernels import prepare, preparation
from planner.solve import place, solve

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("planner")]
    kernels = {id(k): k for m in modules for k in vars(m).values() if hasattr(k, "nopython_signatures")}
    return sorted(
        f"{k.py_func.__module__}.{k.py_func.__name__}{s}" for k in kernels.values() for s in k.nopython_signatures
    )

prepare()
before, took = compiled(), preparation()
prepare()
for drawn in (dict(models=40), dict(models=40, current=True), dict(models=25, supply_use=1.2, current=True)):
    problem = generate(regions=4, hardware=3, **drawn)
    plan = solve(problem, method="fleet")
    name = problem.models[0].model
    place(problem, [name], method="fleet") if not drawn.get("current") else None
    explain(problem, plan, name, priced=True)
sys.stderr.write(json.dumps([before, compiled(), took == preparation()]))
"""


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for the time that making kernels ready takes."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(scale, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def test_the_time_limit_of_a_plan_begins_once_the_kernels_are_ready(clock, monkeypatch):
    def prepare():
        kernels.prepare()
        clock.seconds += COMPILING_SECONDS

    monkeypatch.setattr(scale, "prepare", prepare)
    problem = generate(models=10, regions=3, hardware=2)
    assert problem.limits.time_seconds < COMPILING_SECONDS
    assert not scale.solve_fleet(problem).out_of_time
    assert clock.seconds == COMPILING_SECONDS


@pytest.mark.usefixtures("subprocesses")
def test_a_plan_needs_no_kernel_beyond_those_that_are_made_ready():
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    before, after, once = json.loads(ended.stderr.splitlines()[-1])
    assert before
    assert after == before
    assert once, "a second call does nothing"


@pytest.fixture
def halves(monkeypatch):
    """Stand-ins for the processes that compile: each runs the next of the given programs."""
    programs = []

    def start(command):
        return subprocess.Popen([sys.executable, "-c", programs.pop(0)])

    monkeypatch.setattr(kernels, "subprocess", SimpleNamespace(Popen=start))
    return programs


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel_cache.folder.cache_clear()
    yield kernel_cache.folder()
    kernel_cache.folder.cache_clear()


CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


@pytest.mark.usefixtures("subprocesses")
def test_kernels_that_end_their_process_are_removed_and_compiled_once_more(empty_cache, halves):
    spoilt = empty_cache / "planner_0"
    spoilt.mkdir()
    halves += [CRASH, "", "", ""]
    assert kernels.main() == 0
    assert halves == []
    assert not spoilt.exists()
    assert kernel_cache.is_complete()


@pytest.mark.usefixtures("subprocesses")
def test_kernels_that_can_not_be_compiled_are_not_called_complete(empty_cache, halves):
    halves += [CRASH] * 4
    assert kernels.main() != 0
    assert not kernel_cache.is_complete()


@pytest.fixture
def unprepared(monkeypatch):
    """A process that has not prepared its kernels; `loaded` has what it compiles itself."""
    loaded = []
    monkeypatch.setattr(kernels, "compile_half", loaded.append)
    monkeypatch.setattr(kernels, "_IN_PROCESSES", Event())
    kernels._prepare_once.cache_clear()
    yield loaded
    kernels._prepare_once.cache_clear()


@pytest.mark.usefixtures("subprocesses")
def test_a_program_compiles_in_processes_what_it_lacks_and_loads_it(empty_cache, halves, unprepared):
    halves += ["", ""]
    kernels.compile_in_processes()

    kernels.prepare()

    assert (halves, unprepared) == ([], list(kernels.HALVES))
    assert kernels.preparation().compiled
    assert kernel_cache.is_complete()


def test_a_library_call_starts_no_process(empty_cache, halves, unprepared):
    kernels.prepare()

    assert unprepared == list(kernels.HALVES)
    assert kernel_cache.is_complete()


def test_what_is_complete_is_not_compiled_again(empty_cache, halves):
    kernel_cache.mark_complete()
    assert kernels.main() == 0
