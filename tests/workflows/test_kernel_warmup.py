"""A worker that lacks the planner's kernels has them compiled by a process of its own, and says so."""

import asyncio
import sys

import pytest
import structlog
from structlog.testing import capture_logs

from planner import kernel_cache
from tests.waiting import eventually
from workflows.runtime import kernel_warmup as warming
from workflows.runtime.kernel_warmup import compile_kernels


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    forget = kernel_cache.folder.cache_clear
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def program(monkeypatch):
    """Put a program in the place of the one that compiles."""

    def put(text):
        monkeypatch.setattr(warming, "COMMAND", (sys.executable, "-c", text))

    return put


@pytest.fixture
def log():
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines


def words(log):
    return [line["event"] for line in log]


async def test_nothing_is_compiled_if_all_kernels_are_there(cache, program, log):
    program("raise SystemExit('started')")
    kernel_cache.mark_complete()
    await compile_kernels(asyncio.Event())
    assert log == []


@pytest.mark.usefixtures("subprocesses")
async def test_the_log_says_that_kernels_are_not_ready_and_then_that_they_are(cache, program, log):
    program("")
    await compile_kernels(asyncio.Event())
    assert words(log) == ["planner_kernels_compile", "planner_kernels_ready"]
    assert log[0]["folder"] == str(kernel_cache.folder())


@pytest.mark.usefixtures("subprocesses")
async def test_a_fault_is_logged_and_the_worker_goes_on(cache, program, log, monkeypatch):
    program("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    await compile_kernels(asyncio.Event())
    monkeypatch.setattr(warming, "COMMAND", (str(cache / "absent"),))
    await compile_kernels(asyncio.Event())
    assert words(log) == ["planner_kernels_compile", "planner_kernels_not_compiled"] * 2
    assert (log[1]["status"], log[3]["status"]) == (-11, "No such file or directory")


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("ignores", [False, True], ids=["ends", "ignores SIGTERM"])
async def test_a_worker_that_stops_ends_the_process(cache, program, log, monkeypatch, ignores):
    monkeypatch.setattr(warming, "END_SECONDS", 0.1)
    began = cache / "began"
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" if ignores else ""
    program(
        f"{deaf}\nimport os, time, pathlib; pathlib.Path({str(began)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    stopped = asyncio.Event()
    work = asyncio.create_task(compile_kernels(stopped))
    await eventually(lambda: began.exists() and began.read_text())

    stopped.set()
    await work

    with pytest.raises(ProcessLookupError):
        warming.os.kill(int(began.read_text()), 0)
    assert words(log) == ["planner_kernels_compile"]


async def test_a_worker_without_a_cache_says_what_to_set(cache, log, monkeypatch):
    monkeypatch.setattr(kernel_cache, "folder", lambda: None)
    await compile_kernels(asyncio.Event())
    assert words(log) == ["planner_kernels_not_kept"]
    assert "XDG_CACHE_HOME" in log[0]["hint"]
