"""Measures one peer on one problem: a row for the report, whatever happens to the peer."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

from benchmarks.environments import ROOT
from benchmarks.planner.peers.catalogue import PEERS
from ipnext.model.planning.plan import Plan, Problem
from planner.verify.plan_checker import Violation, check

GRACE = 1.5
"""A peer is ended at so many times its time limit and a minute: building a model does not look at the clock."""
SET_UP_SECONDS = 600.0
"""For imports, compiling and reading the problem; the time limit begins after it."""
POLL_SECONDS = 0.2
MEGABYTE = 1024 * 1024


class Instance(BaseModel):
    """What a problem is called in the report. `section` is sweep, growth or composition."""

    section: str
    models: int
    supply_use: float
    seed: int


class Row(BaseModel):
    """One line of the report. Money is $/h; what a peer does not give is None."""

    instance: Instance
    peer: str
    status: str
    note: str = ""
    objective: float | None = None
    cost_per_hour: float | None = None
    unmet_share: float | None = None
    """Of all QPS."""
    unmet_models: int | None = None
    valid: bool | None = None
    broken: tuple[str, ...] = ()
    bound: float | None = None
    bound_covers: str = ""
    cpu_seconds: float | None = None
    wall_seconds: float | None = None
    peak_mb: float | None = None
    set_up_seconds: float | None = None


def measure(instance: Instance, problem: Problem, peer: str, *, seconds: float, memory_gb: float) -> Row:
    """Return the row of one peer: `status` is done, relaxation, invalid, time, memory or failed."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "problem.json", Path(folder) / "answer.json"
        limited = problem.model_copy(update={"limits": problem.limits.model_copy(update={"time_seconds": seconds})})
        source.write_text(limited.model_dump_json(by_alias=True), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.planner.child", peer, str(source), str(target)]
        ended = _watched(command, target, seconds * GRACE + 60, memory_gb)
        row = Row(instance=instance, peer=peer, status=ended["status"], note=ended["note"], peak_mb=ended["peak_mb"])
        if ended["status"] != "done":
            return row.model_copy(update={"wall_seconds": ended["wall_seconds"]})
        answer = json.loads(target.read_text(encoding="utf-8"))
        figures = row.model_copy(update={**answer, "peak_mb": max(answer["peak_mb"], ended["peak_mb"])})
        path = target.with_suffix(".plan.json")
        if not path.is_file():
            return figures.model_copy(update={"status": "relaxation"})
        return _judged(figures, problem, Plan.model_validate_json(path.read_text(encoding="utf-8")))


def _judged(row: Row, problem: Problem, plan: Plan) -> Row:
    broken: Sequence[Violation] = check(problem, plan)
    total = sum(demand.qps for model in problem.models for demand in model.demand)
    return row.model_copy(
        update={
            "status": "invalid" if broken else "done",
            "objective": plan.objective,
            "cost_per_hour": plan.cost_per_hour,
            "unmet_share": sum(item.qps for item in plan.unmet) / total,
            "unmet_models": len({item.model for item in plan.unmet}),
            "valid": not broken,
            "broken": tuple(f"{violation.rule} {violation.subject}" for violation in broken[:5]),
        }
    )


def _watched(command: list[str], target: Path, seconds: float, memory_gb: float) -> dict[str, Any]:
    """Run a command in a session of its own, and end all of it beyond its time or memory.

    Peak memory is that of all its processes.

    The time runs from when the command leaves a file `target`.ready.
    """
    errors, ready = target.with_suffix(".errors"), target.with_suffix(".ready")
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    began, peak, ended, started = time.monotonic(), 0.0, "", False
    with errors.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True, env=environment
        )
        while process.poll() is None:
            peak = max(peak, _resident_mb(process.pid))
            if not started and ready.is_file():
                began, started = time.monotonic(), True
            if time.monotonic() - began > (seconds if started else SET_UP_SECONDS):
                ended = "time"
            elif peak > memory_gb * 1024:
                ended = "memory"
            if ended:
                _end(process)
                break
            time.sleep(POLL_SECONDS)
    status = ended or ("done" if process.returncode == 0 else "failed")
    said = {
        "time": f"ended after {seconds:.0f} s",
        "memory": f"ended above {memory_gb:g} GB",
        "failed": _last_line(errors),
    }
    return {
        "status": status,
        "note": said.get(status, ""),
        "peak_mb": peak,
        "wall_seconds": time.monotonic() - began,
    }


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kills a process and all that it started, sessions of their own included."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        started = []
    os.killpg(process.pid, signal.SIGKILL)
    for other in started:
        with suppress(psutil.Error):
            other.kill()
    process.wait()


def _resident_mb(pid: int) -> float:
    """Resident memory of a process and all it started; shared pages count for each."""
    total = 0
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            total += process.memory_info().rss
    return total / MEGABYTE


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no message"


def refused(instance: Instance, peer: str, note: str) -> Row:
    """Return the row of a peer that was not run."""
    return Row(instance=instance, peer=peer, status="not run", note=note)


def too_large(peer: str, models: int) -> str | None:
    """Why a peer is not asked for so many models, or None."""
    most = PEERS[peer].most_models
    return f"not asked above {most} models" if models > most else None
