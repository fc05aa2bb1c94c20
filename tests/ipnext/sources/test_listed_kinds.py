"""Kinds whose poll lists a place, against one contract: what counts as a version, its key, its facts, its files."""

from datetime import UTC, datetime

import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.stores.s3_listing import ListedObject
from ipnext.artifacts.upload import ingest
from ipnext.errors import ArtifactMissing, InvalidInput
from ipnext.model.registry.sources import Listing
from ipnext.sources import bucket
from ipnext.sources.training_record import TrainingRecord

pytestmark = pytest.mark.trust


def keys(listing):
    return [version.key for version in listing.versions]


def names(listing):
    return [version.place for version in listing.versions]


def test_an_empty_place_has_no_version_and_a_cursor(watched):
    first = watched.source.list_since("")
    assert (first.versions, first.whole) == ((), True)
    assert watched.source.list_since(first.cursor) == Listing(cursor=first.cursor), "there is no news"


def test_new_snapshots_are_listed_in_the_order_of_their_arrival_and_not_again_without_news(watched):
    watched.put("b", b"1")
    watched.put("a", b"2")
    listing = watched.source.list_since("")
    assert set(names(listing)) == {"a", "b"}
    assert watched.source.list_since(listing.cursor).versions == ()

    watched.put("c", b"3")
    more = watched.source.list_since(listing.cursor)
    assert names(more)[-1] == "c"
    assert set(keys(listing)) < set(keys(more))
    assert more.cursor != listing.cursor


def test_a_copy_under_way_is_left_until_its_manifest_is_there(watched):
    watched.put("whole", b"1")
    finish = watched.put_half("half", b"2")
    listing = watched.source.list_since("")
    assert names(listing) == ["whole"]
    finish()
    assert set(names(watched.source.list_since(listing.cursor))) == {"whole", "half"}


def test_names_that_begin_with_a_dot_are_left(watched):
    watched.put(".draft", b"1")
    assert watched.source.list_since("").versions == ()


def test_other_content_under_the_same_name_is_another_version(watched):
    watched.put_half("same", b"1")()
    (first,) = watched.source.list_since("").versions
    watched.break_manifest("same")
    (second,) = watched.source.list_since("").versions
    assert first.place == second.place
    assert first.key != second.key


def test_a_training_record_gives_tags_metrics_lineage_and_the_time_of_the_training(watched):
    trained = "2026-11-30T23:59:00Z"
    watched.put(
        "a", b"1", {"trainedAt": trained, "tags": {"stage": "prod"}, "metrics": {"auc": 0.7}, "lineage": {"run": "r1"}}
    )
    (found,) = watched.source.list_since("").versions
    assert found.trained_at == datetime(2026, 11, 30, 23, 59, tzinfo=UTC)
    assert (found.tags, found.metrics, found.lineage) == ({"stage": "prod"}, {"auc": 0.7}, {"run": "r1"})


def test_a_training_record_that_is_written_later_or_anew_is_listed_with_the_same_key(watched):
    watched.put("a", b"1")
    first = watched.source.list_since("")
    keys, metrics = {first.versions[0].key}, []
    cursor = first.cursor
    for auc in (0.61, 0.72):
        watched.put_record("a", {"metrics": {"auc": auc}})
        listing = watched.source.list_since(cursor)
        (version,) = listing.versions
        keys.add(version.key)
        metrics.append(version.metrics["auc"])
        cursor = listing.cursor
    assert (len(keys), metrics) == (1, [0.61, 0.72])
    assert watched.source.list_since(cursor).versions == ()


@pytest.mark.parametrize("training", [{"metrics": {"auc": "high"}}, {"unknown": 1}, {"tags": {"a": "b" * 6000}}, []])
def test_a_bad_training_record_counts_as_none_and_hides_no_other_version(watched, training):
    watched.put("a", b"1", training)
    watched.put("b", b"2", {"tags": {"stage": "prod"}})
    tags = {version.place: version.tags for version in watched.source.list_since("").versions}
    assert tags == {"a": {}, "b": {"stage": "prod"}}


def test_the_files_of_a_version_come_into_a_store_bit_by_bit(watched, tmp_path):
    manifest = watched.put("a", b"content")
    (found,) = watched.source.list_since("").versions
    store = FileArtifactStore(tmp_path / "store")
    content = ingest(store, watched.source.open(found))
    assert content.manifest == manifest
    blob = store.root / "blobs" / manifest.files[0].sha256
    assert blob.read_bytes() == b"content"


def test_a_broken_manifest_is_a_version_and_is_refused_as_it_is_read(watched, tmp_path):
    watched.break_manifest("bad")
    (found,) = watched.source.list_since("").versions
    with pytest.raises(InvalidInput, match=r"snapshot\.json"):
        ingest(FileArtifactStore(tmp_path / "store"), watched.source.open(found))


def test_a_version_that_is_gone_is_missing(watched, tmp_path):
    watched.put("a", b"1")
    (found,) = watched.source.list_since("").versions
    gone = found.model_copy(update={"place": "other"})
    with pytest.raises((ArtifactMissing, InvalidInput)):
        ingest(FileArtifactStore(tmp_path / "store"), watched.source.open(gone))


def test_snapshots_of_one_second_in_a_bucket_are_in_the_order_of_their_numbers(monkeypatch):
    now = datetime(2026, 12, 1, tzinfo=UTC)
    keys = [f"in/{name}/snapshot.json" for name in ("snap10", "snap9", "a", "snap")]
    listed = [ListedObject(key, "tag", now) for key in keys]
    monkeypatch.setattr(bucket, "list_objects", lambda *_: iter(listed))
    monkeypatch.setattr(bucket, "_read_record", lambda *_: TrainingRecord())
    source = bucket.WatchedPrefix("bucket", "in", None)
    assert names(source.list_since("")) == ["a", "snap", "snap9", "snap10"]
