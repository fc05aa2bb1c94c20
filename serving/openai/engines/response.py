"""An engine's answer in progress: buffered until its first piece arrives, then forwarded piece by piece."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Literal, Protocol

from ipnext.errors import IPnextError
from serving.http.limits import AnswerBudget
from serving.http.messages import Sink

End = Literal["whole", "broken", "cancelled"]
"""How a forwarded answer ended: `broken` if the engine went away, `cancelled` if the client did."""


AHEAD_BYTES: Final = 2**18
"""Bytes of an answer that are read before anything waits for them."""
PIECE_BYTES: Final = 64
"""What a kept piece takes beside its bytes."""


class EngineLost(Exception):  # not an error of the request: another engine may answer
    """An engine gave no answer. `reused`: on a connection that had been idle, so that the engine may be healthy.

    `sent`: the engine may have received the request; otherwise there was no connection.
    """

    def __init__(self, message: str, *, reused: bool = False, sent: bool = True) -> None:
        super().__init__(message)
        self.reused = reused
        self.sent = sent


class Line(Protocol):
    """The connection of an answer."""

    def pause(self) -> None:
        """Pause reading."""

    def resume(self) -> None:
        """Resume reading."""

    def close(self) -> None:
        """Close it at once."""


class EngineAnswer:
    """An answer in progress; once it has begun, a Flow of serving.http.messages.

    `on_end` is called once, after the end of an answer that has begun, even if it was cancelled. `answers` counts the
    bytes that are kept, and ends an answer of which more are kept than one may have.
    """

    __slots__ = (
        "_answers",
        "_begun",
        "_end",
        "_error",
        "_kept",
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

    def __init__(self, line: Line, answers: AnswerBudget) -> None:
        self._line: Line | None = line
        self._answers = answers
        self._kept = 0
        """Memory of `_pieces`, in bytes."""
        self._error: IPnextError | EngineLost | None = None
        """Why there is no answer, or why this side ended it. Only raised once: the traceback would keep the answer in a
        cycle."""
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
        """Bytes of the body so far."""
        self.on_end: Callable[[End], None] | None = None

    @property
    def complete(self) -> bytes | None:
        """The whole body if all of it has arrived; else None."""
        return b"".join(self._pieces) if self._end == "whole" and self._sink is None else None

    async def wait_begun(self) -> "EngineAnswer":
        """Wait for the head and the first piece; return this answer. If cancelled, the connection is closed.

        Raises:
            EngineLost: there is none.
            AnswerTooLarge: it exceeds the limit of one.
            Unavailable: there is no room for it.
        """
        try:
            await self._begun
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._error is not None:
            raise self._pop_error()
        return self

    def since(self, number: int) -> bytes:
        """Return the pieces after the first `number`, of an answer that was not started."""
        return b"".join(self._pieces[number:])

    async def await_more(self, pieces: int) -> bool:
        """Wait for a piece; return True once there are more than `pieces`, False at the end of the body.

        Raises:
            EngineLost: the end is missing.
            AnswerTooLarge: the answer exceeds the limit of one.
            Unavailable: there is no room for more.
        """
        while self.pieces == pieces:
            if self._end == "whole":
                return False
            if self._end is not None:
                raise self._pop_error()
            self._more = asyncio.get_running_loop().create_future()
            if self._line is not None:
                self._line.resume()
            try:
                await self._more
            except asyncio.CancelledError:
                self.cancel()
                raise
        return True

    def take_complete(self) -> bytes | None:
        """Return the whole body if all of it has arrived, and keep none of it; else None."""
        return self._pop_pieces() if self._end == "whole" and self._sink is None else None

    async def rest(self) -> bytes:
        """Return the whole body of an answer that was not started; errors as `await_more`."""
        while await self.await_more(self.pieces):
            pass
        return self._pop_pieces()

    def watch(self, seconds: float) -> None:
        """End the answer as broken if no piece arrives for this many seconds while the client keeps reading."""
        if self._end is None:
            self._silent = _Silence(self, seconds)

    # the connection calls these

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Store status and headers."""
        self.status, self.headers = status, headers

    def piece(self, data: bytes) -> None:
        """Store a piece of the body, to be forwarded by `pass_on` or at the end of the answer."""
        if self._sink is None and not self._keep(len(data) + PIECE_BYTES):
            return
        self.pieces += 1
        self.size += len(data)
        self._pieces.append(data)
        if not self._begun.done():
            self._begun.set_result(None)
        self._woken()

    def pass_on(self) -> None:
        """Forward the pieces that arrived together to the client in one write."""
        if self._sink is not None and self._pieces:
            self._sink.write(self._pop_pieces())

    def whole(self) -> None:
        """Complete the answer."""
        self._line = None
        if not self._begun.done():
            self._begun.set_result(None)
        self._note_end("whole")

    def lost(self, *, cut: bool = False) -> None:
        """Mark the answer as broken: its connection ended early; `cut`: closed by this side."""
        self._line = None
        if not self._begun.done():
            self._error = EngineLost("it closed the connection before it answered", sent=not cut)
            self._begun.set_result(None)
            return
        self._note_end("broken")

    # the client's connection calls these

    def start(self, sink: Sink) -> None:
        """Forward the pieces present, and later ones as they arrive."""
        self._sink = sink
        if self._end is None:
            self.resume()
            self.pass_on()
        else:
            self._tell()

    def pause(self) -> None:
        """Stop reading from the engine, because the client reads slowly."""
        if self._silent is not None:
            self._silent.paused = True
        if self._line is not None:
            self._line.pause()

    def resume(self) -> None:
        """Read from the engine again."""
        if self._silent is not None:
            self._silent.paused = False
        if self._line is not None:
            self._line.resume()

    def cancel(self) -> None:
        """Drop the answer and close its connection: the client has gone."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._sink = None
        self._release()
        self._note_end("cancelled")

    def cut_off(self) -> None:
        """End the answer as cancelled, and the client's as incomplete: the client may not have the rest."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._note_end("cancelled")

    def broken_off(self) -> None:
        """End the answer as broken: the engine was silent for too long."""
        line, self._line = self._line, None
        if line is not None:
            line.close()
        self._note_end("broken")

    def _keep(self, size: int) -> bool:
        """Count `size` more bytes of memory that nobody takes yet.

        False if they cannot be kept: that ends the answer.
        """
        if self._error is not None:
            return False
        try:
            self._answers.take(size, body=self._kept + size)
        except IPnextError as error:
            self._refuse(error)
            return False
        self._kept += size
        if self._more is None and self._kept > AHEAD_BYTES and self._line is not None:
            self._line.pause()
        return True

    def _refuse(self, error: IPnextError) -> None:
        """End the answer, and close its connection."""
        self._error = error
        self._release()
        line, self._line = self._line, None
        if line is not None:
            line.close()
        if not self._begun.done():
            self._begun.set_result(None)
        self._note_end("broken")

    def _pop_error(self) -> IPnextError | EngineLost:
        error, self._error = self._error, None
        return error or EngineLost("it closed the connection before its answer was whole")

    def _note_end(self, how: End) -> None:
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
            self._sink.end(self._pop_pieces())
        else:
            self.pass_on()
            self._sink.abort()
        self._report(self._end)

    def _pop_pieces(self) -> bytes:
        pieces = self._release()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _release(self) -> list[bytes]:
        """Return the kept pieces, and keep none."""
        pieces, self._pieces = self._pieces, []
        self._answers.give_back(self._kept)
        self._kept = 0
        return pieces

    def __del__(self) -> None:
        """Give back the bytes of an answer that nothing took."""
        self._answers.give_back(self._kept)

    def _report(self, how: End) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(how)


class _Silence:
    """A timer per answer that checks whether pieces arrived since its last check."""

    __slots__ = ("_answer", "_handle", "_seconds", "_seen", "paused")

    def __init__(self, answer: EngineAnswer, seconds: float) -> None:
        self._answer = answer
        self._seconds = seconds
        self.paused = False
        self._next()

    def stop(self) -> None:
        """Stop: the answer has ended."""
        self._handle.cancel()

    def _next(self) -> None:
        self._seen = self._answer.pieces
        self._handle = asyncio.get_running_loop().call_later(self._seconds, self._look)

    def _look(self) -> None:
        if self._answer.pieces == self._seen and not self.paused:
            self._answer.broken_off()
        else:
            self._next()
