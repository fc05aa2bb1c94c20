"""The stage that is late, on both engines: training, pick-up, validation, a freeze, supply, a gate."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.freshness import ServingSnapshot
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.registry import GenerationState
from ipnext.model.registry.sources import FoundVersion, Listing, VersionState
from ipnext.store.operations.freshness import LATE, describe_lateness, find_late_stage
from ipnext.store.sources.sources import WatchedSource

T0 = datetime(2026, 12, 1, 10, 0, tzinfo=UTC)
SERVING = ServingSnapshot(
    model="ctr", part="dense", region="north", number=1, published_at=T0, since=T0, accounted_at=T0, target_seconds=60.0
)


@pytest.fixture
def late(applied, publish):
    """Snapshot 1 of dense serves; `late()` says what is late, `late.write(...)` writes in a unit of `ctr`."""
    publish("c1", dense="a", sparse="b")
    with applied.begin("ctr") as unit:
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
        unit.update_model("ctr", serving_generation=1)
        unit.update_change("c1", state=ChangeState.DONE)
        for kind in (ConditionType.RESOLVED, ConditionType.VALIDATED, ConditionType.PLANNED):
            unit.set_condition("ctr", kind, "True", Reason.SUCCEEDED)

    def call():
        with applied.read() as unit:
            found = find_late_stage(unit, SERVING)
        return LATE[found.reason], found.message

    def write(work):
        with applied.begin("ctr") as unit:
            work(unit)

    call.write = write
    return call


@pytest.fixture
def newer(late, publish):
    """Generation 2 with snapshot 2 of dense, whose change runs."""
    publish("c2", dense="c")
    late.write(lambda unit: unit.update_change("c2", state=ChangeState.RUNNING))
    return late


def source(late, *, name="nightly", **promote):
    spec = SourceSpec.model_validate({"name": name, "every": "5s", "directory": {"path": "/in"}, "promote": promote})
    watched = WatchedSource(spec=spec, part="dense", upstream="/in")
    late.write(lambda unit: unit.put_sources("ctr", [watched]))


def poll(late, *versions, at=None):
    def work(unit):
        unit._now = lambda: at or datetime.now(UTC)
        unit.note_listing(unit.source("ctr", "nightly"), Listing(cursor="c", versions=versions))

    late.write(work)


def version(key, **more):
    return FoundVersion(key=key, place=key, **more)


def test_training_is_late_if_nothing_newer_is_known(late):
    assert late() == ("training is late", "no newer snapshot was published")
    source(late)
    poll(late)
    assert late() == ("training is late", "no newer version is in the source nightly")


def test_training_is_late_once_the_newest_version_is_published(late):
    source(late)
    poll(late, version("v1"))
    late.write(lambda unit: unit.end_version(unit.newest_version("ctr", "nightly").ordinal, VersionState.PUBLISHED))
    assert late()[0] == "training is late"


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (lambda unit: unit.pause_source("ctr", "nightly", by="ann", reason="audit"), "paused by ann: audit"),
        (lambda unit: unit.note_failed_poll(unit.source("ctr", "nightly"), "no route"), "can't be polled: no route"),
    ],
)
def test_pick_up_is_late_if_the_source_is_not_polled(late, work, told):
    source(late)
    poll(late)
    late.write(work)
    stage, message = late()
    assert (stage, message) == ("pick-up is late", f"source nightly {message.removeprefix('source nightly ')}")
    assert message.endswith(told)


def test_pick_up_is_late_if_the_source_was_never_polled_or_its_watch_is_gone(late):
    source(late)
    assert late() == ("pick-up is late", "source nightly was not polled yet")
    poll(late, at=datetime.now(UTC) - timedelta(seconds=61))
    assert late()[0] == "pick-up is late"
    assert "was polled at" in late()[1]
    poll(late, version("v1"))
    late.write(lambda unit: unit.end_version(unit.newest_version("ctr", "nightly").ordinal, VersionState.SUPERSEDED))
    assert late()[0] == "training is late"


def test_pick_up_is_late_while_the_newest_version_is_held_found_or_refused(late):
    source(late, tags={"stage": "prod"})
    poll(late, version("v1"))
    stage, message = late()
    assert stage == "pick-up is late"
    assert message.startswith("version v1 of source nightly is held by its promotion rule: ")
    poll(late, version("v1"), version("v2", tags={"stage": "prod"}))
    assert late() == ("pick-up is late", "version v2 of source nightly is found and not published yet")
    late.write(
        lambda unit: unit.end_version(
            unit.newest_version("ctr", "nightly").ordinal, VersionState.REFUSED, "bad manifest"
        )
    )
    assert late() == ("pick-up is late", "version v2 of source nightly is refused: bad manifest")


def test_versions_of_another_part_do_not_count(late):
    spec = SourceSpec.model_validate({"name": "other", "directory": {"path": "/in"}})
    late.write(lambda unit: unit.put_sources("ctr", [WatchedSource(spec=spec, part="sparse", upstream="/in")]))
    assert late() == ("training is late", "no newer snapshot was published")


def test_a_publish_that_has_not_begun_is_not_picked_up(late, publish):
    publish("c2", dense="c")
    assert late() == ("pick-up is late", "publish c2 of generation 2 is recorded and has not begun")


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        (ConditionType.RESOLVED, "validation is late"),
        (ConditionType.VALIDATED, "validation is late"),
        (ConditionType.PLANNED, "supply is late"),
        (ConditionType.CAPACITY_READY, "supply is late"),
        (ConditionType.ROUTES_READY, "a gate holds it back"),
    ],
)
def test_the_step_under_way_is_late(newer, kind, stage):
    newer.write(lambda unit: unit.set_condition("ctr", kind, "False", Reason.PROGRESSING, "3 of 4"))
    assert newer()[0] == stage
    assert newer()[1].startswith("publish c2 of generation 2, step ")
    assert newer()[1].endswith(": 3 of 4")


def test_replicas_come_before_traffic(newer):
    assert newer() == ("supply is late", "publish c2 of generation 2 brings up its replicas")
    shares = tuple(RouteShare(to="north", generation=number, fraction=0.5) for number in (1, 2))
    table = RouteTable(model="ctr", region="north", revision=1, shares=shares, served=())
    newer.write(lambda unit: unit.put_route(table))
    assert newer() == ("a gate holds it back", "publish c2 of generation 2 moves the traffic wave by wave")


def test_a_freeze_is_late(newer):
    newer.write(
        lambda unit: unit.update_change(
            "c2", state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen until 18:00"
        )
    )
    assert newer() == ("a freeze holds it back", "publish c2 of generation 2 is frozen until 18:00")


@pytest.mark.parametrize(
    ("reason", "stage"),
    [
        (Reason.PAUSED, "a gate holds it back"),
        (Reason.AWAITING_APPROVAL, "a gate holds it back"),
        (Reason.FROZEN, "a freeze holds it back"),
    ],
)
def test_what_holds_the_changes_is_late(newer, reason, stage):
    newer.write(lambda unit: unit.set_condition("ctr", ConditionType.PROGRESSING, "False", reason, "by ann"))
    assert newer() == (stage, f"publish c2 of generation 2 is held: {reason}: by ann")


def test_a_publish_behind_another_change_waits_for_that(newer, applied, make):
    newer.write(lambda unit: unit.update_change("c2", state=ChangeState.DONE))
    with applied.begin("ctr") as unit:
        unit.add_change("ctr", ChangeKind.APPLY, change_id="a3")
        unit.update_change("a3", state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen until 18:00")
        unit.publish("ctr", {"dense": make.source("d")}, change_id="c4")
    assert newer() == ("a freeze holds it back", "generation 3 waits for apply a3 is frozen until 18:00")


@pytest.mark.parametrize(
    ("state", "reason", "stage"),
    [
        (GenerationState.REFUSED, Reason.SCHEMA_MISMATCH, "validation is late"),
        (GenerationState.REFUSED, Reason.ARTIFACT_MISSING, "validation is late"),
        (GenerationState.REFUSED, Reason.NO_CAPACITY, "supply is late"),
        (GenerationState.REFUSED, Reason.OVER_BUDGET, "supply is late"),
        (GenerationState.FAILED, Reason.OUT_OF_MEMORY, "supply is late"),
        (GenerationState.FAILED, Reason.GATE_FAILED, "a gate holds it back"),
        (GenerationState.FAILED, Reason.ABORTED, "a gate holds it back"),
        (GenerationState.REFUSED, Reason.FROZEN, "a freeze holds it back"),
        (GenerationState.FAILED, Reason.DEADLINE_EXCEEDED, "a gate holds it back"),
    ],
)
def test_a_failed_generation_tells_by_its_reason(newer, state, reason, stage):
    def work(unit):
        unit.set_generation_state("ctr", 2, state, reason=reason, message="why")
        unit.update_change("c2", state=ChangeState.REFUSED, reason=reason)

    newer.write(work)
    assert newer() == (stage, f"generation 2 ended as {state}: {reason}: why")


def test_a_deadline_of_the_capacity_is_one_of_supply(newer):
    def work(unit):
        unit.set_generation_state("ctr", 2, GenerationState.FAILED, reason=Reason.DEADLINE_EXCEEDED)
        unit.update_change("c2", state=ChangeState.ROLLED_BACK, reason=Reason.DEADLINE_EXCEEDED)
        unit.set_condition("ctr", ConditionType.CAPACITY_READY, "False", Reason.DEADLINE_EXCEEDED)

    newer.write(work)
    assert newer()[0] == "supply is late"


def test_a_rollback_is_a_gate(newer):
    def work(unit):
        unit.set_generation_state("ctr", 2, GenerationState.SERVING)
        unit.set_generation_state("ctr", 1, GenerationState.SERVING)
        unit.update_change("c2", state=ChangeState.DONE)

    newer.write(work)
    assert newer() == ("a gate holds it back", "generation 2 was rolled back to generation 1")


def test_users_that_are_left_on_an_older_generation_wait_for_supply(newer):
    def work(unit):
        unit.set_generation_state("ctr", 2, GenerationState.SERVING)
        unit.update_model("ctr", serving_generation=2)
        unit.update_change("c2", state=ChangeState.DONE)

    newer.write(work)
    assert newer() == ("supply is late", "generation 2 serves, but the users of north are sent to an older one")


def test_a_superseded_generation_counts_only_if_there_is_no_other(newer, publish):
    publish("c3", dense="d")

    def work(unit):
        unit.set_generation_state("ctr", 2, GenerationState.SUPERSEDED)
        unit.set_generation_state("ctr", 3, GenerationState.REFUSED, reason=Reason.SCHEMA_MISMATCH)
        for change in ("c2", "c3"):
            unit.update_change(change, state=ChangeState.SUPERSEDED)

    newer.write(work)
    assert newer() == ("validation is late", "generation 3 ended as refused: SchemaMismatch")


def test_the_text_names_snapshot_age_and_stage(late, applied):
    with applied.read() as unit:
        stage = find_late_stage(unit, SERVING)
    assert describe_lateness(SERVING, stage) == (
        "dense in north: snapshot 1 was published at 2026-12-01 10:00:00 UTC, more than 60 s ago; "
        "training is late: no newer snapshot was published"
    )
    assert "was trained at" in describe_lateness(SERVING.model_copy(update={"trained_at": T0}), stage)
