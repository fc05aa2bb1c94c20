"""Bodies compressed with gzip or deflate (HTTP's Content-Encoding). Used by the router only."""

import asyncio
import zlib
from dataclasses import replace
from typing import Final

from ipnext.errors import InvalidInput, TooLarge
from serving.http.limits import MemoryClaim
from serving.http.messages import Request, Response

MIN_BYTES: Final = 2**10
"""Answers below this size are not compressed."""
_WINDOWS: Final = {"gzip": 31, "deflate": 15}
"""`wbits` of zlib: a gzip member, and the zlib form that "deflate" means (RFC 9110, 8.4.1.2)."""
_LEVEL: Final = 1
_PIECE_BYTES: Final = 2**14
"""Compressed bytes unpacked per step. They can grow a thousandfold, the most by which a body exceeds the limit
unnoticed."""
_STEP_BYTES: Final = 2**22
"""Bytes unpacked in a thread between two checks of the budget."""
_INLINE_UNPACKED: Final = 2**12
_INLINE_PACKED: Final = 2**16
"""Above these sizes a body is unpacked (up to a thousandfold) or packed in a thread, so that no other request waits."""


async def unpack_request(request: Request, *, limit: int, claim: MemoryClaim) -> Request:
    """Return the request with its body decompressed, counted in `claim` while it grows.

    Raises:
        InvalidInput: the body is not in the encoding of `content-encoding`.
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
        unpacking.advance(limit)
    else:
        while not unpacking.done:
            await asyncio.to_thread(unpacking.advance, _STEP_BYTES)
            claim.set(len(unpacking.body))
    claim.set(len(unpacking.body))
    return replace(request, content=unpacking.body)


class _Unpacking:
    """A body that is being decompressed."""

    def __init__(self, content: bytearray, coding: str, limit: int) -> None:
        self.body = bytearray()
        self.done = False
        self._coding = coding
        self._limit = limit
        self._packed = memoryview(content)
        self._position = 0
        self._unpacker = zlib.decompressobj(_WINDOWS[coding])

    def advance(self, size: int) -> None:
        """Unpack `size` more bytes, or the rest. InvalidInput, TooLarge."""
        end = min(len(self.body) + size, self._limit)
        try:
            while self._has_more and len(self.body) <= end:
                piece = self._packed[self._position : self._position + _PIECE_BYTES]
                self.body += self._unpacker.decompress(piece)
                self._position += _PIECE_BYTES
        except zlib.error as error:
            msg = f"body: is not {self._coding}, as content-encoding says: {error}"
            raise InvalidInput(msg, field="body") from error
        if len(self.body) > self._limit:
            msg = f"the body unpacks to more than {self._limit} bytes; send fewer rows"
            raise TooLarge(msg, field="body")
        self.done = not self._has_more
        if self.done and (not self._unpacker.eof or self._unpacker.unused_data or self._position < len(self._packed)):
            msg = f"body: {self._coding} data that ends early, or goes on after its end"
            raise InvalidInput(msg, field="body")

    @property
    def _has_more(self) -> bool:
        return self._position < len(self._packed) and not self._unpacker.eof


async def pack_response(response: Response, request: Request) -> Response:
    """Compress the answer if the client accepts exactly gzip or exactly deflate.

    The list that HTTP libraries send by default ("gzip, deflate, br") does not count: compression costs more than a
    small model's pass, so only clients that name one coding get it.
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
