"""An object as a stream that survives a cut connection."""

import io
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from ipnext.artifacts.layout import CHUNK_BYTES
from ipnext.artifacts.stores.s3_client import BROKEN_STREAM, S3Client, answering
from ipnext.errors import Unavailable

if TYPE_CHECKING:
    from typing_extensions import Buffer

RESUMES = 3
"""Most consecutive requests for a body without one byte between them."""


def open_object(client: S3Client, bucket: str, key: str) -> BinaryIO:
    """Open a buffered stream of an object; the caller closes it. Raises ArtifactMissing or Unavailable."""
    where: Any = {"Bucket": bucket, "Key": key}
    with answering(f"s3://{bucket}/{key}"):
        answer: Any = client.get_object(**where)
    return cast("BinaryIO", io.BufferedReader(_ObjectStream(client, where, answer), CHUNK_BYTES))


class _ObjectStream(io.RawIOBase):
    """Resumes at the byte at which the connection broke, of exactly the same object (If-Match)."""

    def __init__(self, client: S3Client, where: Any, answer: Any) -> None:
        super().__init__()
        self._client = client
        self._where = where
        self._subject = f"s3://{where['Bucket']}/{where['Key']}"
        self._position = 0
        self._body: Any = answer["Body"]
        self._size = answer["ContentLength"]
        self._etag = answer["ETag"]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer", /) -> int:
        """Fill the buffer; return 0 at the end of the object."""
        view = memoryview(buffer)
        if not view or self._position >= self._size:
            return 0
        piece = self._read(len(view))
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()

    def _read(self, amount: int) -> bytes:
        fault: Exception | None = None
        for attempt in range(RESUMES + 1):
            if attempt:
                self._resume()
            try:
                piece: bytes = self._body.read(amount)
            except BROKEN_STREAM as error:
                fault = error
                continue
            if piece:
                return piece
        msg = f"the object store broke off {self._subject} at byte {self._position} of {self._size}; try again"
        raise Unavailable(msg) from fault

    def _resume(self) -> None:
        self._body.close()
        with answering(self._subject):
            answer = self._client.get_object(**self._where, Range=f"bytes={self._position}-", IfMatch=self._etag)
        self._body = answer["Body"]
