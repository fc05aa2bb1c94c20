"""Both artifact stores: a directory, and a bucket of a real S3 server (SeaweedFS)."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.stores.s3_store import S3ArtifactStore
from ipnext.model.registry.registry import SNAPSHOT_FILE, ArtifactFile, Signature, SnapshotManifest, TensorSpec
from ipnext.model.value import canonical_json
from tests.real_servers import S3Server, running_s3


@pytest.fixture(scope="package")
def s3_server(tmp_path_factory, subprocesses) -> Iterator[S3Server]:
    """A real S3 server with one bucket, and a client of ours."""
    with running_s3(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


class _FileStore:
    """A file store, and a hand that damages what it holds."""

    def __init__(self, root: Path) -> None:
        self.store = FileArtifactStore(root)
        self.endpoint_url = None
        self._root = root

    def read(self, key: str) -> bytes:
        return (self._root / key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        (self._root / key).write_bytes(content)

    def put(self, key: str, content: bytes) -> None:
        (self._root / key).parent.mkdir(parents=True, exist_ok=True)
        self.write(key, content)

    def delete(self, key: str) -> None:
        (self._root / key).unlink()

    def stored_keys(self) -> set[str]:
        return {str(path.relative_to(self._root)) for path in self._root.rglob("*") if path.is_file()}

    def another(self) -> FileArtifactStore:
        return FileArtifactStore(self._root.with_name("another"))


class _S3Store:
    """An S3 store under a prefix of its own, and a hand that damages what it holds."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self.store = S3ArtifactStore(server.bucket, prefix, part_bytes=5 << 20, client=server.ours)
        self.endpoint_url = server.url
        self._server, self._prefix = server, prefix

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._server.bucket, "Key": f"{self._prefix}/{key}"}

    def read(self, key: str) -> bytes:
        with self._server.client.get_object(**self._at(key))["Body"] as body:
            return body.read()

    def write(self, key: str, content: bytes) -> None:
        self._server.client.put_object(**self._at(key), Body=content)

    put = write

    def delete(self, key: str) -> None:
        self._server.client.delete_object(**self._at(key))

    def stored_keys(self) -> set[str]:
        answer = self._server.client.list_objects_v2(Bucket=self._server.bucket, Prefix=f"{self._prefix}/")
        return {item["Key"].removeprefix(f"{self._prefix}/") for item in answer.get("Contents", ())}

    def another(self) -> S3ArtifactStore:
        return S3ArtifactStore(self._server.bucket, f"{self._prefix}-another", client=self._server.ours)


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.s3)])
def held(request, tmp_path) -> Iterator[_FileStore | _S3Store]:
    """An empty store of each kind with access behind its back."""
    if request.param == "file":
        yield _FileStore(tmp_path / "store")
        return
    yield _S3Store(request.getfixturevalue("s3_server"), f"test {tmp_path.name}")


@pytest.fixture
def store(held):
    """An empty store of each kind."""
    return held.store


@pytest.fixture
def snapshot_directory(tmp_path) -> Callable[..., Path]:
    """Makes snapshot directories."""

    def make(files: Mapping[str, bytes], name: str = "snapshot") -> Path:
        directory = tmp_path / name
        for path, content in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(content)
        directory.mkdir(exist_ok=True)
        (directory / SNAPSHOT_FILE).write_text(canonical_json(manifest_of(files)))
        return directory

    return make


def manifest_of(files: Mapping[str, bytes]) -> SnapshotManifest:
    """The manifest of files."""
    listed = [
        ArtifactFile(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for path, content in files.items()
    ]
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    return SnapshotManifest(engine="torch", signature=Signature(inputs=(spec,), outputs=(spec,)), files=tuple(listed))


@pytest.fixture
def manifest() -> Callable[[Mapping[str, bytes]], SnapshotManifest]:
    """Makes manifests."""
    return manifest_of
