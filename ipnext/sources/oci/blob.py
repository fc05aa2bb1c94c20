"""A blob of a registry as a stream: it survives a cut connection, and its end is given only if all bytes are right."""

import hashlib
import io
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import httpx

from ipnext.artifacts.layout import CHUNK_BYTES, mismatch
from ipnext.components.bounded_http import ending_at
from ipnext.errors import ArtifactDigestMismatch, Unavailable
from ipnext.model.registry.registry import ArtifactFile
from ipnext.sources.oci.registry import Repository, unreachable

if TYPE_CHECKING:
    from typing_extensions import Buffer

PAUSES_SECONDS: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Before each request for the rest of a blob, as long as none of them brings a byte."""
FIRST_SECONDS: Final = 60.0
SLOWEST_BYTES_PER_SECOND: Final = 256 * 2**10
"""A blob of N bytes has FIRST_SECONDS and N divided by this."""


def open_blob(repository: Repository, file: ArtifactFile, ends_at: float | None = None) -> BinaryIO:
    """Open a buffered stream of a blob; the caller closes it. `ends_at` is an earlier end, by the monotonic clock.

    Raises ArtifactMissing or Unavailable, and while it is read also ArtifactDigestMismatch: the last bytes of a blob
    with another size or SHA-256 are never given.
    """
    latest = time.monotonic() + FIRST_SECONDS + file.size_bytes / SLOWEST_BYTES_PER_SECOND
    stream = _BlobStream(repository, file, latest if ends_at is None else min(latest, ends_at))
    return cast("BinaryIO", io.BufferedReader(stream, CHUNK_BYTES))


class _BlobStream(io.RawIOBase):
    """Continues at the byte at which a connection broke."""

    def __init__(self, repository: Repository, file: ArtifactFile, ends_at: float) -> None:
        super().__init__()
        self._repository, self._file, self._ends_at = repository, file, ends_at
        self._subject = f"blob sha256:{file.sha256} ({file.path!r}) of {repository.place.url}"
        self._hash = hashlib.sha256()
        self._position = 0
        self._rest = memoryview(b"")
        self._answer: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        if file.size_bytes:
            self._request()
        else:
            self._check_digest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer", /) -> int:
        """Fill the buffer; return 0 at the end of the blob."""
        view = memoryview(buffer)
        if not view or self._position >= self._file.size_bytes:
            return 0
        if not self._rest:
            self._rest = memoryview(self._next())
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        self._hash.update(piece)
        position = self._position + len(piece)
        if position >= self._file.size_bytes:
            self._check_end(position)
        self._position = position
        return len(piece)

    def close(self) -> None:
        self._close_answer()
        super().close()

    def _close_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _next(self) -> bytes:
        """Return the next bytes, at least one, if need be of another answer."""
        while True:
            try:
                chunk = self._read_chunk()
            except httpx.TransportError:
                self._request()
                continue
            if chunk:
                return chunk
            if self._answer is not None and _has_own_end(self._answer):
                raise self._other_size(self._position)
            self._request()  # the answer ends with its connection, which may have been cut

    def _read_chunk(self) -> bytes:
        """Return the next bytes of this answer; none at its end. Raises Unavailable or httpx.TransportError."""
        self._check_time()
        with ending_at(self._ends_at):
            return next((chunk for chunk in self._chunks if chunk), b"")

    def _request(self) -> None:
        """Request the blob from the present byte on. Raises Unavailable or ArtifactDigestMismatch."""
        fault: Unavailable | None = None
        for pause in PAUSES_SECONDS:
            self._close_answer()
            self._check_time()
            time.sleep(pause)
            try:
                self._answer = self._repository.open_blob(f"sha256:{self._file.sha256}", self._position, self._ends_at)
            except httpx.TransportError as error:
                fault = unreachable(self._subject, error)
                continue
            self._check_start(self._answer)
            self._chunks = self._answer.iter_raw()
            return
        place = f"at byte {self._position} of {self._file.size_bytes}"
        msg = f"{fault.message if fault else self._subject}, {place}"
        raise Unavailable(msg) from fault

    def _check_time(self) -> None:
        if time.monotonic() > self._ends_at:
            place = f"byte {self._position} of {self._file.size_bytes}"
            msg = f"{self._subject} comes too slowly: at its time limit it was at {place}"
            raise Unavailable(msg)

    def _check_start(self, answer: httpx.Response) -> None:
        """Check that an answer begins at the present byte, and that it ends with the blob."""
        length = answer.headers.get("content-length", "")
        left = self._file.size_bytes - self._position
        if length.isdecimal() and int(length) != left:
            raise self._other_size(self._position + int(length))
        if self._position and not answer.headers.get("content-range", "").startswith(f"bytes {self._position}-"):
            msg = f"{self._subject} does not continue at byte {self._position}"
            raise Unavailable(msg)

    def _check_end(self, position: int) -> None:
        """Check that the blob ends at this byte, and its SHA-256."""
        try:
            more = bytes(self._rest) or self._read_chunk()
        except httpx.TransportError:
            more = b""  # all bytes are there, whatever became of the connection
        if more or position > self._file.size_bytes:
            raise self._other_size(None)
        self._check_digest()

    def _check_digest(self) -> None:
        found = self._hash.hexdigest()
        if found != self._file.sha256:
            raise mismatch(self._subject, expected=self._file.sha256, found=found)

    def _other_size(self, found: int | None) -> ArtifactDigestMismatch:
        """Return the error for a size; None: more bytes than the manifest says."""
        size = self._file.size_bytes
        has = "more" if found is None else found
        error = ArtifactDigestMismatch(f"{self._subject} has {has} bytes, and its manifest says {size}")
        error.public_message = f"{self._subject} has not the {size} bytes that its manifest says"
        return error


def _has_own_end(answer: httpx.Response) -> bool:
    """Return whether an answer marks the end of its body."""
    return "content-length" in answer.headers or "transfer-encoding" in answer.headers
