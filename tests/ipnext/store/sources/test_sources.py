"""Sources and their versions, on both engines: cursors, keys, promotion, pauses, what a changed manifest keeps."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.errors import Conflict, NotFound
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import FoundVersion, Listing, Reach, VersionState
from ipnext.store.sources import versions as module
from ipnext.store.sources.sources import WatchedSource


def watched(name="nightly", *, path="/in", part="dense", every="5s", reach=Reach.OWNER, **more):
    spec = SourceSpec.model_validate({"name": name, "every": every, "directory": {"path": path}, **more})
    return WatchedSource(spec=spec, part=part, upstream=path, reach=reach)


def version(key, **more):
    return FoundVersion(key=key, place=key, **more)


@pytest.fixture
def put(applied):
    """Puts sources of `ctr`."""

    def call(*sources):
        with applied.begin("ctr") as unit:
            unit.put_sources("ctr", sources)

    return call


@pytest.fixture
def poll(applied):
    """Records a listing; the number of new versions, None if it came too late."""

    def call(cursor, *versions, name="nightly", source=None):
        with applied.read() as unit:
            found = source or unit.source("ctr", name)
        with applied.begin_free(()) as unit:
            return unit.note_listing(found, Listing(cursor=cursor, versions=versions))

    return call


def states(store, name="nightly"):
    with store.read() as unit:
        return {found.version.key: found.state.value for found in unit.version_page("ctr", name).items}


def test_a_listing_records_versions_and_the_cursor_together(applied, put, poll):
    put(watched())
    assert poll("c1", version("a"), version("b")) == 2
    with applied.read() as unit:
        assert unit.source("ctr", "nightly").cursor == "c1"
        assert [found.version.key for found in unit.pending_versions("ctr")] == ["b", "a"]
        assert unit.pending_models(["ctr", "other"]) == {"ctr"}


def test_a_version_that_is_listed_again_is_not_doubled(applied, put, poll):
    put(watched())
    poll("c1", version("a"))
    assert poll("c2", version("a"), version("b")) == 1
    assert states(applied) == {"a": "found", "b": "found"}


def test_a_listing_from_an_older_cursor_writes_nothing(applied, put, poll):
    put(watched())
    with applied.read() as unit:
        slow = unit.source("ctr", "nightly")
    poll("c1", version("a"))
    assert poll("c0", version("z"), source=slow) is None
    with applied.read() as unit:
        assert unit.source("ctr", "nightly").cursor == "c1"
    assert states(applied) == {"a": "found"}


def test_the_cursor_waits_until_all_versions_of_a_long_listing_are_recorded(applied, put, poll, monkeypatch):
    monkeypatch.setattr(module, "RECORDED_AT_ONCE", 2)
    put(watched())
    many = [version(str(number)) for number in range(5)]
    cursors = []
    while poll("c1", *many):
        with applied.read() as unit:
            cursors.append(unit.source("ctr", "nightly").cursor)
    assert cursors == ["", "", "c1"]
    assert len(states(applied)) == 5


def test_a_rule_holds_versions_until_their_tags_and_metrics_meet_it(applied, put, poll):
    put(watched(promote={"tags": {"stage": "prod"}, "metrics": [{"name": "auc", "atLeast": 0.7}]}))
    poll("c1", version("a", tags={"stage": "prod"}, metrics={"auc": 0.6}), version("b", metrics={"auc": 0.9}))
    with applied.read() as unit:
        messages = {found.version.key: found.message for found in unit.version_page("ctr", "nightly").items}
    assert messages == {
        "a": "metric auc is 0.6; at least 0.7 is asked for",
        "b": "tag 'stage' is not set; 'prod' is asked for",
    }
    assert states(applied) == {"a": "held", "b": "held"}
    poll("c2", version("b", tags={"stage": "prod"}, metrics={"auc": 0.9}))
    assert states(applied) == {"a": "held", "b": "found"}


def test_a_version_that_has_ended_is_not_judged_again(applied, put, poll):
    put(watched())
    poll("c1", version("a"))
    with applied.begin_free(()) as unit:
        (found,) = unit.pending_versions("ctr")
        unit.end_version(found.ordinal, VersionState.REFUSED, "corrupt")
        unit.end_version(found.ordinal, VersionState.PUBLISHED)
    poll("c2", version("a", tags={"x": "y"}))
    assert states(applied) == {"a": "refused"}


def test_an_interval_that_changes_keeps_the_cursor_and_another_place_begins_anew(applied, put, poll):
    put(watched())
    poll("c1", version("a"))
    put(watched(every="10s"))
    with applied.read() as unit:
        assert unit.source("ctr", "nightly").cursor == "c1"
    put(watched(path="/other"))
    with applied.read() as unit:
        assert unit.source("ctr", "nightly").cursor == ""
        assert unit.pending_versions("ctr") == (), "those of the former place are not published any more"
    assert poll("c1", version("a")) == 1, "the same key of another place is another version"


def test_a_source_that_comes_back_finds_nothing_twice(applied, put, poll):
    put(watched())
    poll("c1", version("a"))
    put()
    with applied.read() as unit:
        assert unit.sources("ctr") == ()
        with pytest.raises(NotFound, match="known: none"):
            unit.source("ctr", "nightly")
    put(watched())
    assert poll("c1", version("a")) == 0


def test_what_an_administrator_granted_stays_while_the_settings_do(applied, put):
    put(watched(reach=Reach.ANY))
    put(watched(every="9s"))
    with applied.read() as unit:
        assert unit.source("ctr", "nightly").reach is Reach.ANY
    put(watched(path="/etc"))
    with applied.read() as unit:
        assert unit.source("ctr", "nightly").reach is Reach.OWNER


def test_a_paused_source_has_nothing_to_publish_until_it_is_resumed(applied, put, poll):
    put(watched())
    poll("c1", version("a"))
    with applied.begin("ctr") as unit:
        paused = unit.pause_source("ctr", "nightly", by="key ops", reason="audit")
        assert (paused.paused_by, paused.pause_reason) == ("key ops", "audit")
        assert unit.pending_versions("ctr") == ()
    with applied.begin("ctr") as unit:
        assert unit.resume_source("ctr", "nightly").paused_at is None
        assert len(unit.pending_versions("ctr")) == 1
        with pytest.raises(Conflict, match="is not paused"):
            unit.resume_source("ctr", "nightly")


def test_failed_polls_are_counted_until_one_succeeds(applied, put, poll):
    put(watched())
    with applied.begin_free(()) as unit:
        source = unit.source("ctr", "nightly")
        assert [unit.note_failed_poll(source, "away") for _ in range(2)] == [1, 2]
    poll("c1")
    with applied.read() as unit:
        found = unit.source("ctr", "nightly")
    assert (found.failures, found.error) == (0, "")


def test_an_engine_is_told_of_each_request_once_and_again_of_later_ones(applied, put):
    put(watched())
    with applied.begin_free(()) as unit:
        assert unit.unsent_upstreams() == (("directory", "/in"),)
        unit.mark_sent("directory", "/in")
        assert unit.unsent_upstreams() == ()
    with applied.begin("ctr") as unit:
        unit.wake_source("ctr", "nightly")
        assert unit.unsent_upstreams() == (("directory", "/in"),)


def test_an_upstream_that_is_polled_needs_no_new_watch(applied, put, poll):
    put(watched())
    with applied.read() as unit:
        assert unit.stale_upstreams() == (("directory", "/in"),)
    poll("c1")
    with applied.read() as unit:
        assert unit.stale_upstreams() == ()
    later = datetime.now(UTC) + timedelta(hours=1)
    with applied.read() as unit:
        unit._now = lambda: later
        assert unit.stale_upstreams() == (("directory", "/in"),)


def test_retired_models_are_neither_listed_nor_watched(applied, put):
    put(watched())
    with applied.begin("ctr") as unit:
        unit.update_model("ctr", retired=True)
    with applied.read() as unit:
        assert unit.source_page().items == ()
        assert unit.watched_sources("directory", "/in") == ()
        assert unit.stale_upstreams() == ()


def test_lists_have_pages_by_model_and_name(applied, put, make):
    with applied.begin() as unit:
        unit.put_model(make.manifest("abc"), expected_version=None)
        unit.put_sources("abc", [watched("z"), watched("y")])
    put(watched("b"), watched("a"))
    found, after = [], None
    with applied.read() as unit:
        while True:
            page = unit.source_page(after=after, limit=1)
            found += [(source.model, source.name) for source in page.items]
            after = page.next
            if after is None:
                break
        assert [source.name for source in unit.source_page(model="ctr").items] == ["a", "b"]
    assert found == [("abc", "y"), ("abc", "z"), ("ctr", "a"), ("ctr", "b")]


def test_a_pushed_version_is_one_for_each_key(applied, put):
    put(watched())
    with applied.begin("ctr") as unit:
        first = unit.add_version("ctr", "nightly", version("k"))
        again = unit.add_version("ctr", "nightly", version("k"))
    assert first == again
    assert states(applied) == {"k": "found"}


def test_versions_are_counted_by_state(applied, put, poll):
    put(watched(), watched("empty"))
    poll("c1", version("a"), version("b"))
    with applied.begin_free(()) as unit:
        newest, _ = unit.pending_versions("ctr")
        unit.end_version(newest.ordinal, VersionState.SUPERSEDED)
        counts = unit.count_versions([("ctr", "nightly"), ("ctr", "empty")])
    assert counts == {("ctr", "nightly"): {"found": 1, "superseded": 1}, ("ctr", "empty"): {}}


def test_another_part_begins_anew(applied, put, poll):
    put(watched())
    poll("c1", version("a"))
    put(watched(part="sparse"))
    with applied.read() as unit:
        assert unit.source("ctr", "nightly").cursor == ""
        assert unit.pending_versions("ctr") == ()
    assert poll("c1", version("a")) == 1
    with applied.read() as unit:
        assert [found.part for found in unit.pending_versions("ctr")] == ["sparse"]


def test_another_owner_or_a_return_from_retirement_keeps_the_cursor_and_nothing_that_was_granted(applied, put, poll):
    put(watched(reach=Reach.ANY))
    poll("c1", version("a"))
    with applied.begin("ctr") as unit:
        unit.mark_sent("directory", "/in")
        unit.put_sources("ctr", [watched()], grants_end=True)
        found = unit.source("ctr", "nightly")
        assert (found.reach, found.cursor) == (Reach.OWNER, "c1")
        assert unit.unsent_upstreams() == (("directory", "/in"),)


def test_another_rule_judges_what_is_still_to_be_published(applied, put, poll):
    put(watched(promote={"tags": {"stage": "prod"}}))
    poll("c1", version("a", tags={"stage": "prod"}), version("b"))
    assert states(applied) == {"a": "found", "b": "held"}
    put(watched(promote={"tags": {"stage": "test"}}))
    assert states(applied) == {"a": "held", "b": "held"}
    put(watched())
    assert states(applied) == {"a": "found", "b": "found"}


def test_a_version_that_is_promoted_late_does_not_replace_a_newer_one(applied, put, poll):
    put(watched(promote={"tags": {"stage": "prod"}}))
    poll("c1", version("a"), version("b", tags={"stage": "prod"}))
    with applied.begin("ctr") as unit:
        (newest,) = unit.pending_versions("ctr")
        unit.end_version(newest.ordinal, VersionState.PUBLISHED)
        unit.supersede_versions(newest)
    poll("c2", version("a", tags={"stage": "prod"}))
    assert states(applied) == {"a": "superseded", "b": "published"}


def test_a_version_that_says_too_much_is_stored_without_its_long_labels(applied, put, poll):
    put(watched())
    many = {f"tag-{number}": "x" * 4000 for number in range(200)} | {"stage": "prod"}
    poll("c1", version("a", tags=many, metrics={"auc": 0.7}))
    with applied.read() as unit:
        (found,) = unit.pending_versions("ctr")
    assert (found.version.tags, found.version.metrics) == ({"stage": "prod"}, {"auc": 0.7})
