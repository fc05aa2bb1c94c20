"""Bytes of the artifact store as they are counted, on both engines.

Uploads at the same time, and a collection against a publish.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event

import pytest

from ipnext.access.acting import acting, on_this_machine
from ipnext.errors import InvalidInput, QuotaExceeded
from ipnext.model.access.artifact_use import Allowance, account_of
from ipnext.model.registry.registry import GenerationState
from ipnext.store.registry.artifacts import sizes_of
from tests.waiting import PATIENCE_SECONDS

SEARCH = Allowance(account_of("search"), 100, "quotas.artifactBytes")
ALICE = Allowance("key/alice", 100, "IPNEXT_ARTIFACT_BYTES")
LATER = timedelta(days=400)


def digest(number):
    return f"{number:064x}"


def reserve(store, number, size, allowance=SEARCH):
    with store.begin_free(()) as unit:
        unit.reserve_blob(digest(number), size, allowance)


def used(store, allowance=SEARCH):
    with store.read() as unit:
        return unit.artifact_bytes(allowance.account)


def test_an_upload_beyond_the_quota_is_refused_with_figure_and_limit(store):
    reserve(store, 1, 60)
    with pytest.raises(QuotaExceeded) as refused:
        reserve(store, 2, 41)
    assert "41 bytes; owner 'search' uses 60 of 100 bytes" in refused.value.message
    assert "quotas.artifactBytes" in refused.value.message
    assert refused.value.allowed == ("at most 40",)
    reserve(store, 2, 40)
    assert used(store) == 100


def test_an_upload_that_failed_counts_no_more_and_one_that_came_counts_as_it_came(store):
    reserve(store, 1, 60)
    reserve(store, 2, 40)
    with store.begin_free(()) as unit:
        unit.blob_refused(digest(1))
        unit.blob_stored(digest(2), 30)
    assert used(store) == 30


def test_an_upload_that_failed_takes_no_touch_away(store):
    with store.begin_free(()) as unit:
        unit.touch_artifacts({digest(1): 5})
    reserve(store, 1, 5)
    with store.begin_free(()) as unit:
        unit.blob_refused(digest(1))
    assert used(store) == 0
    assert free(store, 1, since=datetime.now(UTC) - timedelta(hours=1)) == set()


def test_the_same_blob_counts_once_whoever_sends_it(store):
    reserve(store, 1, 60)
    reserve(store, 1, 60, ALICE)
    with store.begin_free(()) as unit:
        unit.blob_stored(digest(1), 60)
        unit.blob_refused(digest(1))
    assert (used(store), used(store, ALICE)) == (60, 0)


def test_of_uploads_at_the_same_time_as_many_pass_as_there_is_room_for(store):
    together = Barrier(8)

    def upload(number):
        together.wait(PATIENCE_SECONDS)
        try:
            reserve(store, number, 30)
        except QuotaExceeded:
            return 0
        return 1

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(upload, range(8))) == 3
    assert used(store) == 90


def test_what_is_published_counts_for_the_owner_from_then_on(store):
    reserve(store, 1, 60, ALICE)
    reserve(store, 2, 30)
    with store.begin_free(()) as unit:
        unit.charge_artifacts({digest(1): 60, digest(2): 30}, SEARCH)
    assert (used(store), used(store, ALICE)) == (90, 0)
    reserve(store, 3, 20, ALICE)
    with pytest.raises(QuotaExceeded, match="90 of 100"), store.begin_free(()) as unit:
        unit.charge_artifacts({digest(3): 20}, SEARCH)
    assert (used(store), used(store, ALICE)) == (90, 20)


def test_touches_and_uploads_are_no_entries_of_the_audit(store):
    with acting(on_this_machine("a test", "artifacts.upload")):
        reserve(store, 1, 60)
        with store.begin_free(()) as unit:
            unit.blob_stored(digest(1), 60)
            unit.touch_artifacts({digest(1): 60})
    with store.read() as unit:
        assert unit.audit_head().sequence == 0


def free(store, *numbers, since=None, began=None):
    now = datetime.now(UTC)
    with store.begin_free(()) as unit:
        digests = [digest(number) for number in numbers]
        found = unit.free_artifacts(digests, unused_since=since or now + LATER, began=began or now)
        unit.forget_artifacts(found)
        return {int(one, 16) for one in found}


def test_what_was_touched_since_is_not_free(store):
    with store.begin_free(()) as unit:
        unit.touch_artifacts({digest(1): 5})
    assert free(store, 1, 2, since=datetime.now(UTC) - timedelta(hours=1)) == {2}
    assert free(store, 1, 2) == {1, 2}


def test_what_a_snapshot_names_that_was_made_since_is_not_free(store, applied, publish, make):
    began = datetime.now(UTC) - timedelta(seconds=1)
    publish("c1", dense="a", sparse="b")
    named = sizes_of(make.source("a").manifest)
    with store.begin_free(()) as unit:
        found = unit.free_artifacts(named, unused_since=datetime.now(UTC) + LATER, began=began)
    assert found == frozenset()


def test_who_is_about_to_use_a_blob_waits_for_a_collection_and_finds_what_it_left(store):
    with store.begin_free(()) as unit:
        unit.touch_artifacts({digest(1): 5})
    collecting, removed = Event(), Event()
    order = []

    def collect():
        with store.begin_free(()) as unit:
            found = unit.free_artifacts([digest(1)], unused_since=datetime.now(UTC) + LATER, began=datetime.now(UTC))
            collecting.set()
            removed.wait(0.3)  # long enough for the other one to ask; a quick answer would come before "removed"
            order.append("removed")
            unit.forget_artifacts(found)

    def touch():
        collecting.wait(PATIENCE_SECONDS)
        with store.begin_free(()) as unit:
            unit.touch_artifacts({digest(1): 5})
            order.append("touched")

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(collect), threads.submit(touch)]:
            done.result(PATIENCE_SECONDS)
    assert order == ["removed", "touched"]


def end(store, number, state):
    with store.begin("ctr") as unit:
        unit.set_generation_state("ctr", number, state)


def test_a_snapshot_that_was_given_free_names_nothing_and_is_published_again_as_itself(applied, publish, make):
    publish("c1", dense="a", sparse="b")
    end(applied, 1, GenerationState.FAILED)
    with applied.begin("ctr") as unit:
        unit.release_snapshots("ctr", [("dense", 1)])
    named = sizes_of(make.source("a").manifest)
    with applied.read() as unit:
        assert not named.keys() & set(unit.kept_artifacts())
    with pytest.raises(InvalidInput, match=r"bytes of the newest snapshot of dense .* were collected"):
        publish("c2", sparse="c")
    publish("c3", dense="a", sparse="b")
    with applied.read() as unit:
        assert named.keys() <= set(unit.kept_artifacts())
        assert dict(unit.generation("ctr", 2).snapshots) == {"dense": 1, "sparse": 1}


def test_names_of_one_blob_count_for_the_manifest(make):
    manifest = make.source("a").manifest
    (file,) = manifest.files
    before = sizes_of(manifest)
    files = tuple(file.model_copy(update={"path": f"{number}.txt", "size_bytes": 1000}) for number in range(3))
    more = manifest.model_copy(update={"files": files})
    after = sizes_of(more)
    assert after[file.sha256] == 1000
    assert sum(after.values()) >= more.size_bytes + before[manifest.digest]
