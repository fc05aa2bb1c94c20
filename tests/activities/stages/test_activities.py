"""Before and after a stage: what it is given, and what becomes of whatever it answers."""

import pytest

from activities.metadata.activities import MetadataActivities
from activities.stages.activities import StageActivities
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import ProgressInput, StageInput
from ipnext.model.lifecycle.failure_cause import cause_in
from ipnext.model.lifecycle.stages import LONGEST_MESSAGE, MOST_EVIDENCE_BYTES, StageAsked, StageEnded
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.stages import PlatformStageEntry
from ipnext.model.registry.optimization import Derivatives
from ipnext.stages.kinds import StageKinds


@pytest.fixture
def change(house):
    house.apply("ranker")
    return house.publish("ranker", 1, change_id="first")


@pytest.fixture
def stage(change):
    return StageInput(model="ranker", change_id=change.id, kind=change.kind, generation=1)


@pytest.fixture
def activities(house):
    return StageActivities(house.store)


@pytest.fixture
def record(activities, stage):
    def ended(answer=None, **more):
        return activities.record_stage(
            StageEnded(**dict(stage), name="audit", source="acme 1.0", answer=answer).model_copy(update=more)
        )

    return ended


@pytest.fixture
def kept(house):
    def read():
        with house.store.read() as repository:
            report, events = repository.report("ranker", 1), repository.events("ranker", limit=50)
        return report, [event for event in events if event.kind == "StageEnded"]

    return read


def test_a_stage_is_given_the_snapshots_of_its_generation_by_part(house, activities, stage):
    request = activities.begin_stage(StageAsked(**dict(stage), name="audit", settings={"limit": 1}))
    assert (request.format, request.stage, request.kind) == ("ipnext/stage/v1", "audit", ChangeKind.PUBLISH)
    assert (request.generation, request.serving_generation, request.serving) == (1, None, {})
    with house.store.read() as repository:
        stored = repository.snapshot("ranker", "dense", 1)
    dense = request.snapshots["dense"]
    assert (dense.digest, dense.uri, dense.size_bytes) == (stored.digest, stored.uri, stored.manifest.size_bytes)
    assert dense.published == 1
    shown = house.condition("ranker", ConditionType.VALIDATED)
    assert (shown.status, shown.message) == ("Unknown", "generation 1: stage audit")


def test_a_stage_is_given_the_snapshots_of_single_hardware_kinds_beside_the_others(house, kit, activities, stage):
    with house.store.begin("ranker") as repository:
        published = repository.snapshot("ranker", "dense", 1)
        other = repository.add_segment("ranker", "dense", house.source(kit.DENSE, kit.weights(7)))
        derived = Derivatives(steps="0" * 64, by_hardware={"small": {"dense": other.number}})
        repository.set_derived("ranker", 1, derived)
    dense = activities.begin_stage(StageAsked(**dict(stage), name="audit", settings={})).snapshots["dense"]
    assert (dense.digest, dense.by_hardware["small"].digest) == (published.digest, other.digest)
    assert dense.by_hardware.keys() == {"small"}


def test_evidence_goes_into_the_report_the_condition_and_an_event_once(house, record, kept):
    for _ in range(2):
        judged = record({"passed": False, "message": "too wide", "evidence": {"gap": 0.3}}, duration_seconds=2.5)
    assert (judged.reason, judged.message) == (Reason.STAGE_REFUSED, "stage audit: too wide")
    report, (event,) = kept()
    (check,) = report.checks
    assert (check.check, check.evidence, check.duration_seconds) == ("stage.audit", {"gap": 0.3}, 2.5)
    assert event.message == "publish first: stage audit refused: too wide"
    assert event.detail["evidence"] == {"gap": 0.3}
    assert cause_in(event.detail).place.step == "stage audit"
    assert house.condition("ranker", ConditionType.VALIDATED).reason is Reason.STAGE_REFUSED
    with house.store.read() as repository:
        assert repository.model("ranker").refused_generation == 1, "replans keep to the former manifest"


def test_a_stage_that_passes_restores_the_condition(house, record, kept):
    assert record({"passed": True, "a_later_field": 1}).passed
    shown = house.condition("ranker", ConditionType.VALIDATED)
    assert (shown.status, shown.message) == ("True", "generation 1: stage audit passed")
    assert cause_in(kept()[1][0].detail) is None


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "its answer is None; needed: passed (true or false), message (text) and evidence (an object)"),
        ("yes", "its answer is 'yes'; needed: "),
        ({"passed": "yes"}, "its answer is {'passed': 'yes'}; needed: passed (true or false)"),
        ({"passed": 1}, "its answer is {'passed': 1}; needed: passed (true or false)"),
        ({"passed": "perhaps"}, "its answer is {'passed': 'perhaps'}; needed: "),
        ({"passed": True, "evidence": [1]}, "needed: "),
        ({"passed": True, "evidence": {"a": float("nan")}}, "JSON can't carry"),
        ({"passed": True, "evidence": {"a": "b" * MOST_EVIDENCE_BYTES}}, "bytes of JSON; allowed: 16384"),
    ],
)
def test_an_answer_that_is_none_is_a_failure_of_the_stage(record, answer, told):
    judged = record(answer)
    assert (judged.passed, judged.reason) == (False, Reason.STAGE_FAILED)
    assert told in judged.message


def test_a_long_message_is_cut(record):
    judged = record({"passed": False, "message": "a" * 10_000})
    assert len(judged.message) == LONGEST_MESSAGE + len("stage audit: ")


def test_a_stage_of_a_move_leaves_the_validation_alone(house, activities, stage, kept):
    before = house.condition("ranker", ConditionType.VALIDATED) if _has_validated(house) else None
    moving = stage.model_copy(update={"kind": ChangeKind.MOVE})
    activities.begin_stage(StageAsked(**dict(moving), name="audit"))
    activities.record_stage(StageEnded(**dict(moving), name="audit", answer={"passed": False}))
    report, (event,) = kept()
    assert report is None
    assert event.message == "move first: stage audit refused: it refused, and gave no message"
    assert (house.condition("ranker", ConditionType.VALIDATED) if _has_validated(house) else None) == before


def _has_validated(house):
    with house.store.read() as repository:
        return any(each.type is ConditionType.VALIDATED for each in repository.conditions("ranker"))


def test_the_order_is_part_of_the_answer_that_begins_a_change(house, change):
    lacking = PlatformStageEntry.model_validate({"stage": "audit", "after": "validation"})
    progress = ProgressInput(model="ranker", change_id=change.id, stage="begin", run_id="run")

    def begun(*platform):
        return MetadataActivities(house.store, house.artifacts, StageKinds(platform)).begin_change(progress)

    assert begun().stages is None
    named = begun(lacking)
    assert [each.name for each in named.stages][1:3] == ["validation", "audit"]
    assert "no stage 'audit' is installed here" in named.stages[2].lacking
    house.apply("ranker", lifecycle=[{"stage": "audit", "after": "gone"}])
    assert "'gone' is no stage of a change of kind publish" in begun().misfit
