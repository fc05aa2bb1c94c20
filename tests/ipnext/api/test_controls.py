"""Controls at the door: who is heard, what is refused, what an engine that is down answers."""

import pytest


async def test_a_pause_is_told_to_the_engine_with_who_and_why(applied):
    answer = await applied.http.post(
        "/v1/models/ranker/pause", json={"reason": "an incident"}, headers={"X-IPnext-User": "anna"}
    )

    assert (answer.status_code, answer.json()["message"]) == (200, "paused by anna: an incident")
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
