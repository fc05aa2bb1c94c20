"""The client's end of a streamed answer. Created by serving.http.connection; the flow of the answer writes to it."""

import asyncio


class BodyWriter:
    """Writes head and body to a connection in HTTP/1.1 framing; the head is sent together with the first piece.

    `done` is set to True if the body is complete, to False if its end is missing. Once `done` is cancelled nothing is
    written.
    """

    __slots__ = ("_chunked", "_done", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport, head: bytes, done: asyncio.Future[bool], *, chunked: bool) -> None:
        self._transport = transport
        self._head = head
        self._done = done
        self._chunked = chunked

    def write(self, piece: bytes) -> None:
        """Write the next piece of the body."""
        if not self._done.done():
            self._transport.write(self._frame(piece))

    def end(self, last: bytes = b"") -> None:
        """Write the last piece and complete the body."""
        if self._done.done():
            return
        rest = self._frame(last) + (b"0\r\n\r\n" if self._chunked else b"")
        if rest:
            self._transport.write(rest)
        self._done.set_result(True)

    def _frame(self, piece: bytes) -> bytes:
        head, self._head = self._head, b""
        if self._chunked and piece:
            return b"%b%x\r\n%b\r\n" % (head, len(piece), piece)
        return head + piece if head else piece

    def abort(self) -> None:
        """End the body incomplete. Without the last chunk, or with too few bytes, no client takes it for complete."""
        if not self._done.done():
            self._done.set_result(False)
