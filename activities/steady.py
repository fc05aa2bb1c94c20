"""Heartbeats that go on while an activity is busy with something that says nothing: its last words, once a second."""

import contextvars
import threading
from types import TracebackType
from typing import Self

from temporalio import activity

from activities.waiting import beat

EVERY_SECONDS = 1.0


class Steady:
    """`steady("reading")` says what is done now, and ends the activity where it was cancelled; a thread repeats it.

    For sync activities that speak for themselves (activities/alive.py) and work for longer than the heartbeat's limit.
    """

    def __init__(self) -> None:
        self._words = "beginning"
        self._ended = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._repeat,), name="steady", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def __call__(self, words: str) -> None:
        """Say what is done now. Raises as `activities.waiting.beat` does."""
        self._words = words
        beat(words)

    def _repeat(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            activity.heartbeat(self._words)
