"""The source `oci` on a real registry, which is killed, and on a server that answers a byte at a time."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest
from ipnext.components.bounded_http import DeadlineTransport
from ipnext.errors import Unavailable
from ipnext.model.manifest.sources import OciStream
from ipnext.model.value import canonical_json
from ipnext.sources.access import ReadAccess
from ipnext.sources.oci import blob as oci_blob
from ipnext.sources.oci import kind as oci
from ipnext.sources.oci.kind import OciKind
from ipnext.sources.oci.registry import Connections
from ipnext.sources.port import StreamRequest
from tests.ipnext.conftest import snapshot_manifest, write_snapshot
from tests.ipnext.sources.oci.registry_server import BASIC, RegistryServer, running_registry

NAME = "team/ranker"


@pytest.fixture(scope="module")
def registry(tmp_path_factory, subprocesses) -> Iterator[RegistryServer]:
    """A real registry, which runs as each test begins."""
    with running_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


class Counted(DeadlineTransport):
    """A transport that notes the requests."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(f"{request.method} {request.url.path}")
        return super().handle_request(request)


@pytest.fixture
def transport() -> Iterator[Counted]:
    with closing(Counted()) as found:
        yield found


def watch(host, transport, tag="prod", **access):
    settings = OciStream(repository=f"{host}/{NAME}", tag=tag)
    given = ReadAccess(**{"urls": (f"http://{host}",)} | access)
    (source,) = OciKind(Connections(transport)).connect([StreamRequest(settings, given)])
    return source


def content_of(*contents):
    """The files of a snapshot."""
    manifest = snapshot_manifest(*contents)
    files = {file.path: content for file, content in zip(manifest.files, contents, strict=True)}
    return manifest, {"snapshot.json": canonical_json(manifest).encode()} | files


@pytest.mark.parametrize("pusher", ["requests", "oras"])
def test_a_pushed_snapshot_is_ingested_as_it_is(registry, transport, tmp_path, pusher):
    contents = [b"a" * 100_000, os.urandom(3_000_000)]
    directory = tmp_path / "snapshot"
    manifest = write_snapshot(directory, *contents)
    if pusher == "oras":
        registry.push_by_oras(NAME, pusher, directory)
    else:
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        registry.push(NAME, pusher, files, {"org.opencontainers.image.revision": "abc"})
    source = watch(registry.host, transport, pusher)
    (version,) = source.list_since("").versions
    assert version.trained_at is not None
    assert version.lineage.get("commit") == (None if pusher == "oras" else "abc")
    store = FileArtifactStore(tmp_path / "store")
    assert ingest(store, source.open(version)).manifest == manifest
    for file, content in zip(manifest.files, contents, strict=True):
        with store.open_blob(file.sha256) as stream:
            assert stream.read() == content


def test_a_tag_that_moves_forth_and_back_is_three_versions(registry, transport):
    (_, old), (_, new) = content_of(b"old"), content_of(b"new")
    cursor, found = "", []
    for files in (old, new, old):
        registry.push(NAME, "moving", files)
        listing = watch(registry.host, transport, "moving").list_since(cursor)
        cursor = listing.cursor
        found += listing.versions
        transport.seen.clear()
        for _ in range(5):
            assert watch(registry.host, transport, "moving").list_since(cursor).versions == ()
        assert transport.seen == [f"HEAD /v2/{NAME}/manifests/moving"] * 5
    assert len({version.key for version in found}) == 3
    assert found[0].place == found[2].place != found[1].place


def test_a_registry_killed_between_polls_loses_and_doubles_nothing(registry, transport):
    registry.push(NAME, "killed", content_of(b"1")[1])
    source = watch(registry.host, transport, "killed")
    first = source.list_since("")
    registry.kill()
    with pytest.raises(Unavailable, match=r"can't be reached|breaks off"):
        watch(registry.host, transport, "killed").list_since(first.cursor)
    with pytest.raises(Unavailable):
        source.open(first.versions[0])
    registry.start()
    assert watch(registry.host, transport, "killed").list_since(first.cursor).versions == ()
    registry.push(NAME, "killed", content_of(b"2")[1])
    (version,) = watch(registry.host, transport, "killed").list_since(first.cursor).versions
    assert version.key.startswith("2:")


def test_a_blob_goes_on_after_its_registry_was_killed_and_started(registry, transport, tmp_path):
    content = os.urandom(48 * 2**20)
    manifest, files = content_of(content)
    registry.push(NAME, "large", files)
    source = watch(registry.host, transport, "large")
    opened = source.open(source.list_since("").versions[0])

    class Killing:
        """The same, but the registry ends once the first bytes of the large file were read."""

        uri = opened.uri
        size_bytes = staticmethod(opened.size_bytes)

        @staticmethod
        def open(path):
            stream = opened.open(path)
            if path != "snapshot.json" and path in files:
                stream.peek()
                registry.kill()
                registry.start()
            return stream

    transport.seen.clear()
    store = FileArtifactStore(tmp_path)
    assert ingest(store, Killing()).manifest == manifest
    with store.open_blob(manifest.files[0].sha256) as stream:
        assert stream.read() == content
    blob = f"GET /v2/{NAME}/blobs/sha256:{manifest.files[0].sha256}"
    assert transport.seen.count(blob) >= 2, "the connection was cut"


def test_a_blob_whose_registry_stays_away_is_unavailable(registry, transport, monkeypatch):
    monkeypatch.setattr(oci_blob, "PAUSES_SECONDS", (0.0, 0.0))
    _, files = content_of(os.urandom(48 * 2**20))
    registry.push(NAME, "away", files)
    source = watch(registry.host, transport, "away")
    with source.open(source.list_since("").versions[0]).open("file-0.txt") as stream:
        stream.peek()
        registry.kill()
        with pytest.raises(Unavailable, match=r"at byte \d+ of 50331648"):
            stream.read()
    registry.start()


def test_a_registry_with_a_password_is_read_with_the_credentials_for_it(subprocesses, transport, tmp_path):
    with running_registry(tmp_path / "registry", auth=True) as registry:
        registry.push(NAME, "prod", content_of(b"1")[1])
        with pytest.raises(Unavailable, match=r"asks for credentials, and there are none .401."):
            watch(registry.host, transport).list_since("")
        source = watch(registry.host, transport, credentials={registry.base: BASIC})
        with source.open(source.list_since("").versions[0]).open("file-0.txt") as stream:
            assert stream.read() == b"1"
        with pytest.raises(Unavailable, match=r"refuses the credentials .401."):
            watch(registry.host, transport, credentials={registry.base: f"{BASIC[:-2]}A="}).list_since("")


@pytest.fixture
def dripping(listeners) -> Iterator[str]:
    """The address of a server that begins each answer and sends a byte of its headers at a time, without an end."""
    over = threading.Event()

    def drip(connection):
        with connection:
            try:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not over.wait(0.02):
                    connection.sendall(b"x")
            except OSError:
                return

    def accept():
        while not over.is_set():
            try:
                threads.append(threading.Thread(target=drip, args=(server.accept()[0],)))
            except OSError:
                return
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def test_a_registry_that_answers_a_byte_at_a_time_is_given_up(dripping, transport, monkeypatch):
    monkeypatch.setattr(oci, "POLL_SECONDS", 0.5)
    with pytest.raises(Unavailable, match="does not answer in time"):
        watch(dripping, transport).list_since("")
