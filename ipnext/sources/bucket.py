"""Kind `s3`: snapshots below a prefix of a bucket.

A snapshot counts once its `snapshot.json` is there, which is written last.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

from ipnext.artifacts.sources import ArtifactSource
from ipnext.artifacts.stores.locations import check_bucket
from ipnext.artifacts.stores.s3_client import shared_client
from ipnext.artifacts.stores.s3_listing import list_objects
from ipnext.artifacts.stores.s3_source import BucketSource
from ipnext.errors import IPnextError, Unavailable
from ipnext.model.manifest.sources import BucketStream
from ipnext.model.registry.registry import SNAPSHOT_FILE
from ipnext.model.registry.sources import FoundVersion, Listing, Reach
from ipnext.sources.access import ReadAccess
from ipnext.sources.port import StreamRequest
from ipnext.sources.training_record import TRAINING_FILE, TrainingRecord, read_training_record

MOST_OBJECTS: Final = 1_000_000
KEPT_RECORDS: Final = 20_000
LONGEST_NAME: Final = 400


class _Manifest(NamedTuple):
    """A `snapshot.json` in the bucket: when it was written, the snapshot's name, and the object's tag.

    `record` is the tag of the training record next to it; empty without one.
    """

    written: datetime
    name: str
    tag: str
    record: str = ""


class WatchedPrefix:
    """One prefix. All objects below it are listed at each poll, 1,000 by a request; the cursor is a digest of that."""

    def __init__(self, bucket: str, prefix: str, endpoint_url: str | None) -> None:
        self._bucket, self._prefix, self._endpoint = bucket, prefix, endpoint_url

    def list_since(self, cursor: str) -> Listing:
        """See `Source`. Versions are in the order in which their manifests were written.

        A bucket keeps whole seconds: those of one second are in the order of their names, numbers in them by value.
        """
        found = sorted(self._manifests(), key=lambda each: (each.written, _natural(each.name)))
        mark = hashlib.sha256("\n".join(f"{each.name}@{each.tag}/{each.record}" for each in found).encode()).hexdigest()
        if mark == cursor:
            return Listing(cursor=cursor)
        return Listing(cursor=mark, versions=tuple(map(self._version, found)), whole=True)

    def open(self, version: FoundVersion) -> ArtifactSource:
        """See `Source`."""
        return _source(self._bucket, self._prefix, self._endpoint, version.place)

    def _manifests(self) -> list[_Manifest]:
        found, records = [], dict[str, str]()
        below = f"{self._prefix}/" if self._prefix else ""
        for number, item in enumerate(list_objects(self._bucket, below, self._endpoint)):
            if number >= MOST_OBJECTS:
                msg = f"s3://{self._bucket}/{below} has more than {MOST_OBJECTS} objects; move older ones away"
                raise Unavailable(msg)
            name, slash, file = item.key.removeprefix(below).partition("/")
            if not slash or not 0 < len(name) <= LONGEST_NAME or name.startswith("."):
                continue
            if file == SNAPSHOT_FILE:
                found.append(_Manifest(item.written, name, item.tag))
            elif file == TRAINING_FILE:
                records[name] = item.tag
        return [each._replace(record=records.get(each.name, "")) for each in found]

    def _version(self, manifest: _Manifest) -> FoundVersion:
        record = _read_record(self._bucket, self._prefix, self._endpoint, manifest)
        key = f"{manifest.name}@{manifest.tag}"
        return FoundVersion(key=key, place=manifest.name, **record.facts(trained_at=manifest.written))


def _natural(name: str) -> tuple[str | int, ...]:
    return tuple(int(piece) if index % 2 else piece for index, piece in enumerate(re.split(r"([0-9]+)", name)))


def _source(bucket: str, prefix: str, endpoint: str | None, name: str) -> BucketSource:
    return BucketSource(bucket, f"{prefix}/{name}" if prefix else name, endpoint, client=shared_client(endpoint))


@lru_cache(maxsize=KEPT_RECORDS)
def _read_record(bucket: str, prefix: str, endpoint: str | None, manifest: _Manifest) -> TrainingRecord:
    """Read a training record once; an unreadable one counts as empty, so that it hides no other version."""
    try:
        return read_training_record(_source(bucket, prefix, endpoint, manifest.name))
    except Unavailable:
        raise
    except IPnextError:
        return TrainingRecord()


class BucketKind:
    """Buckets of AWS, or of the server of `IPNEXT_S3_ENDPOINT_URL`."""

    name = "s3"

    def upstream(self, settings: BucketStream) -> str:
        """See `SourceKind`."""
        return settings.uri

    def check(self, settings: BucketStream, access: ReadAccess) -> None:
        """See `SourceKind`."""
        _place(settings, access)

    def connect(self, streams: Sequence[StreamRequest]) -> Sequence[WatchedPrefix]:
        """See `SourceKind`."""
        return [WatchedPrefix(*_place(each.settings, each.access), each.access.s3_endpoint_url) for each in streams]


def _place(settings: BucketStream, access: ReadAccess) -> tuple[str, str]:
    """Return bucket and prefix. Raises PathNotAllowed."""
    bucket = settings.uri.removeprefix("s3://").partition("/")[0]
    return check_bucket(settings.uri, (bucket,) if access.reach is Reach.ANY else access.buckets)
