"""Listing of a bucket's objects below a prefix."""

from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from ipnext.artifacts.stores.s3_client import answering, shared_client


class ListedObject(NamedTuple):
    """An object: its key, its entity tag, and when it was written."""

    key: str
    tag: str
    written: datetime


def list_objects(bucket: str, prefix: str, endpoint_url: str | None) -> Iterator[ListedObject]:
    """Yield the objects below a prefix by key, 1,000 by a request. Raises ArtifactMissing or Unavailable.

    The caller checks that the bucket may be read.
    """
    client = shared_client(endpoint_url)
    token: dict[str, str] = {}
    while True:
        with answering(f"s3://{bucket}/{prefix}"):
            page = client.list_objects_v2(Bucket=bucket, Prefix=prefix, **token)  # type: ignore[arg-type]
        for item in page.get("Contents", ()):
            yield ListedObject(item["Key"], item["ETag"].strip('"'), item["LastModified"])
        if not page.get("IsTruncated"):
            return
        token = {"ContinuationToken": page["NextContinuationToken"]}
