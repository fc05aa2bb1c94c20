"""Listing of a bucket's objects below a prefix."""

from collections.abc import Iterator
from datetime import datetime
from typing import Final, NamedTuple

from ipnext.artifacts.stores.s3_client import answering, shared_client
from ipnext.errors import Unavailable

MOST_EMPTY: Final = 100
"""Pages in a row without an object, after which a listing has no end."""

_NEEDED: Final = frozenset({"Key", "ETag", "LastModified"})


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
    given: dict[str, str] = {}
    empty = 0
    while empty < MOST_EMPTY:
        with answering(f"s3://{bucket}/{prefix}"):
            page = client.list_objects_v2(Bucket=bucket, Prefix=prefix, **given)  # type: ignore[arg-type]
        found = page.get("Contents", [])
        for item in found:
            if not item.keys() >= _NEEDED:
                raise _unusable(bucket, prefix, f"has an object without {', '.join(sorted(_NEEDED - item.keys()))}")
            yield ListedObject(item["Key"], item["ETag"].strip('"'), item["LastModified"])
        if not page.get("IsTruncated"):
            return
        token = page.get("NextContinuationToken")
        if not token:
            raise _unusable(bucket, prefix, "says that there is more, and not where")
        given = {"ContinuationToken": token}
        empty = 0 if found else empty + 1
    raise _unusable(bucket, prefix, f"says that there is more, and {MOST_EMPTY} pages in a row had nothing")


def _unusable(bucket: str, prefix: str, fault: str) -> Unavailable:
    return Unavailable(f"the object store's listing of s3://{bucket}/{prefix} {fault}; try again")
