"""The contract of an artifact store, on a directory and on a real S3 server."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ipnext.artifacts import seen_files
from ipnext.artifacts.layout import signature_key
from ipnext.artifacts.sources import DirectorySource
from ipnext.artifacts.stores.locations import open_store
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput, TooLarge
from ipnext.model.registry.registry import SEEN_FILE, SIGNATURE_FILE, SNAPSHOT_FILE
from ipnext.names import LIBRARY_FILE
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.trust

FILES = {"weights.safetensors": bytes(range(256)) * 64, "program/graph.json": b'{"nodes": []}', "empty": b""}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(store, content: bytes) -> str:
    store.put_blob(sha(content), iter([content]))
    return sha(content)


def contents(directory: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    found.pop(SNAPSHOT_FILE)
    found.pop(SEEN_FILE, None)
    return found


def test_a_blob_of_a_directory_is_not_for_other_users_and_not_to_be_run(tmp_path):
    store = open_store(f"file://{tmp_path}/artifacts")
    digest = put(store, b"\x7fELF")
    (blob,) = [path for path in tmp_path.rglob(f"*{digest[4:]}*") if path.is_file()]
    assert blob.stat().st_mode & 0o137 == 0


def test_a_blob_comes_back_as_it_was_put(store):
    content = b"some weights"
    assert store.missing([sha(content)]) == {sha(content)}
    put(store, content)
    assert store.missing([sha(content), "0" * 64]) == {"0" * 64}
    with store.open_blob(sha(content)) as stream:
        assert stream.read() == content


@pytest.mark.parametrize("size", [0, 1, 5 << 20, (5 << 20) + 1, 11 << 20], ids=lambda size: f"{size}-bytes")
def test_blobs_of_any_size_stream_in_and_out(store, size):
    piece = hashlib.sha256(str(size).encode()).digest() * 1000
    content = (piece * (size // len(piece) + 1))[:size]
    pieces = (content[at : at + 300_000] for at in range(0, size, 300_000))
    store.put_blob(sha(content), pieces)
    with store.open_blob(sha(content)) as stream:
        assert stream.read() == content


@pytest.mark.parametrize("size", [10, 11 << 20], ids=["small", "in-parts"])
def test_content_of_another_digest_is_refused_and_leaves_nothing(held, size):
    wrong = "ab" * 32
    with pytest.raises(ArtifactDigestMismatch, match=wrong) as caught:
        held.store.put_blob(wrong, iter([b"x" * size]))
    assert sha(b"x" * size) in caught.value.message
    assert held.stored_keys() == set()


@pytest.mark.parametrize("size", [10, 11 << 20], ids=["small", "in-parts"])
def test_an_upload_that_breaks_off_leaves_nothing(held, size):
    def breaks() -> Iterator[bytes]:
        yield b"x" * size
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        held.store.put_blob("ab" * 32, breaks())
    assert held.stored_keys() == set()


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "\n"])
def test_what_is_no_digest_never_becomes_a_path(store, digest):
    with pytest.raises(InvalidInput, match="64 lower case"):
        store.put_blob(digest, iter([b""]))
    with pytest.raises(InvalidInput, match="64 lower case"):
        store.open_blob(digest)
    with pytest.raises(InvalidInput, match="64 lower case"):
        store.missing([digest])


def test_an_absent_blob_is_named(store):
    with pytest.raises(ArtifactMissing, match="ab" * 32):
        store.open_blob("ab" * 32)


def test_a_damaged_blob_is_mended_by_putting_it_again(held):
    digest = put(held.store, b"content")
    held.write(f"blobs/{digest}", b"damaged")
    put(held.store, b"content")
    assert held.read(f"blobs/{digest}") == b"content"


def test_a_snapshot_comes_back_as_a_directory_of_plain_files(store, snapshot_directory, tmp_path):
    source = ingest_directory(store, snapshot_directory(FILES))
    assert source.uri == f"{store.uri}/snapshots/{source.manifest.digest}"
    assert store.manifest(source.uri) == source.manifest
    fetched = store.fetch(source.uri, tmp_path / "cache")
    assert fetched == tmp_path / "cache" / source.manifest.digest
    assert contents(fetched) == FILES
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [source.manifest.digest]


def test_a_store_opened_by_its_uri_is_the_same_store(held, snapshot_directory):
    source = ingest_directory(held.store, snapshot_directory(FILES))
    again = open_store(held.store.uri, endpoint_url=held.endpoint_url)
    assert again.uri == held.store.uri
    assert again.manifest(source.uri) == source.manifest


def test_equal_files_are_stored_once_and_equal_snapshots_are_one(held, snapshot_directory):
    first = ingest_directory(held.store, snapshot_directory({"a": b"same", "b": b"same"}))
    again = ingest_directory(held.store, snapshot_directory({"a": b"same", "b": b"same"}, name="copy"))
    assert first == again
    assert held.stored_keys() == {f"blobs/{sha(b'same')}", f"snapshots/{first.manifest.digest}/{SNAPSHOT_FILE}"}


def test_a_manifest_is_not_written_before_its_blobs(held, manifest):
    described = manifest(FILES)
    put(held.store, FILES["empty"])
    with pytest.raises(ArtifactMissing, match=r"weights\.safetensors"):
        held.store.commit(described)
    uri = f"{held.store.uri}/snapshots/{described.digest}"
    with pytest.raises(ArtifactMissing, match="never committed"):
        held.store.manifest(uri)
    assert not any(key.startswith("snapshots/") for key in held.stored_keys())


def test_a_writer_that_died_between_blobs_and_manifest_is_simply_followed(held, manifest, snapshot_directory):
    for content in FILES.values():
        put(held.store, content)
    source = ingest_directory(held.store, snapshot_directory(FILES))
    assert held.store.manifest(source.uri) == manifest(FILES)


def test_a_truncated_blob_stops_the_commit(held, manifest):
    for content in FILES.values():
        put(held.store, content)
    weights = sha(FILES["weights.safetensors"])
    held.write(f"blobs/{weights}", FILES["weights.safetensors"][:100])
    with pytest.raises(ArtifactDigestMismatch, match=r"weights\.safetensors.*100 bytes.*16384"):
        held.store.commit(manifest(FILES))


def test_a_manifest_that_no_reader_would_take_is_not_committed(held, manifest):
    one = manifest({"weights.safetensors": FILES["weights.safetensors"]}).files[0]
    many = tuple(
        one.model_copy(update={"path": f"{'a' * 200}/{'b' * 200}/{number:0>200}.json"}) for number in range(8000)
    )
    with pytest.raises(TooLarge, match=r"snapshot\.json has \d+ bytes"):
        held.store.commit(manifest({}).model_copy(update={"files": many}))


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-1], lambda content: content + b"!"])
def test_a_damaged_blob_is_never_laid_out(held, snapshot_directory, tmp_path, damage):
    source = ingest_directory(held.store, snapshot_directory(FILES))
    weights = sha(FILES["weights.safetensors"])
    held.write(f"blobs/{weights}", damage(FILES["weights.safetensors"]))
    with pytest.raises(ArtifactDigestMismatch, match=rf"weights\.safetensors.*{weights}"):
        held.store.fetch(source.uri, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_blob_is_named_by_its_file(held, snapshot_directory, tmp_path):
    source = ingest_directory(held.store, snapshot_directory(FILES))
    held.delete(f"blobs/{sha(FILES['program/graph.json'])}")
    with pytest.raises(ArtifactMissing, match=r"program/graph\.json"):
        held.store.fetch(source.uri, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-1]])
def test_a_damaged_manifest_is_refused(held, snapshot_directory, tmp_path, damage):
    source = ingest_directory(held.store, snapshot_directory(FILES))
    key = f"snapshots/{source.manifest.digest}/{SNAPSHOT_FILE}"
    held.write(key, damage(held.read(key)))
    with pytest.raises(ArtifactDigestMismatch, match=source.manifest.digest):
        held.store.manifest(source.uri)
    with pytest.raises(ArtifactDigestMismatch):
        held.store.fetch(source.uri, tmp_path / "cache")


def test_a_complete_copy_is_kept_and_a_truncated_one_is_laid_out_again(held, snapshot_directory, tmp_path):
    source = ingest_directory(held.store, snapshot_directory(FILES))
    fetched = held.store.fetch(source.uri, tmp_path / "cache")
    inode = (fetched / "weights.safetensors").stat().st_ino
    assert (held.store.fetch(source.uri, tmp_path / "cache") / "weights.safetensors").stat().st_ino == inode
    (fetched / "weights.safetensors").write_bytes(b"short")
    assert contents(held.store.fetch(source.uri, tmp_path / "cache")) == FILES


def test_weights_in_a_copy_that_were_changed_are_laid_out_again(held, snapshot_directory, tmp_path):
    """As many bytes, in the same file, with the time of the former ones."""
    source = ingest_directory(held.store, snapshot_directory(FILES))
    weights = held.store.fetch(source.uri, tmp_path / "cache") / "weights.safetensors"
    before = weights.stat()
    weights.write_bytes(flipped(FILES["weights.safetensors"]))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_ino == before.st_ino
    assert contents(held.store.fetch(source.uri, tmp_path / "cache")) == FILES


def test_a_copy_is_hashed_once(held, snapshot_directory, tmp_path, monkeypatch):
    source = ingest_directory(held.store, snapshot_directory(FILES))
    fetched = held.store.fetch(source.uri, tmp_path / "cache")
    hashed = []
    sha256 = seen_files._sha256
    monkeypatch.setattr(seen_files, "_sha256", lambda path: hashed.append(path.name) or sha256(path))
    held.store.fetch(source.uri, tmp_path / "cache")
    assert hashed == []
    (fetched / SEEN_FILE).unlink()
    (fetched / "weights.safetensors").touch()
    for _ in range(2):
        held.store.fetch(source.uri, tmp_path / "cache")
    assert sorted(hashed) == sorted(Path(name).name for name in FILES), "after the note was lost, and not again"


MANY = {"a.txt": b"same", "b/c.txt": b"same", "d.txt": b"other", "e.txt": b"same"}


@pytest.mark.parametrize("links", [True, False])
def test_a_blob_of_many_names_is_fetched_once(store, snapshot_directory, tmp_path, monkeypatch, links):
    source = ingest_directory(store, snapshot_directory(MANY))
    opened, open_blob = [], store.open_blob
    monkeypatch.setattr(store, "open_blob", lambda sha256: opened.append(sha256) or open_blob(sha256))
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse_link)
    fetched = store.fetch(source.uri, tmp_path / "cache")
    assert contents(fetched) == MANY
    assert sorted(opened) == sorted({sha(b"same"), sha(b"other")})
    inodes = {(fetched / name).stat().st_ino for name in MANY}
    assert len(inodes) == (2 if links else 4)


def refuse_link(*_):
    raise PermissionError


def test_a_blob_of_many_names_is_hashed_once_in_a_copy(held, snapshot_directory, tmp_path, monkeypatch):
    source = ingest_directory(held.store, snapshot_directory(MANY))
    fetched = held.store.fetch(source.uri, tmp_path / "cache")
    (fetched / SEEN_FILE).unlink()
    hashed, sha256 = [], seen_files._sha256
    monkeypatch.setattr(seen_files, "_sha256", lambda path: hashed.append(path.name) or sha256(path))
    held.store.fetch(source.uri, tmp_path / "cache")
    assert len(hashed) == 2


def test_a_blob_of_many_names_is_read_once_from_its_directory(held, snapshot_directory, monkeypatch):
    directory = snapshot_directory(MANY)
    opened, open_file = [], DirectorySource.open
    monkeypatch.setattr(DirectorySource, "open", lambda self, path: opened.append(path) or open_file(self, path))
    monkeypatch.setattr(DirectorySource, "size_bytes", lambda _, path: (directory / path).stat().st_size)
    for _ in range(2):
        opened.clear()
        ingest_directory(held.store, directory)
        assert sorted(set(opened) & MANY.keys()) == ["a.txt", "d.txt"]


@pytest.mark.parametrize("note", [b"", b"[]", b"no JSON", b'{"weights.safetensors": 7}'])
def test_a_note_that_says_nothing_is_as_none(held, snapshot_directory, tmp_path, note):
    source = ingest_directory(held.store, snapshot_directory(FILES))
    fetched = held.store.fetch(source.uri, tmp_path / "cache")
    (fetched / SEEN_FILE).write_bytes(note)
    assert contents(held.store.fetch(source.uri, tmp_path / "cache")) == FILES


def test_a_file_of_our_own_in_a_published_directory_is_no_file_of_the_snapshot(store, snapshot_directory, tmp_path):
    """Such as one that a host fetched and somebody publishes again, with the note of another machine."""
    fetched = store.fetch(ingest_directory(store, snapshot_directory(FILES)).uri, tmp_path / "cache")
    assert (fetched / SEEN_FILE).is_file()
    (fetched / SEEN_FILE).write_text('{"weights.safetensors": [0, 0, 0, 0]}')
    again = store.fetch(ingest_directory(store, fetched).uri, tmp_path / "another cache")
    assert contents(again) == FILES
    assert "[0, 0, 0, 0]" not in (again / SEEN_FILE).read_text()


def test_native_code_in_a_copy_is_laid_out_again_where_a_bit_of_it_differs(held, snapshot_directory, tmp_path):
    files = {**FILES, LIBRARY_FILE: b"\x7fELF and more"}
    source = ingest_directory(held.store, snapshot_directory(files))
    fetched = held.store.fetch(source.uri, tmp_path / "cache")
    (fetched / LIBRARY_FILE).write_bytes(b"\x7fELF and mire")
    assert contents(held.store.fetch(source.uri, tmp_path / "cache")) == files


def test_many_fetches_at_once_give_one_whole_copy(store, snapshot_directory, tmp_path):
    source = ingest_directory(store, snapshot_directory(FILES))
    with ThreadPoolExecutor(8) as pool:
        fetched = set(pool.map(lambda _: store.fetch(source.uri, tmp_path / "cache"), range(16)))
    assert len(fetched) == 1
    assert contents(fetched.pop()) == FILES
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_many_publishers_of_one_snapshot_at_once_all_succeed(held, snapshot_directory):
    directory = snapshot_directory(FILES)
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(lambda _: ingest_directory(held.store, directory), range(8)))
    assert len({source.uri for source in sources}) == 1
    assert len(held.stored_keys()) == len(FILES) + 1


def test_a_uri_of_another_store_is_refused(held, snapshot_directory, tmp_path):
    elsewhere = ingest_directory(held.another(), snapshot_directory(FILES))
    for call in (held.store.manifest, lambda uri: held.store.fetch(uri, tmp_path / "cache")):
        with pytest.raises(InvalidInput, match="no snapshot of this artifact store") as caught:
            call(elsewhere.uri)
        assert held.store.uri in caught.value.message
    with pytest.raises(InvalidInput):
        held.store.manifest(f"{held.store.uri}/snapshots/../../{'ab' * 32}")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../up",
        "a/../../up",
        "a//b",
        "./a",
        "a/",
        "C:/x",
        "c:x",
        "a\\b",
        "nul\0",
        "new\nline",
        "x" * 256,
        SNAPSHOT_FILE,
        SIGNATURE_FILE,
        SEEN_FILE,
        f"{SEEN_FILE}/a",
        f"{SNAPSHOT_FILE}/a",
    ],
)
def test_an_unsafe_path_is_refused_by_name(store, manifest, path):
    put(store, b"x")
    with pytest.raises(InvalidInput) as caught:
        store.commit(manifest({path: b"x"}))
    assert caught.value.value == path
    assert repr(path) in caught.value.message


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a/b/c/d")])
def test_a_file_below_another_file_is_refused(store, manifest, paths):
    put(store, b"x")
    with pytest.raises(InvalidInput, match="below another file"):
        store.commit(manifest(dict.fromkeys(paths, b"x")))


def test_what_a_store_holds_is_listed_and_removed(store, manifest):
    named = manifest({"w": b"weights"})
    blob = put(store, b"weights")
    other = put(store, b"other")
    uri = store.commit(named)
    items = {item.digest: item for item in store.items()}
    assert {digest: item.is_manifest for digest, item in items.items()} == {
        blob: False,
        other: False,
        named.digest: True,
    }
    assert items[blob].size_bytes == len(b"weights")
    assert abs((items[blob].changed_at - datetime.now(UTC)).total_seconds()) < PATIENCE_SECONDS
    for _ in range(2):  # what is gone is no error
        store.remove(items[named.digest])
        store.remove(items[blob])
    with pytest.raises(ArtifactMissing):
        store.manifest(uri)
    assert [item.digest for item in store.items()] == [other]


def test_signatures_go_with_their_manifest(store, held, manifest):
    named = manifest({"w": b"weights"})
    put(store, b"weights")
    store.commit(named)
    for content in (b"{}", b"{ }"):
        held.put(signature_key(named.digest, sha(content)), content)
    (item,) = [item for item in store.items() if item.is_manifest]
    store.remove(item)
    assert {key for key in held.stored_keys() if key.startswith("snapshots")} == set()
