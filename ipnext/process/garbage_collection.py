"""Frequency of a process's cyclic garbage collections.

An observation of a large fleet is a million objects without cycles. A full collection traverses all of them, in half a
second during which the process answers nothing, and finds nothing; reference counts free them anyway.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (50_000, 20, 100)
"""Thresholds of the three generations: new objects, then collections of the younger generation."""


def leave_out_imports() -> None:
    """Exclude all present objects from collections: modules, classes, compiled statements.

    They cost a worker 0.35 s in each full one.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def collect_after_imports() -> Iterator[None]:
    """Make imports without collections, and exclude what they have made from later ones.

    What a process imports stays. While it imports, collections take a quarter to a third of the processor time. Within
    another such block, or if collections are off, only the imports are made.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()  # without a collection, which would take half a second after torch and free less than a megabyte
    finally:
        gc.enable()


def collect_rarely() -> None:
    """Exclude imported objects, and collect the others less often than by Python's defaults."""
    leave_out_imports()
    gc.set_threshold(*THRESHOLDS)
