"""How the planner's kernels are compiled: by numba, once, into a cache that follows their sources.

numba's own cache looks at one file only, and would keep a kernel whose callee in another file has changed. Here the cache's
folder carries a digest of all sources with kernels, so that a change of any of them compiles anew.
"""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from platformdirs import user_cache_path

os.environ.setdefault("NUMBA_OPT", "1")  # as fast here as more of it, and a quarter less to wait for the first time

import numba

CACHE = "numba"


def _cache_folder() -> Path:
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        text = source.read_bytes()
        if b"from planner.compiled import" in text or source == Path(__file__):
            digest.update(source.name.encode() + text)
    return user_cache_path("ipnext") / CACHE / digest.hexdigest()[:16]


def kernel(function: Callable[..., Any]) -> Any:
    """A function compiled on its first call; it lets other Python threads run meanwhile."""
    setattr(numba.config, "CACHE_DIR", str(_FOLDER))  # noqa: B010 - numba sets its attributes at run time
    return numba.njit(cache=True, nogil=True)(function)


def side_by_side(items: int, work: Callable[[int, int], object]) -> None:
    """Calls `work(begin, end)` for slices of the items on all cores. Slices don't depend on the number of cores.

    Threads of Python's own, as a kernel frees them to run; numba's parallel loops must not be entered by two threads at once.
    The first slice of a work that has not run before goes alone: two threads must not compile into a cold cache at once.
    """
    slices = [(begin, min(begin + SLICE, items)) for begin in range(0, items, SLICE)]
    code = getattr(work, "__code__", work)
    if slices and code not in _COMPILED:
        with _COMPILING:
            work(*slices.pop(0))
        _COMPILED.add(code)
    if len(slices) < 2:
        for begin, end in slices:
            work(begin, end)
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(work, begin, end) for begin, end in slices]:
            done.result()


_COMPILING = Lock()
_COMPILED: set[object] = set()
"""Works whose kernels are compiled."""


SLICE = 64

_FOLDER = _cache_folder()
