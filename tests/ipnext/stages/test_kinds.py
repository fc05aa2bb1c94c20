"""Stages of other distributions: found by entry points, refused alone, checked at an apply, run as they say."""

import json

import pytest
import structlog
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.stages import PlatformStageEntry
from ipnext.settings import platform_settings
from ipnext.stages.kinds import StageKinds
from tests.plugin_packages import write_distribution

CODE = """
from datetime import timedelta

from temporalio import activity, workflow

from ipnext.stages.port import Stage, StageAnswer, StageRequest


@activity.defn(name="stage.audit")
def audit(request: StageRequest) -> StageAnswer:
    return StageAnswer(passed=True)


@activity.defn(name="audit")
def misnamed(request: StageRequest) -> StageAnswer:
    return StageAnswer(passed=True)


@workflow.defn(name="stage.review", sandboxed=False)
class Review:
    @workflow.run
    async def run(self, request: StageRequest) -> StageAnswer:
        return StageAnswer(passed=True)


def check(settings):
    if not settings.get("limit", 0) > 0:
        raise ValueError("limit: has to be above 0")


hour, week = timedelta(hours=1), timedelta(weeks=100)
good = Stage(
    name="audit", activity=audit, check=check, start_to_close=timedelta(minutes=5), heartbeat=timedelta(seconds=20)
)
review = Stage(name="review", workflow=Review, schedule_to_close=timedelta(days=3))
elsewhere = Stage(name="elsewhere", activity="stage.elsewhere", queue="acme")
again = Stage(name="audit", activity=audit)
both = Stage(name="both", activity=audit, workflow=Review)
wrong = Stage(name="wrong", activity=misnamed)
nameless = Stage(name="Audit!", activity=audit)
absent = Stage(name="absent", activity="stage.absent")
long = Stage(name="audit", activity=audit, schedule_to_close=week)
often = Stage(name="audit", activity=audit, attempts=0)
slow = Stage(name="audit", activity=audit, start_to_close=timedelta(hours=2))
inner = Stage(name="freeze", activity="stage.freeze", queue="acme")
plain = {"name": "audit"}
"""

REFUSED = {
    "again": "the name 'audit' is taken by acme_stages 1.0 (acme_stages:good)",
    "both": "a stage has exactly one of activity and workflow",
    "wrong": "its activity has the name 'audit'; needed: 'stage.wrong'",
    "nameless": "the name 'Audit!' is not of lower case letters, digits and dashes",
    "absent": "without a queue of its own the function, or the class, has to be given, not its name",
    "long": "schedule_to_close is 700 days, 0:00:00; allowed: up to 30 days",
    "often": "attempts: 0; allowed: 1 to 1000",
    "slow": "start_to_close and heartbeat are above 0 and at most schedule_to_close",
    "inner": "the name 'freeze' is taken by built-in; choose another one",
    "plain": "it is dict; needed: ipnext.stages.port.Stage",
    "gone": "AttributeError: ",
    "broken": "ZeroDivisionError: division by zero",
}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    points = {name: f"acme_stages:{name}" for name in ("good", "review", "elsewhere", *REFUSED) if name != "broken"}
    points = {("a-good" if name == "good" else name): value for name, value in points.items()}
    write_distribution(tmp_path, "acme_stages", CODE, {"ipnext.stages": points})
    write_distribution(tmp_path, "broken_stages", "1 / 0\n", {"ipnext.stages": {"broken": "broken_stages:stage"}})
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def spec():
    def make(*lifecycle, **more):
        part = {"name": "whole", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
        demand = [{"region": "us-east", "qps": 1}]
        return ModelSpec.model_validate({"parts": [part], "demand": demand, "lifecycle": lifecycle, **more})

    return make


AUDIT = {"stage": "audit", "after": "validation", "settings": {"limit": 0.1}}


@pytest.mark.usefixtures("packages")
def test_broken_stages_are_refused_by_name_and_no_other_with_them():
    with structlog.testing.capture_logs() as logs:
        kinds = StageKinds()
        kinds.log_refused()
    assert sorted(kinds.by_name) == ["audit", "elsewhere", "review"]
    reasons = {view.source.partition(":")[2].rstrip(")"): view.reason for view in kinds.views if view.reason}
    assert reasons.keys() - {"stage"} == REFUSED.keys() - {"broken"}
    for name, reason in REFUSED.items():
        assert reasons.get(name, reasons["stage"]).startswith(reason)
    assert len([log for log in logs if log["event"] == "stage refused"]) == len(REFUSED)


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, "limit: has to be above 0"), ({"limit": "0.1"}, "the check of 'audit' ended with TypeError: '>' not supp")],
)
def test_a_worker_starts_and_logs_settings_of_the_platform_that_a_stage_refuses(settings, told):
    platform = PlatformStageEntry.model_validate(AUDIT | {"settings": settings})
    with structlog.testing.capture_logs() as logs:
        StageKinds([platform]).log_refused()
    (refused,) = [log for log in logs if log["event"] == "stage of the platform's setting refused"]
    assert refused["reason"].startswith(f"lifecycle (IPNEXT_LIFECYCLE).0.settings: {told}")


@pytest.mark.usefixtures("packages")
def test_lifecycle_workers_register_the_stages_without_a_queue_of_their_own():
    kinds = StageKinds()
    assert [each.__name__ for each in kinds.activities] == ["audit"]
    assert [each.__name__ for each in kinds.workflows] == ["Review"]


@pytest.mark.usefixtures("packages")
def test_stages_are_listed_with_limits_kinds_and_whether_they_may_be_left_out():
    platform = PlatformStageEntry.model_validate({"stage": "review", "after": "validation", "changes": ["publish"]})
    views = {view.name: view for view in StageKinds([platform]).views if view.state == "active"}
    own = [view for view in views.values() if view.source == "built-in"]
    assert [view.name for view in own if view.may_be_left_out] == ["optimization", "shadow"]
    assert views["freeze"].changes == ("publish", "apply", "move", "retire")
    audit, review = views["audit"], views["review"]
    assert (audit.changes, audit.may_be_left_out) == ((), True)
    assert (review.changes, review.may_be_left_out) == (("publish",), False)
    limits = (audit.schedule_to_close_seconds, audit.start_to_close_seconds, audit.heartbeat_seconds, audit.attempts)
    assert limits == (3600.0, 300.0, 20.0, 5)
    assert (audit.queue, views["elsewhere"].queue) == ("ipnext-lifecycle", "acme")
    assert (audit.runs, review.runs) == ("activity", "workflow")
    assert audit.source == "acme_stages 1.0 (acme_stages:good)"


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("entry", "field", "told"),
    [
        (
            AUDIT | {"stage": "audits"},
            "stage",
            "no stage 'audits' is installed here; allowed: shadow, audit, else",
        ),
        (AUDIT | {"stage": "broken"}, "stage", "was refused: ZeroDivisionError: division by zero"),
        (AUDIT | {"settings": {}}, "settings", "limit: has to be above 0"),
        (AUDIT | {"settings": {"limit": "0.1"}}, "settings", "the check of 'audit' ended with TypeError: '>' not supp"),
        ({"leaveOut": "validation"}, "leaveOut", "is safety-critical and stays; allowed: optimization"),
    ],
)
def test_an_apply_refuses_unknown_stages_wrong_settings_and_gaps(spec, entry, field, told):
    kinds = StageKinds()
    kinds.check(spec(AUDIT))
    with pytest.raises(InvalidInput) as error:
        kinds.check(spec(entry))
    assert error.value.field == f"spec.lifecycle.0.{field}"
    assert told in error.value.message


SHADOW = {"stage": "shadow", "before": "transition"}


def test_a_shadow_is_listed_and_composed_with_its_settings(spec):
    shadow = next(view for view in StageKinds().views if view.name == "shadow")
    assert (shadow.source, shadow.changes, shadow.may_be_left_out, shadow.runs) == ("built-in", (), True, "built-in")
    entry = SHADOW | {"settings": {"share": 0.5}}
    StageKinds().check(spec(entry))
    composed = StageKinds().composed(ChangeKind.PUBLISH, spec(entry))
    assert [(stage.name, stage.call, dict(stage.settings)) for stage in composed][-2:] == [
        ("shadow", None, {"share": 0.5}),
        ("transition", None, {}),
    ]


@pytest.mark.parametrize(
    ("settings", "field", "told"),
    [
        ({"share": 0}, "share", "greater than 0 (got 0)"),
        ({"share": 2}, "share", "less than or equal to 1 (got 2)"),
        ({"shares": 0.1}, "shares", "unknown field; allowed here: "),
        ({"minRequests": 0}, "minRequests", "greater than or equal to 1"),
        ({"seconds": 1e9}, "seconds", "less than or equal to 604800"),
        ({"maxDifference": {"quantile": 0.9}}, "maxDifference", "give `absolute`, `relative` or both"),
        ({"onTooFew": "wait"}, "onTooFew", "'pass' or 'fail' (got 'wait')"),
    ],
)
def test_an_apply_refuses_settings_of_a_shadow_by_field(spec, settings, field, told):
    with pytest.raises(InvalidInput) as error:
        StageKinds().check(spec(SHADOW | {"settings": settings}))
    assert error.value.field == f"spec.lifecycle.0.settings.{field}"
    assert told in error.value.message


def test_a_model_that_generates_has_no_shadow(spec):
    part = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "gpu", "units": 1, "tokensPerSecond": 100}]}
    demand = [{"region": "eu", "tokensPerSecond": 1}]
    generating = {"task": "generation", "parts": [part], "demand": demand, "lifecycle": [SHADOW]}
    with pytest.raises(InvalidInput) as error:
        StageKinds().check(ModelSpec.model_validate(generating))
    assert error.value.field == "spec.lifecycle.0.stage"
    assert "the model has parts that generate: 'llm' (vllm)" in error.value.message
    platform = [PlatformStageEntry.model_validate(SHADOW)]
    plain = ModelSpec.model_validate(generating | {"lifecycle": []})
    StageKinds(platform).check(plain)
    assert StageKinds(platform).composed(ChangeKind.PUBLISH, plain) is None
    assert StageKinds(platform).composed(ChangeKind.PUBLISH, spec()) is not None


@pytest.mark.usefixtures("packages")
def test_an_order_says_how_its_stages_are_run(spec):
    composed = StageKinds().composed(ChangeKind.PUBLISH, spec(AUDIT))
    assert [stage.name for stage in composed][1:4] == ["validation", "audit", "optimization"]
    call = composed[2].call
    assert (call.settings, call.attempts, call.queue, composed[1].call) == ({"limit": 0.1}, 5, None, None)
    assert StageKinds().composed(ChangeKind.MOVE, spec(AUDIT)) is None


def test_a_stage_that_this_worker_lacks_is_named_with_its_place(spec):
    platform = PlatformStageEntry.model_validate({"stage": "review", "before": "freeze"})
    composed = StageKinds([platform]).composed(ChangeKind.APPLY, spec(AUDIT))
    lacking = {stage.name: stage.lacking for stage in composed if stage.lacking}
    assert lacking == {
        "audit": "spec.lifecycle.0: no stage 'audit' is installed here",
        "review": "lifecycle (IPNEXT_LIFECYCLE).0: no stage 'review' is installed here",
    }


@pytest.mark.usefixtures("packages")
async def test_the_api_lists_stages_and_refuses_a_manifest_that_names_another(applied):
    listed = {each["name"]: each for each in (await applied.http.get("/v1/stages")).json()}
    assert listed["optimization"]["may_be_left_out"]
    assert not listed["validation"]["may_be_left_out"]
    assert listed["broken"]["reason"] == "ZeroDivisionError: division by zero"
    document = applied.rooms.model_document()
    document["spec"]["lifecycle"] = [AUDIT]
    (await applied.http.put("/v1/models/ranker?dryRun=true", json=document)).raise_for_status()
    document["spec"]["lifecycle"] = [AUDIT, {"leaveOut": "planning"}]
    answer = await applied.http.put("/v1/models/ranker?dryRun=true", json=document)
    assert answer.status_code == 400
    told = answer.json()
    assert (told["field"], told["value"]) == ("spec.lifecycle.1.leaveOut", "planning")
    assert set(told["allowed"]) == {"optimization", "audit"}


@pytest.mark.usefixtures("packages")
def test_the_command_lists_them(live, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    listed = json.loads(CliRunner().invoke(app, ["get", "stages", "-o", "json"]).stdout)
    assert {"validation", "audit", "broken"} <= {one["name"] for one in listed}
    shown = CliRunner().invoke(app, ["get", "stages"])
    assert shown.exit_code == 0, shown.output
    assert "acme_stages" in shown.stdout


def test_a_setting_that_leaves_out_what_must_stay_stops_the_process():
    entry = PlatformStageEntry.model_validate({"leaveOut": "validation"})
    with pytest.raises(
        InvalidInput, match=r"lifecycle \(IPNEXT_LIFECYCLE\).0.leaveOut: 'validation' is safety-critical"
    ):
        StageKinds([entry])


@pytest.mark.usefixtures("packages")
def test_a_worker_logs_entries_of_the_platform_that_no_change_can_go_through():
    entries = [{"stage": "audit", "after": "validation"}, {"stage": "none", "after": "validation"}]
    with structlog.testing.capture_logs() as logs:
        StageKinds([PlatformStageEntry.model_validate(entry) for entry in entries]).log_refused()
    told = [log["reason"] for log in logs if log["event"] == "stage of the platform's setting refused"]
    assert "limit: has to be above 0" in told[0]
    assert "no stage 'none' is installed here; allowed: shadow, audit, else" in told[1]


def test_the_platform_takes_entries_for_all_models_from_its_settings(monkeypatch):
    monkeypatch.setenv("IPNEXT_LIFECYCLE", json.dumps([{"stage": "review", "after": "validation"}]))
    assert [entry.stage for entry in platform_settings().lifecycle] == ["review"]
    monkeypatch.setenv("IPNEXT_LIFECYCLE", json.dumps([{"stage": "review"}]))
    with pytest.raises(InvalidInput, match=r"IPNEXT_LIFECYCLE\): .*exactly one of after, before, replaces"):
        platform_settings()


@pytest.mark.parametrize("kind", ["publish", "apply"])
def test_an_apply_does_not_leave_out_steps_that_the_manifest_asks_for(spec, kind):
    leaves_out = {"leaveOut": "optimization", "changes": [kind]}
    StageKinds().check(spec(leaves_out))
    with pytest.raises(InvalidInput, match=r"lifecycle\.0\.leaveOut: 'optimization' carries out spec\.split or spec"):
        StageKinds().check(spec(leaves_out, optimization=[{"quantize": {"embeddings": "int8"}}]))
