"""Waiting for what happens by itself, in one place.

The limit is no promise of the platform: it ends a test that would wait for ever. A machine that is busy with other
tests may stand still for seconds, so it is far above what is ever needed. How long things take is measured in
benchmarks/.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

PATIENCE_SECONDS = 180.0
"""Below pytest's own limit (pyproject.toml), so that a test says what it waited for."""
RAREST_SECONDS = 0.25
LATENESS = 0.1
"""A look takes processor time that what is waited for needs, often that of a request. So the longer a wait is, the
longer are the pauses between its looks: up to this part of the wait so far, and RAREST_SECONDS."""


def until(
    found: Callable[[], Any],
    *,
    why: Callable[[], object] = lambda: "",
    every_seconds: float = 0.02,
    seconds: float = PATIENCE_SECONDS,
) -> Any:
    """The first truthy value of `found`. AssertionError with `why` once patience is over.

    `every_seconds` is the shortest pause between two looks.
    """
    begun = time.monotonic()
    while not (value := found()):
        pause = _pause(begun, every_seconds, seconds, why)
        time.sleep(pause)
    return value


async def eventually(
    found: Callable[[], Any],
    *,
    why: Callable[[], object] = lambda: "",
    every_seconds: float = 0.02,
    seconds: float = PATIENCE_SECONDS,
) -> Any:
    """The same; the event loop goes on meanwhile."""
    begun = time.monotonic()
    while not (value := found()):
        pause = _pause(begun, every_seconds, seconds, why)
        await asyncio.sleep(pause)
    return value


async def until_told(
    ask: Callable[[], Awaitable[Any]],
    *,
    why: Callable[[], object] = lambda: "",
    every_seconds: float = 0.05,
    seconds: float = PATIENCE_SECONDS,
) -> Any:
    """The first truthy answer of `ask`, such as that of a query of a workflow, which tells nothing by itself."""
    begun = time.monotonic()
    while not (value := await ask()):
        pause = _pause(begun, every_seconds, seconds, why)
        await asyncio.sleep(pause)
    return value


def _pause(begun: float, every_seconds: float, seconds: float, why: Callable[[], object]) -> float:
    """Return the pause before the next look; AssertionError if the time limit has passed."""
    waited = time.monotonic() - begun
    assert waited < seconds, f"it did not happen within {seconds:g} s: {why()}"
    return max(every_seconds, min(RAREST_SECONDS, LATENESS * waited))
