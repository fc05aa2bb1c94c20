"""How the planner's kernels are compiled: by numba, once, into a cache that follows their sources.

numba's own cache looks at one file only, and would keep a kernel whose callee in another file has changed. Here the cache's
folder carries a digest of all sources with kernels, so that a change of any of them compiles anew.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from platformdirs import user_cache_path

CACHE = "numba"


def _cache_folder() -> Path:
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        text = source.read_bytes()
        if b"from planner.compiled import" in text or source == Path(__file__):
            digest.update(source.name.encode() + text)
    return user_cache_path("ipnext") / CACHE / digest.hexdigest()[:16]


def kernel(function: Callable[..., Any]) -> Any:
    """A function compiled on its first call; it may run beside Python threads."""
    return _compiled(function, parallel=False)


def parallel_kernel(function: Callable[..., Any]) -> Any:
    """A function whose `prange` loops run on all cores."""
    return _compiled(function, parallel=True)


def _compiled(function: Callable[..., Any], *, parallel: bool) -> Any:
    numba.config.CACHE_DIR = str(_FOLDER)
    return numba.njit(cache=True, nogil=True, parallel=parallel)(function)


_FOLDER = _cache_folder()
