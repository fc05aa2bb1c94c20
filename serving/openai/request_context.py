"""One OpenAI request from its arrival to the last byte of its answer.

Its counts, and the resources that it releases at its end.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from serving.metrics.generation_counts import ChosenCounts
from serving.metrics.tallies import CANCELLED
from serving.openai.engines.response import End, EngineAnswer
from serving.routing.metrics import RouterMetrics
from serving.routing.table import GenerationRoute

OK = 200
BROKEN = 502
"""Status that counts for an answer that an engine began, with any status, but did not complete."""


class RequestContext:
    """Counts a request as in flight from `begin`, and as answered at its end: once, however it ends."""

    def __init__(self, metrics: RouterMetrics, size: int) -> None:
        """`size`: bytes of the request's body."""
        self._metrics = metrics
        self.chosen_by: str | None = None
        """Region of the gateway that chose the generation by weight."""
        self._size = size
        self._began = time.perf_counter()
        self._held: tuple[AbstractContextManager[Any], ...] = ()
        self._call: AbstractContextManager[Any] | None = None
        self._ended = False
        self._chosen: ChosenCounts | None = None
        self.model: str | None = None
        self.route: GenerationRoute | None = None
        self.snapshot: int | None = None
        """Snapshot of the part that answers."""
        self.used: Mapping[str, int] = {}
        """Part before the generator -> the snapshot that has answered."""

    def begin(self, route: GenerationRoute, admitted: AbstractContextManager[Any]) -> None:
        """Record the chosen generation. `admitted` has been entered and is exited when the request ends."""
        self.route = route
        counted = self._metrics.in_flight(route.model, route.generation)
        counted.__enter__()
        self._held = (admitted, counted)
        self._chosen = self._metrics.note_chosen(route.model, route.generation, self.chosen_by)

    def ask(self, snapshot: int, call: AbstractContextManager[Any]) -> None:
        """Record a call to an engine, which replaces the former one, if any."""
        self._release_call()
        self.snapshot = snapshot
        call.__enter__()
        self._call = call

    def follow(self, answer: EngineAnswer, release: Callable[[], None]) -> None:
        """Let the request end with its answer, which has begun and streams. `release` is called at its end."""
        first = time.perf_counter() - self._began

        def on_end(how: End) -> None:
            release()
            status = {"whole": answer.status, "broken": BROKEN, "cancelled": CANCELLED}[how]
            if self.route is not None:
                counts = self._metrics.streams(self.route.model, self.route.generation)
                good = how == "whole" and answer.status == OK
                seconds = time.perf_counter() - self._began if good else None
                chosen = None if self._chosen is None else (self._chosen.first_token, self._chosen.token)
                counts.note(first, answer.pieces, seconds=seconds, broken=how == "broken", chosen=chosen)
            self.end(status, size=answer.size, streamed=True)

        answer.on_end = on_end

    def note_cancel(self) -> None:
        """Record that the client left before its answer began."""
        self.end(CANCELLED)

    def leave_out(self) -> None:
        """Count nothing: the request meets no generation of this region."""
        self._ended = True

    def end(self, status: int, *, size: int = 0, non_finite: bool = False, streamed: bool = False) -> None:
        """Count the answer and the bytes of its body. `non_finite`, `streamed`: as for `RouterMetrics.note_answer`."""
        if self._ended:
            return
        self._ended = True
        self._release_call()
        for held in self._held:
            held.__exit__(None, None, None)
        self._metrics.note_answer(
            self.model or "unknown",
            self.route.generation if self.route is not None else None,
            status=status,
            seconds=time.perf_counter() - self._began,
            sizes=(self._size, size),
            chosen_by=self.chosen_by,
            non_finite=non_finite,
            streamed=streamed,
        )

    def _release_call(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.__exit__(None, None, None)
