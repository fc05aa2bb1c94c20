"""The fleet-scale solver's kernels, loaded into this process, or compiled for this machine.

The first plan that needs them compiles them, or `python -m planner.kernels` does beforehand: a minute and a half of
one core. No plan's time limit counts that.
"""

import argparse
import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
from functools import cache
from threading import Event, Lock
from typing import NamedTuple

import numpy as np

from planner import kernel_cache
from planner.core.arrays import FleetArrays, Prices
from planner.generate.generate import generate

HALVES = ("configurations", "bounds")
PR_SET_PDEATHSIG = 1

_TURN = Lock()
_IN_PROCESSES = Event()
"""Set if kernels are compiled by processes of their own."""


class Preparation(NamedTuple):
    """Time that the preparation of the kernels took."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the thread that did it."""
    compiled: bool = False
    """True if they were not all in the cache."""


def compile_in_processes() -> None:
    """From now on compile kernels that are lacking in processes of their own: on two cores, and again after a crash.

    For programs; a library call should start no process.
    """
    _IN_PROCESSES.set()


def prepare() -> None:
    """Load every kernel into this process; compile them first if the cache lacks some. Immediate if that was done.

    If another process compiles them now, this waits for it.
    """
    with _TURN:
        _prepare_once()


def preparation() -> Preparation:
    """Return the time that `prepare` has taken in this process so far."""
    return _prepare_once() if _prepare_once.cache_info().currsize else Preparation()


@cache
def _prepare_once() -> Preparation:
    wall, cpu = time.perf_counter(), time.thread_time()
    complete = kernel_cache.is_complete()
    if complete:
        _load()
    else:
        if _IN_PROCESSES.is_set() and kernel_cache.folder() is not None:
            main()
        with kernel_cache.compiling_alone():
            _load()
            kernel_cache.mark_complete()
    return Preparation(time.perf_counter() - wall, time.thread_time() - cpu, compiled=not complete)


def _load() -> None:
    for half in HALVES:
        compile_half(half)


def compile_half(half: str) -> None:
    """Call one half of the kernels on a small drawn fleet."""
    arrays = FleetArrays.of(generate(models=4, regions=3, hardware=2, current=True))
    prices = Prices(np.zeros_like(arrays.supply), np.zeros_like(arrays.owner_budget), 0.0)
    if half == "bounds":
        from planner.bound.bound import lower_bounds  # noqa: PLC0415 - each half loads its own kernels only

        lower_bounds(arrays, prices)
        return
    from planner.fleet.pricing import Placer, best_columns  # noqa: PLC0415

    best_columns(arrays, prices, np.arange(arrays.models, dtype=np.int64), effort=1)
    Placer(arrays).best(0, prices, arrays.supply, effort=1)


def main() -> int:
    """Compile both halves in parallel; 0 if both succeeded.

    If kernels crash their process, they are compiled once more.
    """
    with kernel_cache.compiling_alone():
        if kernel_cache.is_complete():
            return 0
        status = _compile_halves()
        if status != 0:
            kernel_cache.empty()
            status = _compile_halves()
        if status == 0:
            kernel_cache.mark_complete()
    return status


def _compile_halves() -> int:
    command = [sys.executable, "-m", "planner.kernels"]
    halves = [subprocess.Popen([*command, half, str(os.getpid())]) for half in HALVES]  # noqa: S603
    return max(abs(half.wait()) for half in halves)


def _end_with(parent: int) -> None:
    """Die with the parent, even if it is killed; the Linux kernel does it."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m planner.kernels", description=main.__doc__)
    parser.add_argument("half", nargs="?", choices=HALVES, help="of a child process: the kernels that it compiles")
    parser.add_argument("parent", nargs="?", type=int, help="of a child process: the process that it ends with")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    if given.half is None:
        sys.exit(main())
    _end_with(given.parent)
    gc.disable()  # a compiler's objects live until its end: collections would take an eighth of the time
    compile_half(given.half)
