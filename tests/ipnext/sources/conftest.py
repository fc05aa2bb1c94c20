"""One watched place of each kind, with a hand that puts snapshots there: what holds for every kind is asked of all."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from ipnext.model.manifest.sources import BucketStream, DirectoryStream
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.sources.access import ReadAccess
from ipnext.sources.bucket import BucketKind
from ipnext.sources.directory import DirectoryKind
from ipnext.sources.port import Source, StreamRequest
from tests.ipnext.conftest import write_snapshot
from tests.real_servers import S3Server, running_s3


@pytest.fixture(scope="package")
def s3_server(tmp_path_factory, subprocesses) -> Iterator[S3Server]:
    """A real S3 server with one bucket, and a client of ours."""
    with running_s3(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


class Watched(Protocol):
    """A watched place."""

    source: Source

    def put(self, name: str, content: bytes, training: Mapping[str, Any] | None = None) -> SnapshotManifest:
        """Put a snapshot there, its manifest last."""

    def put_half(self, name: str, content: bytes) -> Callable[[], None]:
        """Put a snapshot without its manifest there; the answer puts it."""

    def break_manifest(self, name: str) -> None:
        """Write something else in a manifest's place."""

    def put_record(self, name: str, training: Mapping[str, Any]) -> None:
        """Write the training record of a snapshot that is there, over the one before it."""


class WatchedDirectory:
    """A directory."""

    def __init__(self, place: Path) -> None:
        self.incoming, self._draft = place / "incoming", place / "draft"
        self.incoming.mkdir()
        stream = StreamRequest(DirectoryStream(path=str(self.incoming)), ReadAccess(roots=(place,)))
        (self.source,) = DirectoryKind().connect([stream])

    def put(self, name: str, content: bytes, training: Mapping[str, Any] | None = None) -> SnapshotManifest:
        manifest = write_snapshot(self._draft / name, content)
        if training is not None:
            (self._draft / name / "training.json").write_text(json.dumps(training))
        (self._draft / name).rename(self.incoming / name)
        return manifest

    def put_half(self, name: str, content: bytes) -> Callable[[], None]:
        manifest = write_snapshot(self.incoming / name, content)
        (self.incoming / name / "snapshot.json").unlink()
        return lambda: (self.incoming / name / "snapshot.json").write_text(manifest.model_dump_json()) and None

    def put_record(self, name: str, training: Mapping[str, Any]) -> None:
        (self.incoming / name / "training.json").write_text(json.dumps(training))

    def break_manifest(self, name: str) -> None:
        (self.incoming / name).mkdir(exist_ok=True)
        (self.incoming / name / "snapshot.json").write_text("{")


class WatchedPrefix:
    """A prefix of a real bucket."""

    def __init__(self, server: S3Server, place: Path) -> None:
        self._server, self._place, self._prefix = server, place, f"in/{place.name}"
        uri = f"s3://{server.bucket}/{self._prefix}"
        access = ReadAccess(buckets=(server.bucket,), s3_endpoint_url=server.url)
        (self.source,) = BucketKind().connect([StreamRequest(BucketStream(uri=uri), access)])

    def put(self, name: str, content: bytes, training: Mapping[str, Any] | None = None) -> SnapshotManifest:
        if training is not None:
            self._write(f"{name}/training.json", json.dumps(training).encode())
        manifest = write_snapshot(self._place / name, content)
        for path in ("file-0.txt", "snapshot.json"):
            self._write(f"{name}/{path}", (self._place / name / path).read_bytes())
        shutil.rmtree(self._place / name)
        return manifest

    def put_half(self, name: str, content: bytes) -> Callable[[], None]:
        manifest = write_snapshot(self._place / name, content)
        self._write(f"{name}/file-0.txt", content)
        return lambda: self._write(f"{name}/snapshot.json", manifest.model_dump_json().encode())

    def put_record(self, name: str, training: Mapping[str, Any]) -> None:
        self._write(f"{name}/training.json", json.dumps(training).encode())

    def break_manifest(self, name: str) -> None:
        self._write(f"{name}/snapshot.json", b"{")

    def _write(self, key: str, content: bytes) -> None:
        self._server.client.put_object(Bucket=self._server.bucket, Key=f"{self._prefix}/{key}", Body=content)


@pytest.fixture(params=["directory", pytest.param("s3", marks=pytest.mark.s3)])
def watched(request, tmp_path) -> Watched:
    """A watched place of each kind that is polled by its listing."""
    if request.param == "directory":
        return WatchedDirectory(tmp_path)
    return WatchedPrefix(request.getfixturevalue("s3_server"), tmp_path)
