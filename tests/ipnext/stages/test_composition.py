"""The order of a change's stages: the default one, changed by entries of the platform and of a manifest."""

import pytest
from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.stages import DEFAULT_STAGES
from ipnext.model.manifest.stages import MOST_SETTINGS_BYTES, PlatformStageEntry, StageEntry
from ipnext.stages.composition import check_entries, compose

AUDIT = {"stage": "audit", "after": "validation"}


def order(kind, *own, platform=(), optimizes=False):
    entries = [StageEntry.model_validate(each) for each in own]
    of_all = [PlatformStageEntry.model_validate(each) for each in platform]
    return [stage.name for stage in compose(ChangeKind(kind), of_all, entries, optimizes=optimizes)]


def refused(*own, platform=(), optimizes=False):
    with pytest.raises(InvalidInput) as error:
        check_entries(
            [PlatformStageEntry.model_validate(each) for each in platform],
            [StageEntry.model_validate(each) for each in own],
            optimizes=optimizes,
        )
    return error.value


@pytest.mark.parametrize("kind", ChangeKind)
def test_without_entries_each_kind_has_its_default_order(kind):
    assert tuple(order(kind)) == DEFAULT_STAGES[kind]


@pytest.mark.parametrize(
    ("entry", "publish"),
    [
        (AUDIT, "metadata validation audit optimization freeze planning transition"),
        ({"stage": "audit", "before": "freeze"}, "metadata validation optimization audit freeze planning transition"),
        (
            {"stage": "audit", "before": "transition"},
            "metadata validation optimization freeze planning audit transition",
        ),
        ({"stage": "audit", "replaces": "optimization"}, "metadata validation audit freeze planning transition"),
        ({"leaveOut": "optimization"}, "metadata validation freeze planning transition"),
    ],
)
def test_an_entry_inserts_replaces_or_leaves_out(entry, publish):
    assert order("publish", entry) == publish.split()


def test_an_entry_is_for_the_kinds_that_it_names_publishes_and_applies_by_default():
    for kind, has_it in {"publish": True, "apply": True, "move": False}.items():
        assert ("audit" in order(kind, AUDIT)) is has_it
    moves = {"stage": "audit", "after": "freeze", "changes": ["move"]}
    assert order("move", moves) == ["freeze", "audit", "transition"]
    assert order("publish", moves) == list(DEFAULT_STAGES[ChangeKind.PUBLISH])


def test_entries_apply_one_after_another():
    second = {"stage": "notify", "after": "audit"}
    assert order("publish", AUDIT, second)[:4] == ["metadata", "validation", "audit", "notify"]
    error = refused(second, AUDIT)
    assert (error.field, error.value) == ("spec.lifecycle.0.after", "audit")
    assert error.allowed == ("validation", "optimization", "freeze", "planning")


@pytest.mark.parametrize("stage", ["metadata", "validation", "freeze", "planning", "transition"])
@pytest.mark.parametrize("how", [{"leaveOut": "?"}, {"stage": "audit", "replaces": "?"}])
def test_a_safety_critical_stage_stays(stage, how):
    entry = {key: stage if value == "?" else value for key, value in how.items()}
    for error in (refused(entry), refused(platform=[entry])):
        assert error.value == stage
        assert error.allowed == ("optimization",)
        assert f"{stage!r} is safety-critical and stays; allowed: optimization" in error.message
    assert refused(entry).field == f"spec.lifecycle.0.{next(key for key in entry if key != 'stage')}"


def test_a_move_has_nothing_to_leave_out():
    error = refused({"leaveOut": "freeze", "changes": ["move"]})
    assert "is safety-critical and stays; allowed: none" in error.message


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"stage": "audit", "before": "metadata"}, "before"),
        ({"stage": "audit", "before": "validation"}, "before"),
        ({"stage": "audit", "after": "metadata"}, "after"),
        ({"stage": "audit", "after": "transition"}, "after"),
        ({"stage": "audit", "after": "transition", "changes": ["move"]}, "after"),
    ],
)
def test_no_stage_comes_before_validation_or_after_traffic_moved(entry, field):
    error = refused(entry)
    assert error.field == f"spec.lifecycle.0.{field}"
    assert "after metadata and validation, before any traffic moves" in error.message
    assert error.value not in error.allowed


@pytest.mark.parametrize(
    "entry",
    [
        {"stage": "shadow", "after": "freeze"},
        {"stage": "shadow", "replaces": "optimization"},
        {"stage": "shadow", "before": "transition", "changes": ["move"]},
    ],
)
def test_a_shadow_comes_after_the_plan_of_its_replicas(entry):
    error = refused(entry)
    assert "shadow comes after planning, which plans its replicas" in error.message
    assert order("publish", {"stage": "shadow", "after": "planning"})[-2:] == ["shadow", "transition"]


def test_an_anchor_that_a_kind_lacks_is_refused_with_those_that_it_has():
    error = refused({"stage": "audit", "after": "validation", "changes": ["publish", "move"]})
    assert "'validation' is no stage of a change of kind move; allowed: freeze" in error.message


def test_a_stage_stands_once():
    error = refused(AUDIT, {"stage": "audit", "before": "freeze"})
    assert (error.field, error.value) == ("spec.lifecycle.1.stage", "audit")


def test_entries_of_the_platform_come_first_and_required_ones_stay():
    error = refused({"leaveOut": "audit"}, platform=[AUDIT])
    assert "'audit' is required by the platform and stays; allowed: optimization" in error.message
    free = {**AUDIT, "required": False}
    assert "audit" not in order("publish", {"leaveOut": "audit"}, platform=[free])
    after = {"stage": "own", "after": "audit"}
    assert order("publish", after, platform=[AUDIT])[2:4] == ["audit", "own"]
    assert "audit" not in order("publish", platform=[AUDIT, {"leaveOut": "audit"}])


def test_a_model_with_a_split_or_steps_needs_its_optimization():
    error = refused({"leaveOut": "optimization"}, optimizes=True)
    assert (
        "carries out spec.split or spec.optimization, which the manifest has, and stays; allowed: none" in error.message
    )
    for entry in ({"leaveOut": "optimization"}, {"stage": "audit", "replaces": "optimization"}):
        assert "optimization" in order("publish", platform=[entry], optimizes=True)
        assert "optimization" not in order("publish", platform=[entry])
    replaces = {"stage": "audit", "replaces": "optimization"}
    assert order("publish", platform=[replaces], optimizes=True)[2:4] == ["optimization", "audit"]


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({}, "exactly one of stage, leaveOut; got none"),
        ({"stage": "a", "leaveOut": "b"}, "exactly one of stage, leaveOut; got both"),
        ({"stage": "a"}, "exactly one of after, before, replaces; got none"),
        ({"stage": "a", "after": "b", "before": "c"}, "exactly one of after, before, replaces; got after and before"),
        ({"leaveOut": "a", "after": "b"}, "leaveOut: goes with changes only; got after"),
        ({"leaveOut": "a", "settings": {"b": 1}}, "leaveOut: goes with changes only; got settings"),
        ({**AUDIT, "changes": []}, "changes"),
        ({**AUDIT, "changes": ["publish", "publish"]}, "each kind may stand once"),
        ({**AUDIT, "changes": ["rollback"]}, "'publish', 'apply' or 'move'"),
        ({**AUDIT, "changes": ["repair"]}, "'publish', 'apply' or 'move'"),
        ({**AUDIT, "changes": ["retire"]}, "'publish', 'apply' or 'move'"),
        ({**AUDIT, "settings": {"a": "b" * MOST_SETTINGS_BYTES}}, "bytes of JSON; allowed: 16384"),
        ({**AUDIT, "settings": {"a": float("nan")}}, "a value that JSON can't carry"),
        ({**AUDIT, "settings": {"a": object()}}, "a value that JSON can't carry"),
        ({**AUDIT, "required": False}, "required"),
    ],
)
def test_an_entry_says_one_thing(entry, told):
    with pytest.raises(ValidationError, match=r"(?s).") as error:
        StageEntry.model_validate(entry)
    assert told in str(error.value)


def test_an_entry_is_written_without_what_it_leaves_out():
    written = StageEntry.model_validate(AUDIT).model_dump(mode="json", by_alias=True)
    assert written == {**AUDIT, "changes": ["publish", "apply"]}
