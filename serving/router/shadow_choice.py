"""The choice of the requests that are mirrored to a shadow. Pure.

It follows from the request and the seed alone: all routers choose the same requests, so that none skews the comparison,
and a client that repeats a request changes nothing.
"""

from hashlib import blake2b
from typing import Final

from serving.http.messages import Request

REQUEST_ID: Final = "x-request-id"
_PIECE_BYTES: Final = 8 * 2**10
"""Bytes at each end of a body that identify a request without an id."""
_RANGE: Final = 2**64


def chooses(request: Request, *, share: float, seed: int) -> bool:
    """Return whether a request belongs to this share (0 to 1).

    The request's `x-request-id` decides, or its body if it has none. A request of a share belongs to every larger one
    with the same seed.
    """
    return _position(request, seed) < share * _RANGE


def _position(request: Request, seed: int) -> int:
    """Return a number from 0 to 2^64 - 1, evenly distributed over requests."""
    digest = blake2b(digest_size=8, key=seed.to_bytes(8, "big"))
    name = request.header(REQUEST_ID)
    if name is not None:
        digest.update(name.encode())
    else:
        content = memoryview(request.content)
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content[:_PIECE_BYTES])
        digest.update(content[_PIECE_BYTES:][-_PIECE_BYTES:])
    return int.from_bytes(digest.digest(), "big")
