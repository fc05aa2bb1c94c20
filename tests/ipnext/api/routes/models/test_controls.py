"""Controls at the door: who is heard, what is refused, what an engine that is down answers."""

from datetime import UTC, datetime

import httpx
import pytest

from ipnext.api.routes.models.controls import _note, _running
from ipnext.client import Client
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction
from ipnext.model.planning.transition import Transition
from ipnext.store.records import TransitionRecord


async def test_a_pause_is_told_to_the_engine_with_who_and_why(applied):
    answer = await applied.http.post(
        "/v1/models/ranker/pause", json={"reason": "an incident"}, headers={"X-IPnext-User": "anna"}
    )

    assert (answer.status_code, answer.json()["message"]) == (200, "paused by key admin (for anna): an incident")
    assert applied.rooms.lifecycle.held["ranker"].reason == "an incident"


@pytest.mark.parametrize("action", ["approve", "promote"])
async def test_without_a_run_there_is_nothing_to_approve_or_promote(applied, action):
    answer = await applied.http.post(f"/v1/models/ranker/{action}", json={})

    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")
    assert f"there is nothing to {action}" in answer.json()["message"]


@pytest.mark.parametrize("action", ["pause", "resume", "approve", "promote", "abort"])
async def test_an_unknown_model_is_not_found(applied, action):
    answer = await applied.http.post(f"/v1/models/nobody/{action}", json={})

    assert (answer.status_code, answer.json()["code"]) == (404, "NotFound")


async def test_an_engine_that_is_down_is_said_to_be(applied):
    applied.rooms.lifecycle.down = True

    answer = await applied.http.post("/v1/models/ranker/pause", json={})

    assert (answer.status_code, answer.json()["code"]) == (503, "Unavailable")


async def test_a_body_that_is_none_of_ours_names_its_field(applied):
    answer = await applied.http.post("/v1/models/ranker/pause", json={"reason": "x" * 2001})

    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")
    assert answer.json()["field"] == "reason"


async def test_a_repeated_request_of_one_key_is_said_once(applied):
    for _ in range(2):
        answer = await applied.http.post("/v1/models/ranker/pause", json={}, headers={"Idempotency-Key": "p"})
        assert answer.status_code == 200
    said = []
    for _ in range(2):
        answer = await applied.http.post("/v1/models/ranker/resume", json={}, headers={"Idempotency-Key": "p"})
        said.append((answer.status_code, answer.json()["message"]))

    assert said == [(200, "resumed by key admin")] * 2
    assert [action for _, action, _ in applied.rooms.lifecycle.controls] == ["pause", "resume"]
    without = await applied.http.post("/v1/models/ranker/resume", json={})
    assert without.status_code == 409, "another request finds nothing paused"


@pytest.mark.parametrize(("key", "given"), [({"Idempotency-Key": "p"}, "pause/p"), ({}, None)])
async def test_every_request_has_an_update_id_whether_it_has_a_key_or_not(applied, monkeypatch, key, given):
    """Temporal's client repeats a call by itself: with one id it is one update."""
    seen, control = [], applied.rooms.lifecycle.control

    async def noted(*args, update_id, **named):
        seen.append(update_id)
        return await control(*args, update_id=update_id, **named)

    monkeypatch.setattr(applied.rooms.lifecycle, "control", noted)
    for _ in range(2):
        await applied.http.post("/v1/models/ranker/pause", json={}, headers=key)

    assert all(found.startswith("pause/") and len(found) > len("pause/") for found in seen)
    assert (seen == [given] * 2) if given else (seen[0] != seen[1])


def test_the_note_of_a_repeated_request_is_written_once(applied):
    for key in ("a", "a", "b", "", ""):
        _note(applied.rooms, "ranker", "said", key)
    with applied.rooms.store.read() as unit:
        assert len([e for e in unit.events("ranker") if e.kind == "Control"]) == 4


async def test_the_client_gives_each_request_a_key_and_repeats_it_with_the_request():
    seen = []

    def answer(request):
        seen.append(request.headers["Idempotency-Key"])
        if len(seen) == 1:
            return httpx.Response(503, json={"code": "Unavailable", "message": "again"})
        return httpx.Response(200, json={"model": "ranker", "action": "pause", "message": "paused"})

    client = Client("http://api", transport=httpx.MockTransport(answer))
    client.pause("ranker")
    client.pause("ranker")
    client.close()

    assert seen[0] == seen[1]
    assert seen[1] != seen[2]


@pytest.mark.parametrize("mover", ["publish", "repair", None])
@pytest.mark.parametrize(("action", "of_a_run"), [("approve", True), ("abort", False)])
async def test_of_two_running_changes_the_one_that_moves_is_approved_and_the_older_one_aborted(
    applied, mover, action, of_a_run
):
    """A repair passes a publish; that one may begin to move while the repair waits for it."""
    with applied.rooms.store.begin("ranker") as unit:
        for name, kind in (("publish", ChangeKind.APPLY), ("repair", ChangeKind.REPAIR)):
            unit.add_change("ranker", kind, change_id=name)
            unit.update_change(name, state=ChangeState.RUNNING)
        if mover is not None:
            unit.save_transition(
                TransitionRecord(
                    id=mover,
                    model="ranker",
                    change_id=mover,
                    generation=1,
                    transition=Transition.model_validate({"from": {}, "to": {}, "waves": [{"gate": "final"}]}),
                    created_at=datetime.now(UTC),
                )
            )

    assert _running(applied.rooms, "ranker", ControlAction(action)) == (mover if of_a_run and mover else "publish")
