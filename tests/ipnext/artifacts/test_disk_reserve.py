"""Free space that snapshots leave to small files of state, on a real file system and on a small disk that is full."""

import hashlib
import shutil
import subprocess
import sys

import pytest

from ipnext.artifacts import disk_reserve
from ipnext.artifacts.disk_reserve import free_bytes
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import InsufficientStorage, Unavailable
from tests.waiting import PATIENCE_SECONDS

MEBIBYTE = 2**20


class Disk:
    """A disk with so much space, of which whatever is read for writing takes some."""

    def __init__(self, free):
        self.free = free

    def __call__(self, _):
        return self.free

    def filling(self, count):
        for _ in range(count):
            self.free -= MEBIBYTE
            yield bytes(MEBIBYTE)


@pytest.fixture
def disk(monkeypatch):
    found = Disk(100 * MEBIBYTE)
    monkeypatch.setattr(disk_reserve, "free_bytes", found)
    return found


def sha(content):
    return hashlib.sha256(content).hexdigest()


def files_of(directory):
    return [path for path in directory.rglob("*") if path.is_file()]


def test_the_reserve_of_a_real_disk_is_what_its_file_system_says(tmp_path):
    far = free_bytes(tmp_path) + 2**40
    with pytest.raises(InsufficientStorage, match=rf"reserve of {far} bytes \(IPNEXT_DISK_RESERVE_BYTES\)"):
        FileArtifactStore(tmp_path / "absent", reserve_bytes=far).put_blob(sha(b"x"), iter([b"x"]))
    assert files_of(tmp_path) == []
    FileArtifactStore(tmp_path / "absent", reserve_bytes=0).put_blob(sha(b"x"), iter([b"x"]))


def test_a_size_is_refused_that_would_leave_less_than_the_reserve(disk, tmp_path):
    store = FileArtifactStore(tmp_path, reserve_bytes=60 * MEBIBYTE)
    store.check_room(40 * MEBIBYTE)
    with pytest.raises(InsufficientStorage) as refused:
        store.check_room(40 * MEBIBYTE + 1)
    for figure in (disk.free, 40 * MEBIBYTE + 1, 60 * MEBIBYTE):
        assert f"{figure} bytes" in str(refused.value)
    assert isinstance(refused.value, Unavailable), "whoever tries again while a disk is full does so here"


def test_a_blob_of_unknown_size_ends_at_the_reserve_and_leaves_nothing(disk, tmp_path):
    store = FileArtifactStore(tmp_path, reserve_bytes=60 * MEBIBYTE)
    with pytest.raises(InsufficientStorage):
        store.put_blob("ab" * 32, disk.filling(200))
    assert disk.free > 50 * MEBIBYTE, "what is written between two looks"
    assert files_of(tmp_path) == []


def test_manifests_leave_the_reserve_too(disk, tmp_path, rooms):
    rooms.write_snapshot(tmp_path / "snapshot", b"weights")
    store = FileArtifactStore(tmp_path / "store", reserve_bytes=60 * MEBIBYTE)
    manifest = ingest_directory(store, tmp_path / "snapshot").manifest
    shutil.rmtree(tmp_path / "store" / "snapshots")
    disk.free = 60 * MEBIBYTE
    with pytest.raises(InsufficientStorage):
        store.commit(manifest)


def test_a_snapshot_that_does_not_fit_is_not_fetched_at_all(disk, tmp_path, rooms):
    rooms.write_snapshot(tmp_path / "snapshot", b"weights", b"more")
    store = FileArtifactStore(tmp_path / "store", reserve_bytes=60 * MEBIBYTE)
    source = ingest_directory(store, tmp_path / "snapshot")
    disk.free = 60 * MEBIBYTE + 10
    with pytest.raises(InsufficientStorage, match="11 bytes and the reserve"):
        store.fetch(source.uri, tmp_path / "cache")
    assert files_of(tmp_path / "cache") == []
    disk.free += 1
    fetched = store.fetch(source.uri, tmp_path / "cache")
    disk.free = 0
    assert store.fetch(source.uri, tmp_path / "cache") == fetched, "what is there needs no room"


FILLS_A_DISK = """
import hashlib, sys
from datetime import UTC, datetime
from ipnext.access.keys import draw_key
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.errors import Unavailable
from ipnext.model.access.rights import ApiKey, Grant, Role
from ipnext.store.store import Store

directory, reserve = sys.argv[1], int(sys.argv[2])
store = Store.open(f"sqlite:///{directory}/ipnext.db")
store.migrate()
keys = [draw_key() for _ in range(200)]
with store.begin() as unit:
    for key in keys:
        grants = (Grant(role=Role.PUBLISHER),)
        unit.add_key(
            ApiKey(id=key.id, name=key.id, kind="key", digest=key.digest, proof_key=key.proof_key, grants=grants,
                   created_at=datetime.now(UTC), created_by="t")
        )
artifacts, size, blobs = FileArtifactStore(f"{directory}/artifacts", reserve_bytes=reserve), 2**24, 0
while size:
    content = blobs.to_bytes(8) * (size // 8)
    try:
        artifacts.put_blob(hashlib.sha256(content).hexdigest(), iter([content]))
        blobs += 1
    except Unavailable:
        size = size // 2 if size > 4096 else 0
try:
    for key in keys:
        with store.begin() as unit:
            unit.revoke_key(key.id)
    print("revoked", blobs)
except Unavailable as error:
    print("not revoked", error.message)
"""


def fill(directory, reserve):
    """What becomes of a revocation on a file system of 64 MiB that uploads have filled."""
    mounted = 'mount -t tmpfs -o size=64m tmpfs "$1" && exec "$2" -c "$3" "$1" "$4"'
    given = [str(directory), sys.executable, FILLS_A_DISK, str(reserve)]
    command = ["unshare", "--mount", "sh", "-c", mounted, "sh", *given]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


@pytest.mark.usefixtures("subprocesses")
def test_keys_are_revoked_on_a_disk_that_uploads_have_filled(tmp_path):
    if shutil.which("unshare") is None or fill(tmp_path, 2**50).returncode:
        pytest.skip("this process may not mount a small disk")
    assert fill(tmp_path, 0).stdout.startswith("not revoked"), "the disk is small enough to see it"
    done = fill(tmp_path, 8 * MEBIBYTE)
    assert done.stdout.startswith("revoked"), done
    assert int(done.stdout.split()[1]) > 3
