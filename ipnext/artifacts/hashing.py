"""Streams that are hashed while they are read."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ipnext.artifacts.layout import CHUNK_BYTES, mismatch


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
