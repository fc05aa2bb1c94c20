"""Retention of snapshots on both engines: what goes by age and count, what is needed, and holds."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from ipnext.errors import Conflict, InvalidInput, NotFound
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.manifest.retention import RetentionSpec
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.registry import GenerationState
from ipnext.model.registry.retention import Keep, SnapshotKeep, SnapshotRule
from ipnext.model.registry.sources import FoundVersion
from ipnext.store.sources.sources import WatchedSource

NOW = datetime.now(UTC)
LATER = timedelta(days=400)
KEEP = SnapshotKeep(Keep(2, timedelta(days=30)), 1)


def chosen(store, *, after=LATER, keep=KEEP, models=("ctr",)):
    """Snapshots of the model that nothing needs, as if so much time had passed, with the reason."""
    rule = SnapshotRule(datetime.now(UTC) + after, timedelta(days=7), timedelta(days=30))
    with store.read() as unit:
        return unit.unneeded_snapshots(models, rule, keep)


def unneeded(store, **given):
    found = chosen(store, **given).get("ctr")
    return {one.line.key for one in found.found} if found else set()


def end(store, number, state, *, served=False):
    """The end of a generation, and of its change."""
    with store.begin("ctr") as unit:
        if served:
            unit.set_generation_state("ctr", number, GenerationState.SERVING)
        unit.set_generation_state("ctr", number, state)
        for change in unit.changes("ctr"):
            if change.generation == number:
                unit.update_change(change.id, state=ChangeState.DONE)


@pytest.fixture
def served(applied, publish):
    """A model of six generations that have served, of which the last one serves; sparse has one snapshot."""
    publish("c1", dense="a1", sparse="s")
    for number in range(2, 7):
        publish(f"c{number}", dense=f"a{number}")
    for number in range(1, 6):
        end(applied, number, GenerationState.RETIRED, served=True)
    end(applied, 6, GenerationState.SERVING)
    with applied.begin("ctr") as unit:
        unit.update_model("ctr", serving_generation=6)
    return applied


def dense(numbers: Iterable[int]) -> set[tuple[str, int]]:
    return {("dense", number) for number in numbers}


def test_snapshots_beyond_age_and_count_go(served):
    assert unneeded(served) == dense([1, 2, 3, 4])
    assert unneeded(served, after=timedelta(days=29)) == set()
    assert unneeded(served, keep=SnapshotKeep(Keep(5, timedelta(days=30)), 1)) == dense([1])
    reasons = {one.reason for one in chosen(served)["ctr"].found}
    assert reasons == {"older than 30 d, and not among the newest 2"}


def test_snapshots_of_generations_to_roll_back_to_stay(served):
    assert unneeded(served, keep=SnapshotKeep(Keep(1, timedelta(days=30)), 4)) == dense([1, 2])


def test_the_age_begins_when_a_snapshot_last_began_to_serve(served):
    with served.begin("ctr") as unit:
        unit._now = lambda: datetime.now(UTC) + timedelta(days=390)
        unit.set_generation_state("ctr", 2, GenerationState.SERVING)
        unit.set_generation_state("ctr", 2, GenerationState.RETIRED)
    assert unneeded(served) == dense([1, 3, 4])


def test_a_model_s_own_retention_comes_first(served, make):
    manifest = make.manifest()
    for given, gone in (
        ({"snapshots": {"count": 4}}, [1, 2]),
        ({"snapshots": {"age": "800d"}}, []),
        ({"rollbacks": 3}, [1, 2, 3]),
    ):
        spec = manifest.spec.model_copy(update={"retention": RetentionSpec.model_validate(given)})
        with served.begin("ctr") as unit:
            unit.put_model(manifest.model_copy(update={"spec": spec}), expected_version=None)
        assert unneeded(served) == dense(gone), given


def test_only_snapshots_that_no_generation_can_serve_go_early(applied, publish):
    publish("c1", dense="a", sparse="a")
    publish("c2", dense="b")
    publish("c3", dense="c")
    publish("c4", dense="d")
    early = {"after": timedelta(days=8)}
    assert unneeded(applied, **early) == set()
    end(applied, 1, GenerationState.RETIRED, served=True)
    end(applied, 2, GenerationState.FAILED)
    end(applied, 3, GenerationState.FAILED, served=True)
    end(applied, 4, GenerationState.REFUSED)
    assert unneeded(applied, **early) == {("dense", 2)}  # 4 is the newest of its part; 1 and 3 have served
    assert unneeded(applied, after=timedelta(days=6)) == set()


def test_the_parents_of_a_kept_delta_stay_and_go_with_it(applied, make):
    first = make.source("a")
    second = make.delta("b", parent=first.manifest.digest)
    third = make.delta("c", parent=second.manifest.digest)
    with applied.begin("ctr") as unit:
        unit.publish("ctr", {"dense": first, "sparse": make.source("s")}, change_id="c1")
        for number, source in enumerate((second, third, make.source("d"), make.source("e"), make.source("f")), 2):
            unit.publish("ctr", {"dense": source}, change_id=f"c{number}")
    for number in range(1, 6):
        end(applied, number, GenerationState.RETIRED, served=True)
    end(applied, 6, GenerationState.SERVING)
    assert unneeded(applied, keep=SnapshotKeep(Keep(4, timedelta(days=30)), 1)) == set()
    assert unneeded(applied) == dense([1, 2, 3, 4])
    hold(applied, 3)
    assert unneeded(applied) == dense([4])


def test_a_snapshot_that_was_trained_on_from_another_one_does_not_keep_it(served, make):
    source = make.source("z")
    manifest = source.manifest.model_copy(update={"parent": make.source("a1").manifest.digest})
    with served.begin("ctr") as unit:
        unit.publish("ctr", {"dense": source.model_copy(update={"manifest": manifest})}, change_id="c7")
    assert ("dense", 1) in unneeded(served)


def hold(store, number, **more):
    with store.begin("ctr") as unit:
        return unit.hold_snapshot("ctr", "dense", number, by="alice", reason="audit", **more)


def test_a_held_snapshot_stays_until_its_hold_is_released(served):
    hold(served, 1)
    assert unneeded(served) == dense([2, 3, 4])
    with served.begin("ctr") as unit:
        assert unit.hold_page().items[0].reason == "audit"
        unit.release_hold("ctr", "dense", 1)
        with pytest.raises(NotFound, match="is not held"):
            unit.release_hold("ctr", "dense", 1)
        assert unit.hold_page().items == ()
    assert unneeded(served) == dense([1, 2, 3, 4])


def test_holds_are_listed_in_pages(served):
    for number in (1, 2, 3):
        hold(served, number)
    with served.read() as unit:
        first = unit.hold_page(limit=2)
        assert [one.number for one in first.items] == [1, 2]
        assert [one.number for one in unit.hold_page(after=first.next).items] == [3]
        assert unit.hold_page(model="other").items == ()
        with pytest.raises(InvalidInput, match="is no cursor"):
            unit.hold_page(after="x")


def test_what_is_deployed_or_routed_stays(served):
    key = DeploymentKey(model="ctr", part="dense", region="north", hardware="cpu")
    held = AssignedSnapshot(snapshot=1, digest="0" * 64, uri="file:///x", generations=(1,))
    with served.begin("ctr") as unit:
        unit.put_deployment(Deployment(key=key, replicas=0, engine="torch", units=1, qps=1, holds=(held,)))
        shares = (RouteShare(to="north", generation=2, fraction=1.0),)
        unit.put_route(RouteTable(model="ctr", region="north", revision=1, shares=shares, served=()))
    assert unneeded(served) == dense([3, 4])


def test_what_a_waiting_rollback_goes_to_stays(served):
    with served.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.ROLLBACK, change_id="back", generation=2)
    assert unneeded(served) == dense([1, 3, 4])
    with served.begin("ctr") as unit:
        unit.update_change("back", state=ChangeState.ROLLED_BACK)
    assert unneeded(served) == dense([1, 2, 3, 4])


@pytest.mark.parametrize("rule", [{}, {"tags": {"stage": "prod"}}], ids=["found", "held"])
def test_what_a_version_of_a_source_brings_and_builds_on_stays(served, make, rule):
    spec = SourceSpec.model_validate({"name": "feed", "part": "dense", "push": {}, "promote": rule})
    place = f"file:///store/snapshots/{make.source('a1').manifest.digest}"
    with served.begin("ctr") as unit:
        unit.put_sources("ctr", [WatchedSource(spec=spec, part="dense", upstream="ctr")])
        unit.add_version("ctr", "feed", FoundVersion(key="1", place=place), parent=make.source("a2").manifest.digest)
        unit.pause_source("ctr", "feed", by="bob", reason="x")
        assert make.source("a1").manifest.digest in unit.waiting_digests()
    assert unneeded(served) == dense([3, 4])


def test_all_of_a_retired_model_goes_once_it_has_been_so_for_long_but_for_what_is_held(served):
    with served.begin("ctr") as unit:
        unit.set_generation_state("ctr", 6, GenerationState.RETIRED)
        unit.update_model("ctr", retired=True, serving_generation=None)
    hold(served, 2)
    keep = SnapshotKeep(KEEP.snapshots, 0)
    assert unneeded(served, after=timedelta(days=29), keep=keep) == set()
    assert unneeded(served, after=timedelta(days=31), keep=keep) == {*dense([1, 3, 4, 5, 6]), ("sparse", 1)}


def test_a_retired_model_of_one_snapshot_of_each_part_is_looked_at(applied, publish):
    publish("c1", dense="a", sparse="b")
    end(applied, 1, GenerationState.RETIRED)
    with applied.begin("ctr") as unit:
        unit.update_model("ctr", retired=True)
    assert unneeded(applied, after=timedelta(days=31)) == {("dense", 1), ("sparse", 1)}


def release(store, found):
    with store.begin("ctr") as unit:
        return {one.line.key for _, one in unit.release_unneeded(found, KEEP)}


def gone(store):
    with store.read() as unit:
        return unit.collected_snapshots("ctr")


def test_what_came_to_be_needed_since_it_was_read_is_not_released(served, make):
    found = chosen(served)
    hold(served, 1)
    with served.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.ROLLBACK, change_id="back", generation=2)
        unit.publish("ctr", {"dense": make.delta("d", parent=make.source("a3").manifest.digest)}, change_id="c7")
    assert release(served, found) == dense([4]) == gone(served)
    assert release(served, found) == set()


def test_nothing_is_released_by_a_retention_that_was_replaced(served, make):
    found = chosen(served)
    manifest = make.manifest()
    spec = manifest.spec.model_copy(update={"retention": RetentionSpec.model_validate({"snapshots": {"count": 9}})})
    with served.begin("ctr") as unit:
        unit.put_model(manifest.model_copy(update={"spec": spec}), expected_version=None)
    assert release(served, found) == set()


def test_a_snapshot_that_nothing_needs_is_deleted_at_once(served):
    with served.begin("ctr") as unit:
        unit.delete_snapshot("ctr", "dense", 1, keep=KEEP)
        with pytest.raises(Conflict, match="was deleted before"):
            unit.delete_snapshot("ctr", "dense", 1, keep=KEEP)
        with pytest.raises(Conflict, match="was collected: publish it again"):
            unit.hold_snapshot("ctr", "dense", 1, by="alice", reason="x")
    assert gone(served) == dense([1])


@pytest.mark.parametrize(
    ("number", "reason"),
    [(6, "generation 6 is serving"), (5, "generation 5 can be rolled back to"), (1, "held by alice: audit")],
)
def test_a_snapshot_that_is_needed_is_not_deleted(served, number, reason):
    hold(served, 1)
    with served.begin("ctr") as unit, pytest.raises(Conflict, match=reason):
        unit.delete_snapshot("ctr", "dense", number, keep=SnapshotKeep(KEEP.snapshots, 2))


def test_neither_the_newest_of_a_part_nor_the_parent_of_a_delta_is_deleted(applied, make):
    parent = make.source("a")
    with applied.begin("ctr") as unit:
        unit.publish("ctr", {"dense": parent, "sparse": make.source("s")}, change_id="c1")
        unit.publish("ctr", {"dense": make.delta("b", parent=parent.manifest.digest)}, change_id="c2")
    for number in (1, 2):
        end(applied, number, GenerationState.REFUSED)
    with applied.begin("ctr") as unit:
        with pytest.raises(Conflict, match="it is the newest of its part"):
            unit.delete_snapshot("ctr", "dense", 2, keep=KEEP)
        with pytest.raises(Conflict, match="snapshot 2 is a delta of it"):
            unit.delete_snapshot("ctr", "dense", 1, keep=KEEP)


def test_a_delta_of_a_snapshot_without_its_bytes_is_refused(served, make):
    with served.begin("ctr") as unit:
        unit.release_snapshots("ctr", [("dense", 1)])
    delta = make.delta("d", parent=make.source("a1").manifest.digest)
    with served.begin("ctr") as unit, pytest.raises(InvalidInput, match=r"which ctr\.dense does not have"):
        unit.publish("ctr", {"dense": delta}, change_id="c7")
