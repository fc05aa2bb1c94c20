"""The client's end of an answer that comes in pieces. Made by serving.http_server, written to by whoever has the pieces."""

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
        if self._done.done():
            return
        head, self._head = self._head, b""
        if self._chunked:
            self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(piece), piece))
        else:
            self._transport.write(head + piece if head else piece)

    def end(self) -> None:
        """The body is whole."""
        if self._done.done():
            return
        last = self._head + (b"0\r\n\r\n" if self._chunked else b"")
        if last:
            self._transport.write(last)
        self._head = b""
        self._done.set_result(True)

    def abort(self) -> None:
        """The rest never comes. Without the last chunk, or with too few bytes, no client takes the body for whole."""
        if not self._done.done():
            self._done.set_result(False)
