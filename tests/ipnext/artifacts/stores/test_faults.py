"""Kills, full disks, cut connections, refused credentials: nothing half-written is ever visible."""

import asyncio
import hashlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.stores.s3_client import answering, s3_client
from ipnext.artifacts.stores.s3_store import S3ArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, Unavailable
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.usefixtures("subprocesses"), pytest.mark.trust]

CONTENT = hashlib.sha256(b"content").digest() * 100_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()

PUTS_FOREVER = """
import sys
from ipnext.artifacts.stores.locations import open_store

def chunks():
    while True:
        yield bytes(100_000)

open_store(sys.argv[1]).put_blob("ab" * 32, chunks())
"""

FETCHES_FOREVER = """
import sys
from pathlib import Path
from ipnext.artifacts import download as fetching
from ipnext.artifacts.stores.locations import open_store

def endless(stream):
    first = stream.read(100_000)
    while True:
        yield first

fetching.chunks_of = endless
open_store(sys.argv[1]).fetch(sys.argv[2], Path(sys.argv[3]))
"""


def kill_once_it_writes(program: str, arguments: list[str], directory: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.DEVNULL)

    def writes() -> bool:
        assert process.poll() is None
        return any(path.stat().st_size for path in directory.rglob("*") if path.is_file())

    try:
        until(writes)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_SECONDS)


def test_a_writer_killed_in_the_middle_leaves_only_scratch_that_can_be_removed(tmp_path):
    store = FileArtifactStore(tmp_path / "store")
    kill_once_it_writes(PUTS_FOREVER, [store.uri], tmp_path / "store")
    assert store.missing(["ab" * 32]) == {"ab" * 32}
    assert store.remove_leftovers() == 0, "a scratch file this young may have a living writer"
    assert store.remove_leftovers(older_than_seconds=-1) == 1
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))


def test_a_fetch_killed_in_the_middle_is_not_taken_for_a_copy(tmp_path, snapshot_directory):
    store = FileArtifactStore(tmp_path / "store")
    source = ingest_directory(store, snapshot_directory({"weights": CONTENT}))
    kill_once_it_writes(FETCHES_FOREVER, [store.uri, source.uri, str(tmp_path / "cache")], tmp_path / "cache")
    assert not (tmp_path / "cache" / source.manifest.digest).exists()
    fetched = store.fetch(source.uri, tmp_path / "cache")
    assert (fetched / "weights").read_bytes() == CONTENT


def test_a_full_disk_is_unavailable_and_leaves_nothing(tmp_path):
    code = (
        "import resource, signal, sys\n"
        "from ipnext.artifacts.stores.locations import open_store\n"
        "from ipnext.errors import Unavailable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    open_store(sys.argv[1]).put_blob('ab' * 32, iter([bytes(5000)]))\n"
        "except Unavailable as error:\n    print(error.message)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path.as_uri()],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert "too large" in done.stdout
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


class Proxy:
    """Passes TCP on to a port; cuts each of the first `cuts` connections after `after` bytes of answers."""

    def __init__(self, port: int, *, cuts: int, after: int) -> None:
        self._port, self.cuts_left, self.after = port, cuts, after
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            pump = asyncio.create_task(self._pump(reader, up_writer, None))
            await self._pump(up_reader, writer, self.after)
            pump.cancel()
        finally:
            up_writer.transport.abort()
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, after: int | None) -> None:
        passed = 0
        while data := await reader.read(65_536):
            passed += len(data)
            if after is not None and passed > after and self.cuts_left:
                self.cuts_left -= 1
                return
            writer.write(data)
            await writer.drain()


@contextmanager
def behind_proxy(s3_server, prefix: str, *, cuts: int) -> Iterator[tuple[S3ArtifactStore, Proxy]]:
    with Proxy(int(s3_server.url.rsplit(":", 1)[1]), cuts=cuts, after=200_000) as proxy:
        store = S3ArtifactStore(s3_server.bucket, prefix, f"http://127.0.0.1:{proxy.port}")
        try:
            yield store, proxy
        finally:
            store.close()


@pytest.mark.s3
def test_a_cut_connection_is_read_on_from_where_it_broke(s3_server, tmp_path, snapshot_directory):
    store = S3ArtifactStore(s3_server.bucket, "cut", client=s3_server.ours)
    source = ingest_directory(store, snapshot_directory({"weights": CONTENT}))
    with behind_proxy(s3_server, "cut", cuts=3) as (slow, proxy):
        fetched = slow.fetch(source.uri, tmp_path / "cache")
    assert proxy.cuts_left == 0
    assert (fetched / "weights").read_bytes() == CONTENT


@pytest.mark.s3
def test_a_connection_that_is_always_cut_is_unavailable(s3_server, tmp_path, snapshot_directory):
    store = S3ArtifactStore(s3_server.bucket, "always cut", client=s3_server.ours)
    source = ingest_directory(store, snapshot_directory({"weights": CONTENT}))
    with behind_proxy(s3_server, "always cut", cuts=0) as (slow, proxy):
        slow.manifest(source.uri)
        proxy.after, proxy.cuts_left = 0, 10_000
        with pytest.raises(Unavailable, match=r"broke off|does not answer"):
            slow.fetch(source.uri, tmp_path / "cache")
    assert not (tmp_path / "cache" / source.manifest.digest).exists()


@pytest.mark.s3
def test_a_wrong_secret_is_unavailable_and_says_so(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = S3ArtifactStore(s3_server.bucket, "x", s3_server.url)
    with pytest.raises(Unavailable, match="credentials"):
        store.put_blob(DIGEST, iter([CONTENT]))
    store.close()


@pytest.mark.s3
def test_a_bucket_that_does_not_exist_is_named(s3_server):
    store = S3ArtifactStore("no-such-bucket-here", "x", client=s3_server.ours)
    with pytest.raises((Unavailable, ArtifactMissing), match="no-such-bucket-here"):
        store.open_blob(DIGEST)


def test_a_server_that_is_down_is_unavailable(monkeypatch, unused_tcp_port):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{unused_tcp_port}",
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )
    store = S3ArtifactStore("bucket", client=client)
    for call in (lambda: store.missing([DIGEST]), lambda: store.put_blob(DIGEST, iter([CONTENT]))):
        with pytest.raises(Unavailable, match="try again"):
            call()
    store.close()


@pytest.mark.s3
def test_the_server_itself_refuses_bytes_damaged_on_the_way(s3_server):
    client = s3_server.ours
    with pytest.raises(ArtifactDigestMismatch, match="damaged on its way"), answering("x"):
        client.put_object(Bucket=s3_server.bucket, Key="damaged", Body=b"damaged", ChecksumSHA256="A" * 43 + "=")


@pytest.mark.s3
def test_of_many_writers_of_one_manifest_the_server_lets_one_win(s3_server):
    client = s3_client(s3_server.url)
    outcomes = []

    def write(number: int) -> None:
        try:
            client.put_object(Bucket=s3_server.bucket, Key="race", Body=str(number).encode(), IfNoneMatch="*")
        except ClientError as error:
            outcomes.append(error.response["ResponseMetadata"]["HTTPStatusCode"])
        else:
            outcomes.append(200)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.close()
    assert sorted(set(outcomes)) in ([200, 412], [200, 409, 412], [200, 409])
    assert outcomes.count(200) == 1
