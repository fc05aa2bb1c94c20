"""A collection of record and artifact store: what goes, what stays, and a publish that comes in between."""

import hashlib
import os
import time
from datetime import UTC, datetime, timedelta

import pytest

from ipnext.artifacts.layout import snapshot_uri
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult, ValidationReport
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.registry import GenerationState, SnapshotSource
from ipnext.model.registry.sources import FoundVersion
from ipnext.platform.collection import Collection, Retention
from ipnext.store.registry.artifacts import sizes_of
from ipnext.store.sources.sources import WatchedSource
from ipnext.store.store import Store
from tests.ipnext.conftest import model_document, snapshot_manifest

RETENTION = Retention()
OLD = 2 * 86_400


@pytest.fixture
def store(tmp_path):
    opened = Store.open(f"sqlite:///{tmp_path}/ipnext.db")
    opened.migrate()
    with opened.begin() as unit:
        unit.put_model(ModelManifest.model_validate(model_document("ranker")), expected_version=None)
    yield opened
    opened.close()


@pytest.fixture
def artifacts(tmp_path):
    return FileArtifactStore(tmp_path / "artifacts")


def put(artifacts, content, *, age=OLD):
    sha = hashlib.sha256(content).hexdigest()
    artifacts.put_blob(sha, iter([content]))
    grow_old(artifacts, "blobs", sha, age=age)
    return sha


def grow_old(artifacts, *steps, age=OLD):
    then = time.time() - age
    os.utime(artifacts.root.joinpath(*steps), (then, then))


def committed(artifacts, content, *, age=OLD):
    put(artifacts, content, age=age)
    manifest = snapshot_manifest(content)
    artifacts.commit(manifest)
    grow_old(artifacts, "snapshots", manifest.digest, "snapshot.json", age=age)
    return SnapshotSource(manifest=manifest, uri=snapshot_uri(artifacts.uri, manifest.digest))


def collect(store, artifacts, *, dry_run=False, after=timedelta()):
    """One pass as if so much time had passed."""
    clock = datetime.now(UTC) + after
    return Collection(store, artifacts, RETENTION, dry_run=dry_run, clock=lambda: clock).run()


def held(artifacts):
    return {item.digest for item in artifacts.items()}


def publish(store, change, **parts):
    """A publish whose change has ended."""
    with store.begin("ranker") as unit:
        for source in parts.values():
            unit.touch_artifacts(sizes_of(source.manifest))
        unit.publish("ranker", parts, change_id=change)
        unit.update_change(change, state=ChangeState.DONE)


def retire(store):
    with store.begin("ranker") as unit:
        for number in unit.generation_numbers("ranker", GenerationState.PENDING):
            unit.set_generation_state("ranker", number, GenerationState.RETIRED)
        unit.update_model("ranker", retired=True)


def test_an_old_blob_that_nothing_names_goes_and_a_young_one_stays(store, artifacts):
    old, young = put(artifacts, b"old"), put(artifacts, b"young", age=60)
    found = collect(store, artifacts)
    assert held(artifacts) == {young}
    assert (found.blobs, found.size_bytes, found.kept_blobs, found.dry_run) == (1, 3, 1, False)
    assert [(item.kind, item.name) for item in found.items] == [("blob", old)]


def test_a_dry_run_shows_the_same_and_removes_nothing(store, artifacts):
    old = put(artifacts, b"old")
    source = committed(artifacts, b"never published")
    found = collect(store, artifacts, dry_run=True)
    assert {item.name for item in found.items} == {old, source.manifest.digest, source.manifest.files[0].sha256}
    assert found.dry_run
    assert held(artifacts) == {item.name for item in found.items}
    assert collect(store, artifacts).items == found.items


def test_what_a_snapshot_names_stays_however_old(store, artifacts):
    one, two = committed(artifacts, b"one"), committed(artifacts, b"two")
    publish(store, "c1", sparse=one, dense=two)
    collect(store, artifacts, after=timedelta(days=900))
    for source in (one, two):
        artifacts.manifest(source.uri)
        assert not artifacts.missing({file.sha256 for file in source.manifest.files})


def test_a_snapshot_that_failed_is_given_free_and_its_blobs_go(store, artifacts):
    sparse, bad, good = (committed(artifacts, content) for content in (b"sparse", b"bad", b"good"))
    publish(store, "c1", sparse=sparse, dense=bad)
    with store.begin("ranker") as unit:
        unit.set_generation_state("ranker", 1, GenerationState.FAILED)
    publish(store, "c2", dense=good)
    assert collect(store, artifacts).snapshots == 0, "it is young"
    found = collect(store, artifacts, after=timedelta(days=8))
    assert found.snapshots == 1
    assert found.items[0].name == "ranker/dense/1"
    assert bad.manifest.digest not in held(artifacts)
    assert {sparse.manifest.digest, good.manifest.digest} <= held(artifacts)


def test_a_retired_models_bytes_go_and_what_another_one_names_stays(store, artifacts):
    shared, own = committed(artifacts, b"shared"), committed(artifacts, b"own")
    publish(store, "c1", sparse=shared, dense=own)
    with store.begin() as unit:
        unit.put_model(ModelManifest.model_validate(model_document("other")), expected_version=None)
    with store.begin("other") as unit:
        unit.publish("other", {"sparse": shared, "dense": shared}, change_id="c2")
    retire(store)
    collect(store, artifacts, after=timedelta(days=29))
    assert own.manifest.digest in held(artifacts)
    collect(store, artifacts, after=timedelta(days=31))
    assert held(artifacts) == {shared.manifest.digest, shared.manifest.files[0].sha256}


def push(store, source, **promote):
    """A version that was pushed with the digest of an uploaded snapshot, and its use made old."""
    spec = SourceSpec.model_validate({"name": "feed", "part": "dense", "push": {}, "promote": promote})
    with store.begin("ranker") as unit:
        unit.put_sources("ranker", [WatchedSource(spec=spec, part="dense", upstream="ranker")])
        unit.add_version("ranker", "feed", FoundVersion(key="1", place=source.uri))


@pytest.mark.parametrize("promote", [{}, {"tags": {"stage": "prod"}}], ids=["found", "held"])
def test_what_a_version_waits_with_stays_until_it_is_over(store, artifacts, promote):
    source = committed(artifacts, b"pushed")
    push(store, source, **promote)
    with store.begin("ranker") as unit:
        unit.pause_source("ranker", "feed", by="bob", reason="for a week")
    collect(store, artifacts, after=timedelta(days=7))
    assert held(artifacts) == {source.manifest.digest, source.manifest.files[0].sha256}
    with store.begin("ranker") as unit:
        unit.resume_source("ranker", "feed")
        for version in unit.version_page("ranker", "feed").items:
            unit.supersede_versions(version.model_copy(update={"ordinal": version.ordinal + 1}))
    collect(store, artifacts, after=timedelta(days=7))
    assert held(artifacts) == set()


def test_a_version_whose_bytes_are_gone_stops_no_collection(store, artifacts):
    push(store, committed(artifacts, b"pushed"))
    for item in artifacts.items():
        artifacts.remove(item)
    old = put(artifacts, b"old")
    assert collect(store, artifacts).items[0].name == old


def test_a_dry_run_sums_up_each_class_with_bytes_and_reasons(store, artifacts):
    sparse, bad, good = (committed(artifacts, content) for content in (b"sparse", b"bad", b"good"))
    publish(store, "c1", sparse=sparse, dense=bad)
    with store.begin("ranker") as unit:
        unit.set_generation_state("ranker", 1, GenerationState.FAILED)
        for _ in range(RETENTION.history["event"].count + 3):
            unit.add_event("ranker", "K", "12345678")
    publish(store, "c2", dense=good)
    after = timedelta(days=100)
    shown = collect(store, artifacts, dry_run=True, after=after)
    classes = {each.kind: each for each in shown.classes}
    assert (classes["snapshot"].count, classes["snapshot"].size_bytes) == (1, 3)
    assert classes["snapshot"].reasons == {"no generation with it has served or can serve": 1}
    assert (classes["blob"].count, classes["blob"].size_bytes) == (1, 3), "of the snapshot that would be released"
    assert (classes["manifest"].count, classes["event"].count) == (1, 3)
    assert classes["event"].reasons == {"older than 90 d, and not among the newest 200": 3}
    assert classes["event"].size_bytes == 3 * 8
    done = collect(store, artifacts, after=after)
    assert done.classes == shown.classes
    assert not collect(store, artifacts, after=after).classes


def test_a_pass_ends_at_its_time_limit_and_the_next_one_goes_on(store, artifacts):
    put(artifacts, b"old")
    clock = datetime.now(UTC)
    over = Collection(store, artifacts, RETENTION, stage_seconds=0, clock=lambda: clock).run()
    assert over.unfinished
    assert not over.classes
    assert not collect(store, artifacts).unfinished
    assert held(artifacts) == set()


def documents(store):
    with store.read() as unit:
        return unit.document_bytes("ranker")


def test_of_a_large_manifest_that_is_given_free_the_record_keeps_little_and_counts_no_more(store, artifacts):
    put(artifacts, b"bad")
    large = snapshot_manifest(b"bad").model_copy(update={"producer": {f"{n:01000d}": "x" for n in range(60)}})
    bad = SnapshotSource(manifest=large, uri=artifacts.commit(large))
    sparse, good = (committed(artifacts, content) for content in (b"sparse", b"good"))
    publish(store, "c1", sparse=sparse, dense=bad)
    check = CheckResult(
        check="digests", subject="dense", outcome=CheckOutcome.REFUSED, reason=Reason.UNSAFE_FORMAT, message="x" * 500
    )
    with store.begin("ranker") as unit:
        unit.save_report(ValidationReport(model="ranker", generation=1, checks=(check,)))
        unit.set_generation_state("ranker", 1, GenerationState.REFUSED)
    publish(store, "c2", dense=good)
    before = documents(store)
    collect(store, artifacts, after=timedelta(days=8))
    with store.read() as unit:
        kept = unit.snapshot("ranker", "dense", 1)
        assert unit.report("ranker", 1) is None
        assert unit.snapshot("ranker", "sparse", 1).manifest == sparse.manifest
    assert (kept.digest, kept.manifest.engine, kept.manifest.producer) == (large.digest, large.engine, {})
    assert documents(store) < before - 60_000 - 500
    put(artifacts, b"bad")
    publish(store, "c3", dense=SnapshotSource(manifest=large, uri=artifacts.commit(large)))
    with store.read() as unit:
        assert unit.snapshot("ranker", "dense", 3).manifest == large


def test_a_manifest_that_was_cut_short_is_whole_again_once_it_is_published_again(store, artifacts):
    put(artifacts, b"own")
    large = snapshot_manifest(b"own").model_copy(update={"producer": {f"{n:01000d}": "x" for n in range(60)}})
    own = SnapshotSource(manifest=large, uri=artifacts.commit(large))
    publish(store, "c1", sparse=own, dense=own)
    full = documents(store)
    retire(store)
    collect(store, artifacts, after=timedelta(days=31))
    assert documents(store) < full - 100_000
    put(artifacts, b"own")
    artifacts.commit(large)
    with store.begin("ranker") as unit:
        unit.update_model("ranker", retired=False)
        unit.set_generation_state("ranker", 1, GenerationState.RETIRED)
    publish(store, "c2", sparse=own, dense=own)
    with store.read() as unit:
        assert unit.snapshot("ranker", "dense", 1).manifest == large
    assert documents(store) == full


class Between(FileArtifactStore):
    """Runs something once a collection has listed the store."""

    then = staticmethod(lambda: None)

    def items(self):
        yield from list(super().items())
        self.then()


def test_a_publish_that_comes_between_look_and_removal_loses_nothing(store, artifacts, tmp_path):
    """What it names was old and unnamed when the collection looked."""
    one, two = committed(artifacts, b"one"), committed(artifacts, b"two")
    between = Between(artifacts.root)
    between.then = lambda: publish(store, "c1", sparse=one, dense=two)
    assert collect(store, between).blobs == 0
    assert not artifacts.missing({one.manifest.files[0].sha256, two.manifest.files[0].sha256})


def test_a_snapshot_named_without_a_touch_between_look_and_removal_stays(store, artifacts):
    one, two = committed(artifacts, b"one"), committed(artifacts, b"two")
    between = Between(artifacts.root)

    def name():
        with store.begin("ranker") as unit:
            unit.publish("ranker", {"sparse": one, "dense": two}, change_id="c1")

    between.then = name
    assert collect(store, between).blobs == 0


def test_a_blob_that_was_asked_for_stays_for_the_grace_time(store, artifacts):
    sha = put(artifacts, b"old")
    with store.begin_free(()) as unit:
        unit.touch_artifacts({sha: 3})
    assert collect(store, artifacts).blobs == 0
    assert collect(store, artifacts, after=timedelta(hours=25)).blobs == 1


def test_an_upload_whose_server_died_counts_no_more_after_the_grace_time(store, artifacts):
    from ipnext.model.access.artifact_use import Allowance  # noqa: PLC0415 - for this test

    alice = Allowance("key/alice", 10, "x")
    with store.begin_free(()) as unit:
        unit.reserve_blob("0" * 64, 7, alice)
    collect(store, artifacts)
    with store.read() as unit:
        assert unit.artifact_bytes(alice.account) == 7
    collect(store, artifacts, after=timedelta(hours=25))
    with store.read() as unit:
        assert unit.artifact_bytes(alice.account) == 0
