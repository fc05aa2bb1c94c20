"""Bodies packed by gzip or deflate, as HTTP's Content-Encoding names them. Used by the router alone."""

import asyncio
import zlib
from dataclasses import replace
from typing import Final

from ipnext.errors import InvalidInput, TooLarge
from serving.http import Request, Response

MIN_BYTES: Final = 2**10
"""A smaller answer goes as it is."""
_WINDOWS: Final = {"gzip": 31, "deflate": 15}
"""`wbits` of zlib: a gzip member, and the zlib form that "deflate" means (RFC 9110, 8.4.1.2)."""
_LEVEL: Final = 1
_PIECE_BYTES: Final = 2**14
"""Unpacked at once: to a thousand times as much at most, by so much is the limit passed before it is seen."""
_INLINE_UNPACKED: Final = 2**12
_INLINE_PACKED: Final = 2**16
"""More is packed, or unpacked to a thousand times as much, in a thread: no other request waits for it."""


async def unpacked(request: Request, *, limit: int) -> Request:
    """The request with its body as it was before packing. InvalidInput, TooLarge beyond `limit` bytes."""
    coding = request.headers["content-encoding"].strip().lower()
    if coding == "identity":
        return request
    if coding not in _WINDOWS:
        msg = f"content-encoding: {coding[:40]!r} is not one of {', '.join(_WINDOWS)}"
        raise InvalidInput(msg, field="content-encoding", value=coding, allowed=tuple(_WINDOWS))
    if len(request.content) <= _INLINE_UNPACKED:
        content = _unpack(request.content, coding, limit)
    else:
        content = await asyncio.to_thread(_unpack, request.content, coding, limit)
    return replace(request, content=content)


def _unpack(content: bytearray, coding: str, limit: int) -> bytearray:
    unpacker = zlib.decompressobj(_WINDOWS[coding])
    body = bytearray()
    view = memoryview(content)
    position = 0
    try:
        while position < len(view) and not unpacker.eof and len(body) <= limit:
            body += unpacker.decompress(view[position : position + _PIECE_BYTES])
            position += _PIECE_BYTES
    except zlib.error as error:
        msg = f"body: is not {coding}, as content-encoding says: {error}"
        raise InvalidInput(msg, field="body") from error
    if len(body) > limit:
        msg = f"the body unpacks to more than {limit} bytes; send fewer rows"
        raise TooLarge(msg, field="body")
    if not unpacker.eof or unpacker.unused_data or position < len(view):
        msg = f"body: {coding} data that ends early, or goes on after its end"
        raise InvalidInput(msg, field="body")
    return body


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
