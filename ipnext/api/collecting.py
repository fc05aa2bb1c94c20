"""How often the API's process looks for cyclic garbage.

An observation of a large fleet is a million objects without cycles. A full collection walks over all of them, in half a
second during which nothing is answered, and finds nothing; reference counts free them anyway.
"""

import gc

THRESHOLDS = (50_000, 20, 100)
"""Objects more than before, then collections of the younger generation, until one of each generation."""


def collect_rarely() -> None:
    """Leave out what was imported, and look at the rest less often than Python's defaults."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
