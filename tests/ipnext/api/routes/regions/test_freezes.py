"""Freezes over HTTP: apply, read, lift, override; their audit; and the runs that are told."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.model.access.rights import Role
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.model.manifest.freeze import BindingFreeze, FreezeView, Frozen
from ipnext.store.operations.change_scope import find_touched, find_touched_regions
from ipnext.store.operations.refused_routes import refuse_further_users
from tests.waiting import PATIENCE_SECONDS, eventually

ANN = {"X-IPnext-User": "ann"}
NOW = datetime.now(UTC).replace(tzinfo=None, microsecond=0)


def document(name: str = "sale", *, reason: str = "the shop is full", **scope: list[str]) -> dict[str, object]:
    """A freeze of today, the same whenever it is made."""
    window = {"start": NOW.isoformat(), "duration": "PT24H"}
    spec = {"reason": reason, "windows": [window], "scope": scope}
    return {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": name}, "spec": spec}


async def put(world, *, status: int = 200, query: str = "", **more):
    body = document(**more)
    answer = await world.http.put(f"/v1/freezes/{body['metadata']['name']}{query}", json=body, headers=ANN)
    assert answer.status_code == status, answer.text
    return answer.json()


def wait(rooms, change_id: str, message: str = "frozen until 2026-12-27 00:00:00 UTC: we rest (freeze holidays)"):
    """What a run leaves behind that waits for a freeze."""
    with rooms.store.begin() as unit:
        unit.update_change(change_id, state=ChangeState.RUNNING, reason=Reason.FROZEN, message=message)
        unit.set_condition("ranker", ConditionType.PLANNED, "Unknown", Reason.FROZEN, message)
        unit.set_condition("ranker", ConditionType.UP_TO_DATE, "False", Reason.FROZEN, message)


async def test_a_freeze_is_applied_read_and_listed_with_its_windows(applied):
    view = await put(applied)
    assert (view["version"], view["next"], view["dryRun"]) == (1, [], False)
    assert view["inForce"]["end"] > view["inForce"]["start"]
    assert (await applied.http.get("/v1/freezes/sale")).json() == view
    assert (await applied.http.get("/v1/freezes")).json()["items"] == [view]
    assert (await applied.http.get("/v1/freezes/none")).status_code == 404


async def test_a_write_that_expects_another_version_is_refused_and_a_dry_run_writes_nothing(applied):
    assert (await put(applied, query="?dryRun=true"))["dryRun"]
    assert (await applied.http.get("/v1/freezes")).json()["items"] == []
    await put(applied, query="?expectedVersion=0")
    assert (await put(applied, query="?expectedVersion=4", status=409))["code"] == "StaleWrite"
    assert (await put(applied, query="?expectedVersion=4&dryRun=true", status=409))["code"] == "StaleWrite"
    gone = await applied.http.delete("/v1/freezes/sale?expectedVersion=2")
    assert gone.status_code == 409


async def test_a_rule_that_can_not_be_taken_is_refused_by_its_field(applied):
    body = document()
    body["spec"]["windows"][0]["rrule"] = "FREQ=SECONDLY"
    answer = await applied.http.put("/v1/freezes/sale", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, "spec.windows.0.rrule")
    other = await applied.http.put("/v1/freezes/other", json=document())
    assert (other.status_code, other.json()["field"]) == (400, "metadata.name")


async def test_whether_a_change_would_wait_now_is_answered_for_each_kind(applied):
    assert (await applied.http.get("/v1/freezes/now?model=ranker")).json()["frozen"] is None
    await put(applied, owners=["sea*"], regions=["eu"])
    now = (await applied.http.get("/v1/freezes/now?model=ranker")).json()
    assert [each["name"] for each in now["frozen"]["freezes"]] == ["sale"]
    retire = (await applied.http.get("/v1/freezes/now?model=ranker&kind=retire")).json()
    assert (retire["frozen"], retire["nextWindow"]) == (None, None)
    assert (await applied.http.get("/v1/freezes/now?model=ranker&kind=rollback")).status_code == 400
    assert (await applied.http.get("/v1/freezes/now?model=none")).status_code == 404


async def test_the_audit_tells_who_did_what_and_why(applied):
    await put(applied)
    await put(applied)
    change = (await applied.publish("a")).json()
    answer = await applied.http.post(f"/v1/changes/{change['id']}/override", json={"reason": "a fix"}, headers=ANN)
    assert (answer.status_code, answer.json()["freezes"], answer.json()["who"]) == (
        200,
        ["sale"],
        "key admin (for ann)",
    )
    await applied.http.post(f"/v1/changes/{change['id']}/override", json={"reason": "again"})
    await applied.http.delete("/v1/freezes/sale?reason=sold%20out", headers={"X-IPnext-User": "Zo%C3%AB"})
    found = [
        (e["said"], e["who"]["name"], e["operation"], e["object"]["name"], e["reason"])
        for e in (await applied.http.get("/v1/audit?limit=1000")).json()["items"]
        if "freeze" in e["action"] or "override" in e["action"]
    ]
    assert found == [
        ("Zoë", "admin", "DELETE /v1/freezes/{name}", "sale", "sold out"),
        ("ann", "admin", "POST /v1/changes/{change_id}/override", change["id"], "a fix"),
        ("ann", "admin", "PUT /v1/freezes/{name}", "sale", "the shop is full"),
    ]
    events = [e["kind"] for e in (await applied.http.get("/v1/events")).json()["items"]]
    assert {"FreezeApplied", "FreezeOverridden", "FreezeLifted"} <= set(events)


@pytest.mark.parametrize("reason", ["", "  ", None])
async def test_an_override_without_a_reason_is_refused(applied, reason):
    change = (await applied.publish("a")).json()
    body = {} if reason is None else {"reason": reason}
    answer = await applied.http.post(f"/v1/changes/{change['id']}/override", json=body)
    assert (answer.status_code, answer.json()["field"]) == (400, "reason")
    assert (await applied.http.get("/v1/audit?action=models.override")).json()["items"] == []


async def test_a_publish_may_bring_its_override(applied):
    await put(applied)
    parts = {part: {"digest": await applied.upload(part.encode())} for part in ("sparse", "dense")}
    body = {"changeId": "fix-1", "parts": parts, "overrideFreeze": "a fix"}
    for _ in range(2):
        answer = await applied.http.post("/v1/models/ranker/publish", json=body, headers=ANN)
        assert answer.status_code == 202
    (entry,) = (await applied.http.get("/v1/audit?action=models.publish")).json()["items"]
    assert (entry["changeId"], entry["reason"], json.loads(entry["after"])["overrides"]) == ("fix-1", "a fix", ["sale"])
    with applied.rooms.store.read() as unit:
        assert unit.freeze_override("fix-1").reason == "a fix"


async def test_runs_that_wait_are_told_of_every_write_and_those_that_go_on_are_not(applied):
    waiting, going = (await applied.publish("a")).json()["id"], (await applied.publish("b")).json()["id"]
    told = applied.rooms.lifecycle.told_of_freezes
    wait(applied.rooms, waiting)
    for number, write in enumerate(
        (
            lambda: applied.http.put("/v1/freezes/sale", json=document()),
            lambda: applied.http.post(f"/v1/changes/{going}/override", json={"reason": "r"}),
            lambda: applied.http.delete("/v1/freezes/sale"),
        ),
        1,
    ):
        assert (await write()).is_success
        await eventually(lambda number=number: told == [waiting] * number)


class Listening(MemoryLifecycle):
    """Says when a run was told, or could not be."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def namespace(self) -> WorkflowNamespace:
        """Known from before it went down."""
        return await MemoryLifecycle().namespace()

    async def signal_freeze_change(self, change: Change) -> None:
        self.asked.set()
        await super().signal_freeze_change(change)


async def test_runs_are_told_once_the_engine_is_back_and_after_a_restart(rooms):
    rooms.seed("ranker")
    rooms.publish_directly("ranker", "a")
    wait(rooms, "ranker-a")
    engine = Listening()
    engine.down = True
    outbox = Outbox(rooms.store, engine, interval_seconds=0.01, max_backoff_seconds=0.02)
    async with asyncio.timeout(PATIENCE_SECONDS), outbox.running():
        await engine.asked.wait()
        assert engine.told_of_freezes == []
        engine.asked.clear()
        engine.down = False
        await engine.asked.wait()
    assert engine.told_of_freezes == ["ranker-a"]


async def test_a_frozen_change_is_explained_with_its_end_and_the_way_past(applied):
    change = (await applied.publish("a")).json()["id"]
    wait(applied.rooms, change)
    await applied.publish("b")
    answer = (await applied.http.get("/v1/models/ranker/explanation")).json()
    assert (answer["reason"], answer["ready"]) == ("Frozen", False)
    assert "frozen until 2026-12-27" in answer["message"]
    assert f"ipnext override {change} --reason TEXT" in answer["advice"]
    steps = [(step["level"], step["subject"]) for step in answer["chain"]]
    assert ("step", "plan") in steps
    assert steps[-1] == ("cause", "Frozen")


async def test_a_frozen_manifest_that_adds_users_is_explained_by_the_freeze_and_not_by_its_region(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    document = applied.rooms.model_document()
    document["spec"]["demand"].append({"region": "us", "qps": 5})
    change = (await applied.http.put("/v1/models/ranker", json=document)).json()["change"]["id"]
    wait(applied.rooms, change)
    with applied.rooms.store.begin("ranker") as unit:
        refuse_further_users(unit, unit.model("ranker"), Reason.FROZEN)
        assert unit.route("ranker", "us").pending
    answer = (await applied.http.get("/v1/models/ranker/explanation")).json()
    assert answer["reason"] == "Frozen"
    assert f"ipnext override {change} --reason TEXT" in answer["advice"]


async def test_the_page_is_told_what_is_frozen(applied):
    (before,) = (await applied.http.get("/v1/overview")).json()["models"]
    await put(applied, models=["rank*"])
    (after,) = (await applied.http.get("/v1/overview")).json()["models"]
    assert before["frozen"] is None
    until = datetime.fromisoformat(after["frozen"]["until"])
    assert timedelta(0) < until - datetime.now(UTC) <= timedelta(hours=24)


def test_what_is_frozen_is_told_in_words():
    until = datetime(2026, 12, 27, tzinfo=UTC)
    binding = BindingFreeze(name="holidays", reason="we rest", until=until)
    assert Frozen(until=until, freezes=(binding,)).message == (
        "frozen until 2026-12-27 00:00:00 UTC: we rest (freeze holidays)"
    )


SECRET = "for the launch of ads' hidden-model"
CALENDAR = f"""BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//x//y//
BEGIN:VEVENT
UID:1
DTSTART:{NOW:%Y%m%dT%H%M%S}
DURATION:PT24H
SUMMARY:{SECRET}
END:VEVENT
END:VCALENDAR
"""


@pytest.mark.parametrize(
    ("scope", "reason"),
    [
        ({}, SECRET),
        ({"models": ["ranker", "hidden-model"]}, SECRET),
        ({"owners": ["search", "ads"]}, SECRET),
        ({"regions": ["eu"]}, SECRET),
        ({"regions": ["mars"]}, "not shown"),
        ({"models": ["ranker", "hidden-model"], "owners": ["ads"]}, None),
        ({"models": ["hidden-*"]}, None),
    ],
)
async def test_a_viewer_of_one_owner_gets_of_a_freeze_what_concerns_its_models(applied, scope, reason):
    body = document(reason=SECRET, **scope)
    body["metadata"] |= {"owner": "ads", "labels": {"for": "hidden-model"}, "annotations": {"note": SECRET}}
    body["spec"] |= {"ics": CALENDAR, "windows": []}
    (await applied.http.put("/v1/freezes/sale", json=body)).raise_for_status()
    whole = (await applied.http.get("/v1/freezes/sale")).json()
    assert whole["manifest"]["metadata"]["annotations"] == {"note": SECRET}
    headers = {"Authorization": f"Bearer {applied.rooms.add_key('viewer', Role.VIEWER, owner='search')}"}
    answer = await applied.http.get("/v1/freezes/sale", headers=headers)
    listed = (await applied.http.get("/v1/freezes", headers=headers)).json()["items"]
    if reason is None:
        assert (answer.status_code, listed) == (404, [])
        return
    shown = answer.json()
    assert listed == [shown]
    assert shown["manifest"]["spec"]["reason"].startswith(reason)
    assert shown["inForce"] == whole["inForce"], "of the calendar that is not shown"
    del shown["manifest"]["spec"]["reason"]
    assert not any(name in json.dumps(shown) for name in ("hidden-model", "ads", SECRET))
    assert FreezeView.model_validate(answer.json()), "clients can read it"


async def test_a_viewer_without_models_gets_the_reason_of_a_freeze_for_its_owner(applied):
    headers = {"Authorization": f"Bearer {applied.rooms.add_key('viewer', Role.VIEWER, owner='none')}"}
    for scope, shown in (({"owners": ["none"]}, "rest"), ({"regions": ["eu"]}, "not shown")):
        await put(applied, reason="rest", **scope)
        answer = (await applied.http.get("/v1/freezes/sale", headers=headers)).json()
        assert answer["manifest"]["spec"]["reason"].startswith(shown)


async def test_regions_of_many_models_are_those_of_each(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    applied.rooms.adopt_plan()
    (await applied.http.put("/v1/models/other", json=applied.rooms.model_document("other"))).raise_for_status()
    with applied.rooms.store.read() as unit:
        found = find_touched_regions(unit, ("ranker", "other"))
        assert found == {name: find_touched(unit, name).regions for name in ("ranker", "other")}
