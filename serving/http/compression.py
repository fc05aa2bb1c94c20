"""Bodies packed by gzip or deflate, as HTTP's Content-Encoding names them. Used by the router alone."""

import asyncio
import zlib
from dataclasses import replace
from typing import Final

from ipnext.errors import InvalidInput, TooLarge
from serving.http.limits import Claim
from serving.http.messages import Request, Response

MIN_BYTES: Final = 2**10
"""A smaller answer goes as it is."""
_WINDOWS: Final = {"gzip": 31, "deflate": 15}
"""`wbits` of zlib: a gzip member, and the zlib form that "deflate" means (RFC 9110, 8.4.1.2)."""
_LEVEL: Final = 1
_PIECE_BYTES: Final = 2**14
"""Unpacked at once: to a thousand times as much at most, by so much is the limit passed before it is seen."""
_STEP_BYTES: Final = 2**22
"""Unpacked in a thread before the budget is asked again."""
_INLINE_UNPACKED: Final = 2**12
_INLINE_PACKED: Final = 2**16
"""More is packed, or unpacked to a thousand times as much, in a thread: no other request waits for it."""


async def unpacked(request: Request, *, limit: int, claim: Claim) -> Request:
    """Return the request with its body as it was before packing, counted in `claim` while it grows.

    Raises:
        InvalidInput: the body is not what `content-encoding` says.
        TooLarge: it becomes more than `limit` bytes.
        Unavailable: the process has no room for it.
    """
    coding = request.headers["content-encoding"].strip().lower()
    if coding == "identity":
        return request
    if coding not in _WINDOWS:
        msg = f"content-encoding: {coding[:40]!r} is not one of {', '.join(_WINDOWS)}"
        raise InvalidInput(msg, field="content-encoding", value=coding, allowed=tuple(_WINDOWS))
    unpacking = _Unpacking(request.content, coding, limit)
    if len(request.content) <= _INLINE_UNPACKED:
        unpacking.go_on(limit)
    else:
        while not unpacking.done:
            await asyncio.to_thread(unpacking.go_on, _STEP_BYTES)
            claim.set(len(unpacking.body))
    claim.set(len(unpacking.body))
    return replace(request, content=unpacking.body)


class _Unpacking:
    """A body on its way from packed to unpacked."""

    def __init__(self, content: bytearray, coding: str, limit: int) -> None:
        self.body = bytearray()
        self.done = False
        self._coding = coding
        self._limit = limit
        self._packed = memoryview(content)
        self._position = 0
        self._unpacker = zlib.decompressobj(_WINDOWS[coding])

    def go_on(self, size: int) -> None:
        """Unpack `size` bytes more, or what is left. InvalidInput, TooLarge."""
        end = min(len(self.body) + size, self._limit)
        try:
            while self._goes_on and len(self.body) <= end:
                piece = self._packed[self._position : self._position + _PIECE_BYTES]
                self.body += self._unpacker.decompress(piece)
                self._position += _PIECE_BYTES
        except zlib.error as error:
            msg = f"body: is not {self._coding}, as content-encoding says: {error}"
            raise InvalidInput(msg, field="body") from error
        if len(self.body) > self._limit:
            msg = f"the body unpacks to more than {self._limit} bytes; send fewer rows"
            raise TooLarge(msg, field="body")
        self.done = not self._goes_on
        if self.done and (not self._unpacker.eof or self._unpacker.unused_data or self._position < len(self._packed)):
            msg = f"body: {self._coding} data that ends early, or goes on after its end"
            raise InvalidInput(msg, field="body")

    @property
    def _goes_on(self) -> bool:
        return self._position < len(self._packed) and not self._unpacker.eof


async def packed(response: Response, request: Request) -> Response:
    """The answer packed, where the client asks for gzip or for deflate and for nothing else.

    The list that HTTP libraries send by themselves ("gzip, deflate, br") does not count: packing costs more than a
    small model's pass, so it is for those who mean it.
    """
    coding = request.headers["accept-encoding"].strip().lower()
    if coding not in _WINDOWS or len(response.body) < MIN_BYTES:
        return response
    if len(response.body) <= _INLINE_PACKED:
        body = _pack(response.body, coding)
    else:
        body = await asyncio.to_thread(_pack, response.body, coding)
    return Response(response.status, body, {**response.headers, "content-encoding": coding, "vary": "accept-encoding"})


def _pack(body: bytes | memoryview, coding: str) -> bytes:
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOWS[coding])
    return packer.compress(body) + packer.flush()
