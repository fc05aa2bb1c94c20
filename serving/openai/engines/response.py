"""An engine's answer while it comes: held until its first piece is there, then passed on piece by piece."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

from serving.http.messages import Sink

End = Literal["whole", "broken", "cancelled"]
"""How an answer that was passed on ended: `broken` where the engine went away, `cancelled` where the client did."""


class EngineLost(Exception):  # not an error of the request: another engine may answer
    """An engine gave no answer. `reused`: on a connection that had been idle, so that it may be well all the same.

    `sent`: it may have had the request; else there was no connection.
    """

    def __init__(self, message: str, *, reused: bool = False, sent: bool = True) -> None:
        super().__init__(message)
        self.reused = reused
        self.sent = sent


class Line(Protocol):
    """The connection that an answer comes on."""

    def pause(self) -> None:
        """Read nothing more for now."""

    def resume(self) -> None:
        """Read on."""

    def close(self) -> None:
        """End it at once."""


class EngineAnswer:
    """An answer on its way; a Flow of serving.http.messages once it has begun.

    `on_end` is called once, after the end of an answer that has begun, also of one that nobody wants any more.
    """

    __slots__ = (
        "_begun",
        "_end",
        "_line",
        "_more",
        "_pieces",
        "_silent",
        "_sink",
        "headers",
        "on_end",
        "pieces",
        "size",
        "status",
    )

    def __init__(self, line: Line) -> None:
        self._line: Line | None = line
        self._begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pieces: list[bytes] = []
        self._sink: Sink | None = None
        self._end: End | None = None
        self._silent: _Silence | None = None
        self._more: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.pieces = 0
        """Pieces of the body so far."""
        self.size = 0
        """Their bytes."""
        self.on_end: Callable[[End], None] | None = None

    @property
    def complete(self) -> bytes | None:
        """The whole body where all of it is here already; else None."""
        return b"".join(self._pieces) if self._end == "whole" and self._sink is None else None

    async def begun(self) -> "EngineAnswer":
        """This, once head and first piece are there. EngineLost. Cancelled, the engine is told so by the closed line."""
        try:
            await self._begun
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self

    def since(self, number: int) -> bytes:
        """The pieces behind the first `number`, of an answer that was not started."""
        return b"".join(self._pieces[number:])

    async def await_more(self, pieces: int) -> bool:
        """Wait for a piece; True once there are more pieces than so many, False at the end of the body. EngineLost if its end is missing."""
        while self.pieces == pieces:
            if self._end == "whole":
                return False
            if self._end is not None:
                msg = "it closed the connection before it had said which model it is"
                raise EngineLost(msg)
            self._more = asyncio.get_running_loop().create_future()
            try:
                await self._more
            except asyncio.CancelledError:
                self.cancel()
                raise
        return True

    async def rest(self) -> bytes:
        """The whole body. EngineLost where its end is missing."""
        ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            self.start(_Collected(ended))
            return await ended
        except asyncio.CancelledError:
            self.cancel()
            raise

    def watch(self, seconds: float) -> None:
        """End the answer as broken when nothing comes for so long, though the client takes what comes."""
        if self._end is None:
            self._silent = _Silence(self, seconds)

    # the connection calls these

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers."""
        self.status, self.headers = status, headers

    def piece(self, data: bytes) -> None:
        """A piece of the body. It leaves with `pass_on`, or with the end of the answer."""
        self.pieces += 1
        self.size += len(data)
        self._pieces.append(data)
        if not self._begun.done():
            self._begun.set_result(None)
        self._woken()

    def pass_on(self) -> None:
        """All that came together is here: one write takes it to the client."""
        if self._sink is not None and self._pieces:
            self._sink.write(self._taken())

    def whole(self) -> None:
        """The body has ended."""
        self._line = None
        if not self._begun.done():
            self._begun.set_result(None)
        self._ended("whole")

    def lost(self, *, cut: bool = False) -> None:
        """The connection has ended before the body; `cut`: at this end."""
        self._line = None
        if not self._begun.done():
            self._begun.set_exception(EngineLost("it closed the connection before it answered", sent=not cut))
            return
        self._ended("broken")

    # the client's connection calls these

    def start(self, sink: Sink) -> None:
        """Pass on what is there, and what comes."""
        self._sink = sink
        if self._end is None:
            self.pass_on()
        else:
            self._tell()

    def pause(self) -> None:
        """The client is slow: so is the engine's line."""
        if self._silent is not None:
            self._silent.paused = True
        if self._line is not None:
            self._line.pause()

    def resume(self) -> None:
        """The client takes on."""
        if self._silent is not None:
            self._silent.paused = False
        if self._line is not None:
            self._line.resume()

    def cancel(self) -> None:
        """Nobody wants it any more."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._sink = None
        self._ended("cancelled")

    def broken_off(self) -> None:
        """The engine has been silent for too long."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._ended("broken")

    def _ended(self, how: End) -> None:
        if self._end is not None and not (how == "cancelled" and self._sink is None):
            return
        self._end = self._end or how
        self._woken()
        if self._silent is not None:
            self._silent.stop()
        if self._sink is not None:
            self._tell()
        elif how == "cancelled":
            self._report(how)

    def _woken(self) -> None:
        more, self._more = self._more, None
        if more is not None and not more.done():
            more.set_result(None)

    def _tell(self) -> None:
        if self._end is None or self._sink is None:
            return
        if self._end == "whole":
            self._sink.end(self._taken())
        else:
            self.pass_on()
            self._sink.abort()
        self._report(self._end)

    def _taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _report(self, how: End) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(how)


class _Collected:
    """Holds the pieces of a body until it is whole."""

    def __init__(self, ended: asyncio.Future[bytes]) -> None:
        self._ended = ended
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def end(self, last: bytes = b"") -> None:
        self._ended.set_result(b"".join((*self._pieces, last)))

    def abort(self) -> None:
        self._ended.set_exception(EngineLost("it closed the connection in the middle of its answer"))


class _Silence:
    """One timer for an answer: it looks whether pieces came since it looked last."""

    __slots__ = ("_answer", "_handle", "_seconds", "_seen", "paused")

    def __init__(self, answer: EngineAnswer, seconds: float) -> None:
        self._answer = answer
        self._seconds = seconds
        self.paused = False
        self._next()

    def stop(self) -> None:
        """The answer has ended."""
        self._handle.cancel()

    def _next(self) -> None:
        self._seen = self._answer.pieces
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        if self._answer.pieces == self._seen and not self.paused:
            self._answer.broken_off()
        else:
            self._next()
