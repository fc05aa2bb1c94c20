"""Compilation of the planner's kernels.

numba compiles them once, into a cache keyed by their sources (`planner.kernel_cache`).
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from threading import Lock
from typing import Any, Final

from planner import kernel_cache

os.environ.setdefault("NUMBA_OPT", "1")  # as fast here as higher levels, and compiles in a quarter less time

import numba
from numba import _dynfunc  # type: ignore[attr-defined] # a module in C
from numba.core.caching import FunctionCache, NullCache
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

OPTIONS: Final[Mapping[str, Any]] = {"nogil": True, "no_cfunc_wrapper": True}
"""Without an entry for callers in C, which would take a fifth of the time to compile; numba's types lack the option."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels alone call, only as far as they need it.

    It has no entry for Python, no machine code of its own and no entry in the cache. With them, compilation of all
    kernels took twice as long.
    """
    inner: dict[str, Any] = {"no_cpython_wrapper": True, "pipeline_class": InnerCompiler}
    return numba.njit(**OPTIONS, **inner)(function)


def entry_kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that Python calls; it releases the GIL, so other Python threads run meanwhile."""
    found: Any = numba.njit(**OPTIONS)(function)
    found._cache = ForgivingCache(function)  # noqa: SLF001 - as numba's own `cache=True` sets it
    return found


class InnerLibrary(JITCodeLibrary):
    """LLVM's code of a function and its callees. It is optimized and turned into machine code with its callers."""

    def _optimize_final_module(self) -> None:
        """Do nothing: each caller would optimize the linked code again."""

    def _finalize_final_module(self) -> None:
        """Keep the module out of the engine, which would generate its machine code."""
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class InnerLowering(NativeLowering):
    """numba's lowering into such a library."""

    _name = "inner_lowering"

    def run_pass(self, state: Any) -> bool:
        """Lower the function, and register it for its callers by a key that can't be called."""
        state.library = InnerLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        function = state.cr.fndesc
        key = _dynfunc.make_function(function.lookup_module(), function.qualname, "", 0, state.cr.env, ())
        state.targetctx.insert_user_function(key, function, [state.library])
        state.cr = state.cr._replace(cfunc=key)
        return True


class InnerCompiler(CompilerBase):
    """numba's compiler with that lowering."""

    def define_pipelines(self) -> list[Any]:
        """Return numba's only pipeline for such functions, changed."""
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [(InnerLowering if each is NativeLowering else each, text) for each, text in pipeline.passes]
        pipeline.finalize()
        return [pipeline]


class ForgivingCache:
    """numba's cache of one function, which treats an entry that can't be read or written as absent.

    numba's cache raises the errors that pickle raises for a corrupt file (numba/numba#10434). The folder is looked up
    at the first call: an import creates no folder.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _entries(self) -> Any:
        place = kernel_cache.folder()
        if place is None:
            return NullCache()
        setattr(numba.config, "CACHE_DIR", str(place))  # noqa: B010 - numba sets its attributes at run time
        cache_of: Any = FunctionCache
        return cache_of(self._function)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function; None if it has to be compiled.

        If the index can't be read, it is written again.
        """
        try:
            return self._entries.load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - a corrupt pickle may raise any exception, by the documentation of pickle
            self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function; on a full disk this process alone has it."""
        with suppress(OSError):
            self._entries.save_overload(sig, data)

    def flush(self) -> None:
        """Delete all cache entries of the function."""
        with suppress(OSError):
            self._entries.flush()

    @property
    def cache_path(self) -> str | None:
        """The folder, for numba's statistics."""
        path: str | None = self._entries.cache_path
        return path


def side_by_side(items: int, work: Callable[[int, int], object]) -> None:
    """Call `work(begin, end)` for slices of the items on all cores. Slices don't depend on the number of cores.

    Uses Python threads, because a kernel releases the GIL; numba's parallel loops must not be entered by two threads at
    once. The first slice of a work that has not run before runs alone: two threads must not compile into a cold cache
    at once.
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
