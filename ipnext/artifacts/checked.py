"""Streams that are hashed while they pass."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from ipnext.artifacts.layout import CHUNK_BYTES, mismatch


def checked(chunks: Iterable[bytes], *, sha256: str, subject: str) -> Iterator[bytes]:
    """The same chunks; after the last, ArtifactDigestMismatch where they are not the bytes that `sha256` names."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise mismatch(subject, expected=sha256, found=digest.hexdigest())


def chunks_of(stream: BinaryIO, *, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """The stream in pieces of at most `size` bytes."""
    while chunk := stream.read(size):
        yield chunk


def regrouped(chunks: Iterable[bytes], *, size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly `size`, the last one shorter; one empty piece for no bytes."""
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
