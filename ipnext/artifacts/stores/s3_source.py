"""A snapshot directory in a bucket, for a publish by s3://."""

from typing import BinaryIO
from urllib.parse import quote

from ipnext.artifacts.stores.s3_client import S3Client, answering, s3_client
from ipnext.artifacts.stores.s3_stream import open_object


class BucketSource:
    """A Source below a key prefix. The caller must check that the bucket may be read."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str | None, *, client: S3Client | None = None) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._client = client or s3_client(endpoint_url)

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self._bucket}/{quote(self._prefix)}"

    def size_bytes(self, path: str) -> int:
        """Return the size of an object. Raises ArtifactMissing or Unavailable."""
        key = self._key(path)
        with answering(f"s3://{self._bucket}/{key}"):
            return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]

    def open(self, path: str) -> BinaryIO:
        """Open a stream of an object; the caller closes it."""
        return open_object(self._client, self._bucket, self._key(path))

    def _key(self, path: str) -> str:
        return f"{self._prefix}/{path}" if self._prefix else path
