"""Streams that are hashed while they are read."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from ipnext.artifacts.layout import CHUNK_BYTES, mismatch

if TYPE_CHECKING:
    import io

_PIECE_BYTES: Final = 256 << 10
"""Small enough to be hashed from the processor's cache."""
_AHEAD_BYTES: Final = 32 << 20
"""How far before a piece the kernel reads a file. These bytes are in its page cache, not in this process."""


def hash_stream(stream: BinaryIO) -> tuple[str, int]:
    """Return the SHA-256 and the size in bytes of the rest of a stream. Errors of the stream."""
    digest, size = hashlib.sha256(), 0
    for piece in read_ahead(stream):
        digest.update(piece)
        size += len(piece)
    return digest.hexdigest(), size


def read_ahead(stream: BinaryIO) -> Iterator[memoryview]:
    """Yield the rest of a stream in pieces, each valid until the next one is asked for. Errors of the stream.

    The kernel reads a file from its disk while earlier pieces are used. A second thread of this process was slower on
    busy processors.
    """
    piece = memoryview(bytearray(_PIECE_BYTES))
    advised, position = 0, _file_position(stream)
    while True:
        if position is not None and position + _AHEAD_BYTES // 2 >= advised:
            advised = _advise(stream, max(advised, position), position + _AHEAD_BYTES)
        read = cast("io.BufferedIOBase", stream).readinto(piece)
        if not read:
            return
        yield piece[:read]
        position = None if position is None else position + read


def _file_position(stream: BinaryIO) -> int | None:
    """Return the position in a file that the kernel can read ahead; None for any other stream."""
    try:
        stream.fileno()
        return stream.tell() if hasattr(os, "posix_fadvise") else None
    except OSError:
        return None


def _advise(stream: BinaryIO, begin: int, end: int) -> int:
    """Have the kernel read this range, if it likes; return its end."""
    with suppress(OSError):
        os.posix_fadvise(stream.fileno(), begin, end - begin, os.POSIX_FADV_WILLNEED)
    return end


def verify_chunks(chunks: Iterable[bytes], *, sha256: str, subject: str) -> Iterator[bytes]:
    """Yield the same chunks; after the last, raise ArtifactDigestMismatch if they are not the bytes of `sha256`."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise mismatch(subject, expected=sha256, found=digest.hexdigest())


def chunks_of(stream: BinaryIO, *, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the stream in chunks of at most `size` bytes."""
    while chunk := stream.read(size):
        yield chunk


def regroup_chunks(chunks: Iterable[bytes], *, size: int) -> Iterator[bytes]:
    """Yield the same bytes in chunks of exactly `size`, the last one shorter; one empty chunk if there are no bytes."""
    buffer = bytearray()
    given = False
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= size:
            yield bytes(buffer[:size])
            del buffer[:size]
            given = True
    if buffer or not given:
        yield bytes(buffer)
