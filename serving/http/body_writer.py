"""The client's end of an answer that comes in pieces. Made by serving.http.connection, written to by whoever has the pieces."""

import asyncio


class BodyWriter:
    """Writes head and body to a connection as HTTP/1.1 wants it; the head leaves together with the first piece.

    `done` is given True when the body is whole, False when its end is missing. Once `done` is cancelled nothing is written.
    """

    __slots__ = ("_chunked", "_done", "_head", "_transport")

    def __init__(self, transport: asyncio.Transport, head: bytes, done: asyncio.Future[bool], *, chunked: bool) -> None:
        self._transport = transport
        self._head = head
        self._done = done
        self._chunked = chunked

    def write(self, piece: bytes) -> None:
        """The next piece of the body."""
        if not self._done.done():
            self._transport.write(self._framed(piece))

    def end(self, last: bytes = b"") -> None:
        """The body is whole with this last piece."""
        if self._done.done():
            return
        rest = self._framed(last) + (b"0\r\n\r\n" if self._chunked else b"")
        if rest:
            self._transport.write(rest)
        self._done.set_result(True)

    def _framed(self, piece: bytes) -> bytes:
        head, self._head = self._head, b""
        if self._chunked and piece:
            return b"%b%x\r\n%b\r\n" % (head, len(piece), piece)
        return head + piece if head else piece

    def abort(self) -> None:
        """The rest never comes. Without the last chunk, or with too few bytes, no client takes the body for whole."""
        if not self._done.done():
            self._done.set_result(False)
