"""Waiting for what happens by itself, in one place.

The limit is no promise of the platform: it ends a test that would wait for ever. A machine that is busy with other
tests may stand still for seconds, so it is far above what is ever needed. How long things take is measured in
benchmarks/.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE_SECONDS = 180.0
"""Below pytest's own limit (pyproject.toml), so that a test says what it waited for."""


def until(
    found: Callable[[], Any],
    *,
    why: Callable[[], object] = lambda: "",
    every_seconds: float = 0.02,
    seconds: float = PATIENCE_SECONDS,
) -> Any:
    """The first truthy value of `found`. AssertionError with `why` once patience is over."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, _late(seconds, why)
        time.sleep(every_seconds)
    return value


async def eventually(
    found: Callable[[], Any],
    *,
    why: Callable[[], object] = lambda: "",
    every_seconds: float = 0.02,
    seconds: float = PATIENCE_SECONDS,
) -> Any:
    """The same; the event loop goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, _late(seconds, why)
        await asyncio.sleep(every_seconds)
    return value


def _late(seconds: float, why: Callable[[], object]) -> str:
    return f"it did not happen within {seconds:g} s: {why()}"
