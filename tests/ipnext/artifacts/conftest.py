"""Both artifact stores: a directory, and a bucket of a real S3 server (SeaweedFS)."""

import ctypes
import hashlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from ipnext.artifacts.file_store import FileArtifactStore
from ipnext.artifacts.s3_client import s3_client
from ipnext.artifacts.s3_store import S3ArtifactStore
from ipnext.model.registry import SNAPSHOT_FILE, ArtifactFile, Signature, SnapshotManifest, TensorSpec
from ipnext.model.value import canonical_json
from tests.waiting import PATIENCE_SECONDS, until

KEY, SECRET, BUCKET = "test-key", "test-secret", "snapshots-bucket"
PR_SET_PDEATHSIG = 1


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _command(directory: Path) -> tuple[list[str], str]:
    roles = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    roles += ["s3.port", "s3.port.grpc"]
    ports = dict(zip(roles, _free_ports(len(roles)), strict=True))
    identity = {"credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List"]}
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [identity | {"name": "tests"}]}))
    command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={directory}", "-ip=127.0.0.1"]
    command += ["-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-volume.max=100", "-master.telemetry=false", *(f"-{role}={port}" for role, port in ports.items())]
    command += [f"-filer.localSocket={directory}/filer.sock", f"-s3.localSocket={directory}/s3.sock"]
    return command, f"http://127.0.0.1:{ports['s3.port']}"


def _wait_for_put(client, process: subprocess.Popen, log: Path) -> None:
    """Ready when a PUT succeeds; an open port is not enough."""

    def puts() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            client.create_bucket(Bucket=BUCKET)
        except client.exceptions.BucketAlreadyOwnedByYou:
            pass
        except (BotoCoreError, ClientError):
            pass
        try:
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    until(puts, why=lambda: log.read_text()[-2000:], every_seconds=0.05)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A SeaweedFS with one bucket. Ended by SIGKILL: it takes 19 s over SIGTERM."""
    directory = tmp_path_factory.mktemp("seaweed")
    command, url = _command(directory)
    log = directory / "log"
    with pytest.MonkeyPatch.context() as patch, log.open("wb") as output:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", config=Config(retries={"total_max_attempts": 1})
        )
        process = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=_die_with_parent)  # noqa: PLW1509 - one call of prctl
        try:
            _wait_for_put(client, process, log)
            ours = s3_client(url)
            yield SimpleNamespace(url=url, bucket=BUCKET, client=client, ours=ours)
            ours.close()
        finally:
            client.close()
            process.kill()
            process.wait(PATIENCE_SECONDS)


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

    def delete(self, key: str) -> None:
        (self._root / key).unlink()

    def stored_keys(self) -> set[str]:
        return {str(path.relative_to(self._root)) for path in self._root.rglob("*") if path.is_file()}

    def another(self) -> FileArtifactStore:
        return FileArtifactStore(self._root.with_name("another"))


class _S3Store:
    """An S3 store under a prefix of its own, and a hand that damages what it holds."""

    def __init__(self, server: SimpleNamespace, prefix: str) -> None:
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
