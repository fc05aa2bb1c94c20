"""What may be published, and from where."""

import os
import shutil
from pathlib import Path

import pytest

from ipnext.artifacts.sources import DirectorySource
from ipnext.artifacts.stores.locations import open_source, open_store
from ipnext.artifacts.upload import ingest_directory, ingest_uri
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, InvalidInput, PathNotAllowed, Unavailable
from ipnext.model.registry.registry import SNAPSHOT_FILE

pytestmark = pytest.mark.trust

FILES = {"weights": b"w" * 1000, "program/graph": b"{}"}


def test_a_directory_without_a_manifest_is_no_snapshot(store, snapshot_directory):
    directory = snapshot_directory(FILES)
    (directory / SNAPSHOT_FILE).unlink()
    with pytest.raises(InvalidInput, match=r"holds no snapshot\.json"):
        ingest_directory(store, directory)
    with pytest.raises(InvalidInput, match="not a directory"):
        ingest_directory(store, directory / "weights")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "JSON"),
        ("[]", "object"),
        ('{"engine": "torch"}', "signature"),
        ('{"engine": "torch", "extra": 1}', "extra: unknown field"),
        ('{"engine": "torch", "signature": {"inputs": [], "outputs": []}, "files": [{"path": "a"}]}', "files.0.sha256"),
    ],
)
def test_a_bad_manifest_names_the_field(held, snapshot_directory, content, message):
    directory = snapshot_directory(FILES)
    (directory / SNAPSHOT_FILE).write_text(content)
    with pytest.raises(InvalidInput, match=message):
        ingest_directory(held.store, directory)
    assert held.stored_keys() == set()


def flip_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: path.unlink(), ArtifactMissing, "'weights' is not in"),
        (lambda path: path.write_bytes(b"w" * 10), ArtifactDigestMismatch, "10 bytes, snapshot.json says 1000"),
        (flip_a_byte, ArtifactDigestMismatch, "'weights'.*SHA-256"),
    ],
    ids=["missing", "truncated", "flipped"],
)
@pytest.mark.parametrize("held_already", [False, True])
def test_a_damaged_file_is_refused_even_where_the_store_holds_its_blob(
    held, snapshot_directory, damage, error, message, held_already
):
    if held_already:
        ingest_directory(held.store, snapshot_directory(FILES, name="whole"))
    before = {key for key in held.stored_keys() if key.startswith("snapshots")}
    directory = snapshot_directory(FILES)
    damage(directory / "weights")
    with pytest.raises(error, match=message):
        ingest_directory(held.store, directory)
    assert {key for key in held.stored_keys() if key.startswith("snapshots")} == before


def test_links_and_special_files_do_not_lead_out_of_the_directory(store, snapshot_directory, tmp_path):
    (tmp_path / "secret").write_bytes(FILES["weights"])
    directory = snapshot_directory(FILES)
    (directory / "weights").unlink()
    (directory / "weights").symlink_to(tmp_path / "secret")
    with pytest.raises(PathNotAllowed, match="allowed roots"):
        ingest_directory(store, directory)
    (directory / "weights").unlink()
    os.mkfifo(directory / "weights")
    with pytest.raises(InvalidInput, match="not a regular file"):
        ingest_directory(store, directory)


def test_a_link_inside_the_directory_is_followed(store, snapshot_directory):
    directory = snapshot_directory(FILES)
    (directory / "weights").rename(directory / "real")
    (directory / "weights").symlink_to("real")
    assert ingest_directory(store, directory).manifest.files[0].path == "weights"


@pytest.mark.parametrize("swapped", ["inner", "inner/weights"])
def test_a_link_that_replaces_a_step_after_it_was_judged_is_not_followed(tmp_path, monkeypatch, swapped):
    inside, hidden = tmp_path / "root" / "inner", tmp_path / "hidden" / "inner"
    for directory, content in ((inside, b"mine"), (hidden, b"theirs")):
        directory.mkdir(parents=True)
        (directory / "weights").write_bytes(content)
    source = DirectorySource(tmp_path / "root", roots=[tmp_path / "root"])
    with source.open("inner/weights") as stream:
        assert stream.read() == b"mine"
    judged = source._inside(inside / "weights", "")
    monkeypatch.setattr(source, "_inside", lambda *_: judged)
    (tmp_path / "root" / swapped).rename(tmp_path / "moved")
    (tmp_path / "root" / swapped).symlink_to(tmp_path / "hidden" / swapped)
    for read in (source.open, source.size_bytes):
        with pytest.raises((ArtifactMissing, Unavailable)):
            read("inner/weights")


@pytest.mark.parametrize(
    ("uri", "bucket", "may"),
    [
        ("s3://b/x", "b", True),
        ("s3://b", "b", True),
        ("s3://b/ads/x/", "b/ads", True),
        ("s3://b/ads", "b/ads/", True),
        ("s3://b/ads-b/x", "b/ads", False),
        ("s3://b/ads/../search/x", "b/ads", False),
        ("s3://b/ads/%2e%2e/search/x", "b/ads", False),
        ("s3://b/ads/..", "b/ads", False),
        ("s3://b//ads/x", "b/ads", True),
        ("s3://b/x//y", "b", False),
        ("s3://b", "b/ads", False),
        ("s3://other/ads", "b/ads", False),
    ],
)
def test_an_s3_uri_is_read_below_an_allowed_bucket_or_prefix(uri, bucket, may):
    if may:
        assert open_source(uri, buckets=[bucket]).uri.startswith("s3://b/")
    else:
        with pytest.raises(PathNotAllowed, match=bucket):
            open_source(uri, buckets=[bucket])


def test_a_file_uri_below_an_allowed_root_is_published(store, snapshot_directory, tmp_path):
    directory = snapshot_directory(FILES, name="with space")
    source = ingest_uri(store, directory.as_uri(), roots=[tmp_path])
    assert store.manifest(source.uri) == source.manifest


def test_a_file_uri_elsewhere_is_refused_and_names_the_roots(store, snapshot_directory, tmp_path):
    directory = snapshot_directory(FILES)
    root = tmp_path / "allowed"
    root.mkdir()
    (root / "link").symlink_to(directory)
    for uri in (directory.as_uri(), f"{root.as_uri()}/../snapshot", f"{root.as_uri()}/link"):
        with pytest.raises(PathNotAllowed, match=str(root)) as caught:
            ingest_uri(store, uri, roots=[root])
        assert caught.value.allowed == (str(root),)
    with pytest.raises(PathNotAllowed, match="none"):
        ingest_uri(store, directory.as_uri())


def test_what_is_said_to_others_names_the_setting_and_no_directory_of_the_server(store, snapshot_directory, tmp_path):
    root, hidden = tmp_path / "allowed", snapshot_directory(FILES, name="hidden")
    root.mkdir()
    (root / "link").symlink_to(hidden)
    (root / "circle").symlink_to(root / "circle")
    inside = snapshot_directory(FILES, name="allowed/inside")
    (inside / "weights").unlink()
    (inside / "weights").symlink_to(hidden / "weights")
    given = {
        "file:///etc": root,
        (root / "link").as_uri(): hidden,
        (root / "circle").as_uri(): hidden,
        (root / "circle" / "x").as_uri(): hidden,
    }
    for uri, kept_back in (given | {inside.as_uri(): hidden}).items():
        with pytest.raises(PathNotAllowed) as caught:
            ingest_uri(store, uri, roots=[root])
        public = caught.value.public
        assert "allowed roots: those of IPNEXT_ARTIFACT_ROOTS of the server" in public.message
        assert str(kept_back) not in f"{public.message} {public.value}"
        assert public.allowed == ()
    with pytest.raises(PathNotAllowed) as caught:
        ingest_uri(store, "s3://other/x", buckets=["secret-bucket"])
    assert "IPNEXT_ARTIFACT_BUCKETS" in caught.value.public.message
    assert "secret-bucket" not in caught.value.public.message


def test_faults_of_files_name_the_directory_as_it_was_given(store, snapshot_directory, tmp_path):
    real = snapshot_directory(FILES, name="real")
    (tmp_path / "given").symlink_to(real)
    (real / "weights").unlink()
    with pytest.raises(ArtifactMissing) as caught:
        ingest_uri(store, (tmp_path / "given").as_uri(), roots=[tmp_path])
    assert "/given" in caught.value.message
    assert str(real) not in caught.value.message


def test_a_sibling_whose_name_begins_like_the_root_lies_outside(store, snapshot_directory, tmp_path):
    root = tmp_path / "snap"
    root.mkdir()
    with pytest.raises(PathNotAllowed):
        ingest_uri(store, snapshot_directory(FILES, name="snapshot").as_uri(), roots=[root])


@pytest.mark.parametrize(
    "uri",
    ["", "weights", "/abs", "http://x/y", "file://host/x", "file:relative", "s3://", "s3:///x", "file:///a?b", "[//"],
)
def test_an_unknown_form_of_uri_names_the_known_ones(uri):
    for call in (open_store, open_source):
        with pytest.raises(InvalidInput, match="file:///DIRECTORY, s3://BUCKET/PREFIX"):
            call(uri)


def test_a_snapshot_of_the_store_itself_is_taken_as_it_is(store, snapshot_directory):
    source = ingest_directory(store, snapshot_directory(FILES))
    assert ingest_uri(store, source.uri) == source
    with pytest.raises(ArtifactMissing, match="never committed"):
        ingest_uri(store, f"{store.uri}/snapshots/{'ab' * 32}")


@pytest.mark.s3
def test_an_s3_uri_in_an_allowed_bucket_is_published(held, s3_server, snapshot_directory, tmp_path):
    directory = snapshot_directory(FILES)
    prefix = f"upload/{tmp_path.name}"
    for path in [SNAPSHOT_FILE, *FILES]:
        s3_server.client.upload_file(str(directory / path), s3_server.bucket, f"{prefix}/{path}")
    uri = f"s3://{s3_server.bucket}/{prefix}"
    source = ingest_uri(held.store, uri, buckets=[s3_server.bucket], endpoint_url=s3_server.url)
    assert source == ingest_directory(held.store, directory)
    with pytest.raises(PathNotAllowed, match="allowed buckets: another"):
        ingest_uri(held.store, uri, buckets=["another"], endpoint_url=s3_server.url)
    s3_server.client.delete_object(Bucket=s3_server.bucket, Key=f"{prefix}/weights")
    with pytest.raises(ArtifactMissing, match="weights"):
        ingest_uri(held.store, uri, buckets=[s3_server.bucket], endpoint_url=s3_server.url)


def test_a_fetched_snapshot_is_itself_a_snapshot_directory(store, snapshot_directory, tmp_path):
    source = ingest_directory(store, snapshot_directory(FILES))
    fetched = store.fetch(source.uri, tmp_path / "cache")
    shutil.rmtree(tmp_path / "snapshot")
    assert ingest_directory(store, fetched) == source
