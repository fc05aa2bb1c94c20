"""Overrides of checks over HTTP: what they let pass, what they never do, and what is recorded of them."""

import json

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.checks import SAFETY_CRITICAL, CheckOutcome, CheckResult, ValidationReport
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.names import again_id


@pytest.fixture
def refuse(applied):
    """End a publish as its validation does, refused by the check finite-weights."""

    async def run(content="a"):
        change = (await applied.publish(content)).json()["id"]
        with applied.rooms.store.begin("ranker") as unit:
            number = unit.change(change).generation
            refused = CheckResult(check="finite-weights", subject="dense", outcome=CheckOutcome.REFUSED, message="NaN")
            unit.save_report(ValidationReport(model="ranker", generation=number, checks=(refused,)))
            unit.update_change(change, state=ChangeState.REFUSED, reason=Reason.NON_FINITE_WEIGHTS, message="NaN")
            unit.set_generation_state("ranker", number, GenerationState.REFUSED)
        return change

    return run


async def override(world, change, check="finite-weights", status=200):
    body = {"reason": "known good", "check": check}
    answer = await world.http.post(f"/v1/changes/{change}/override", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_refused_change_is_carried_out_again_with_the_override(applied, refuse):
    change = await refuse()
    given = await override(applied, change)
    assert (given["check"], given["reason"], given["freezes"]) == ("finite-weights", "known good", [])
    with applied.rooms.store.read() as unit:
        before, again = unit.change(change), unit.change(given["again"])
        assert again.id == again_id("ranker", before.sequence)
        assert (again.kind, again.generation) == (ChangeKind.PUBLISH, before.generation)
        assert unit.check_overrides(again.id)["finite-weights"].reason == "known good"
        assert unit.generation("ranker", again.generation).state is GenerationState.PENDING
    assert await override(applied, change) == given, "asked twice, it is one change"


async def test_an_open_change_gets_the_override_before_its_validation(applied):
    change = (await applied.publish("a")).json()["id"]
    assert (await override(applied, change))["again"] is None
    with applied.rooms.store.read() as unit:
        assert unit.check_overrides(change).keys() == {"finite-weights"}


async def test_an_override_given_before_the_refusal_was_seen_carries_out_again(applied, refuse):
    change = (await applied.publish("a")).json()["id"]
    await override(applied, change)
    with applied.rooms.store.begin("ranker") as unit:
        refused = CheckResult(check="finite-weights", subject="dense", outcome=CheckOutcome.REFUSED)
        unit.save_report(ValidationReport(model="ranker", generation=1, checks=(refused,)))
        unit.update_change(change, state=ChangeState.REFUSED, reason=Reason.NON_FINITE_WEIGHTS, message="NaN")
    assert (await override(applied, change))["again"] is not None


@pytest.mark.parametrize("check", [*sorted(SAFETY_CRITICAL), "unknown"])
async def test_safety_critical_and_unknown_checks_are_refused_by_name(applied, refuse, check):
    told = await override(applied, await refuse(), check, status=400)
    assert (told["field"], told["value"]) == ("check", check)
    assert "finite-weights" in told["allowed"]
    assert not set(told["allowed"]) & SAFETY_CRITICAL


async def test_only_the_check_that_refused_is_overridden_and_nothing_that_came_later_is_undone(applied, refuse):
    change = await refuse()
    told = await override(applied, change, "interface", status=409)
    assert "was not refused by the check 'interface'; checks that refused it: finite-weights" in told["message"]
    await applied.publish("b")
    assert "newer publish" in (await override(applied, change, status=409))["message"]


async def test_a_change_that_is_done_or_validates_nothing_has_nothing_to_override(applied):
    change = (await applied.publish("a")).json()["id"]
    with applied.rooms.store.begin("ranker") as unit:
        unit.update_change(change, state=ChangeState.DONE, reason=Reason.SUCCEEDED, message="")
        repair = unit.add_change("ranker", ChangeKind.REPAIR, change_id="mend", generation=1)
    assert "is done already" in (await override(applied, change, status=409))["message"]
    assert "is a repair" in (await override(applied, repair.id, status=409))["message"]


async def test_the_audit_and_the_events_tell_who_passed_which_check(applied, refuse):
    change = await refuse()
    given = await override(applied, change)
    entry = next(e for e in (await applied.http.get("/v1/audit")).json()["items"] if e["action"] == "models.override")
    assert (entry["reason"], entry["changeId"]) == ("known good", change)
    assert json.loads(entry["after"]) == {"check": "finite-weights", "again": given["again"]}
    events = (await applied.http.get("/v1/models/ranker/events")).json()["items"]
    told = [event["message"] for event in events if event["kind"] == "CheckOverridden"]
    assert told == [f"publish {change} passes the check finite-weights, by {given['who']}: known good"]
