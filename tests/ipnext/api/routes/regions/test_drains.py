"""Drains at the API's door: recorded, told to the engine, shown; and what is refused."""

from datetime import UTC, datetime

import pytest

from ipnext.model.lifecycle.regions.drain import Drain, DrainState, DrainView
from tests.waiting import eventually


@pytest.fixture
async def fleet(world):
    answer = await world.http.put("/v1/fleet", json=world.rooms.fleet_document())
    assert answer.status_code == 200
    return world


async def test_a_drain_is_recorded_told_and_shown(fleet):
    assert (await fleet.http.get("/v1/regions/eu/drain")).status_code == 404
    answer = await fleet.http.post("/v1/regions/eu/drain", json={"reason": "racks"})
    assert (answer.status_code, answer.json()["state"]) == (202, "recorded")
    assert answer.json()["run_url"].endswith("/workflows/drain%2Feu")
    await eventually(lambda: fleet.rooms.lifecycle.drains_told == ["eu"])
    shown = {region["region"]: region["drain"] for region in (await fleet.http.get("/v1/regions")).json()["items"]}
    assert (shown["eu"]["reason"], shown["us"]) == ("racks", None)
    assert (await fleet.http.get("/v1/regions/eu/drain")).json()["id"] == "drain-eu-1"


async def test_drains_are_listed_the_newest_first_with_those_that_are_over(fleet):
    with fleet.rooms.store.begin() as unit:
        for region in ("eu", "us", "eu"):
            drain = unit.add_drain(region, reason=f"of {region}")
            unit.update_drain(drain.id, state=DrainState.RETURNED)
    whole = (await fleet.http.get("/v1/drains")).json()
    assert [(item["id"], item["reason"]) for item in whole["items"]] == [
        ("drain-eu-2", "of eu"),
        ("drain-us-1", "of us"),
        ("drain-eu-1", "of eu"),
    ]
    first = (await fleet.http.get("/v1/drains?region=eu&limit=1")).json()
    rest = (await fleet.http.get(f"/v1/drains?region=eu&limit=1&after={first['next']}")).json()
    assert [page["items"][0]["id"] for page in (first, rest)] == ["drain-eu-2", "drain-eu-1"]
    assert rest["next"] is None


async def told(world):
    """What each view says of Europe: (status, sentence)."""
    newest = (await world.http.get("/v1/regions/eu/drain")).json()
    listed = (await world.http.get("/v1/drains")).json()["items"][0]
    regions = (await world.http.get("/v1/regions")).json()["items"]
    overview = (await world.http.get("/v1/overview")).json()["regions"]
    shown = [view["drain"] for view in (*regions, *overview) if view["region"] == "eu" and view["drain"]]
    return {(view["status"], view["summary"]) for view in (newest, listed, *shown)}


async def test_every_view_says_the_same_of_a_lost_region_and_never_calls_it_drained(fleet):
    with fleet.rooms.store.begin() as unit:
        drain = unit.add_drain("eu", disaster=True)
        unit.update_drain(drain.id, state=DrainState.DRAINED, message="nothing is planned there")
    lives = "its agent answers and reports no replicas"
    assert await told(fleet) == {
        (
            "declared lost, answers still",
            f"region eu is declared lost, answers still: nothing is planned there; {lives}",
        )
    }
    fleet.rooms.infrastructure.cut("eu")
    assert await told(fleet) == {("declared lost", "region eu is declared lost: nothing is planned there")}

    with fleet.rooms.store.begin() as unit:
        unit.ask_return("eu")
    assert {status for status, _ in await told(fleet)} == {"declared lost, asked back"}
    with fleet.rooms.store.begin() as unit:
        unit.update_drain(drain.id, state=DrainState.RETURNED, message="its supply counts again")
    assert await told(fleet) == {("back", "region eu is back: its supply counts again")}


def lost(state, running):
    now = datetime.now(UTC)
    drain = Drain(id="d", region="eu", disaster=True, state=state, message="told", created_at=now, updated_at=now)
    return DrainView.of(drain, run_url="", replicas_running=running).summary


def test_replicas_of_a_lost_region_serve_until_it_is_asked_back():
    until = ", serving its own users until `ipnext undrain eu`"
    answers = "region eu is declared lost, answers still: told; its agent reports 3 replicas"
    assert lost(DrainState.DRAINED, 3) == answers + until
    assert lost(DrainState.RETURNING, 3) == answers.replace("lost,", "lost, asked back,")
    assert lost(DrainState.DRAINED, None) == "region eu is declared lost: told"


async def test_a_planned_drain_is_told_by_its_state(fleet):
    with fleet.rooms.store.begin() as unit:
        drain = unit.add_drain("eu")
        unit.update_drain(drain.id, state=DrainState.DRAINED, message="nothing runs there and nothing is sent there")
    assert await told(fleet) == {
        ("drained", "region eu is drained: nothing runs there and nothing is sent there"),
    }


async def test_an_engine_that_is_down_is_told_once_it_is_back(fleet):
    fleet.rooms.lifecycle.down = True
    assert (await fleet.http.post("/v1/regions/eu/drain", json={"disaster": True})).status_code == 202
    fleet.rooms.lifecycle.down = False
    await eventually(lambda: fleet.rooms.lifecycle.drains_told == ["eu"])


async def test_the_last_region_with_supply_can_not_be_drained_and_an_unknown_one_is_named(fleet):
    unknown = await fleet.http.post("/v1/regions/mars/drain", json={})
    assert (unknown.status_code, unknown.json()["allowed"]) == (400, ["eu", "us"])
    await fleet.http.post("/v1/regions/eu/drain", json={})
    last = await fleet.http.post("/v1/regions/us/drain", json={"disaster": True})
    assert (last.status_code, last.json()["code"]) == (409, "Conflict")
    assert "'us' is the last one with supply (eu out of service)" in last.json()["message"]


async def test_a_region_comes_back_only_where_it_is_drained(fleet):
    none = await fleet.http.post("/v1/regions/eu/return", json={})
    assert (none.status_code, none.json()["code"]) == (404, "NotFound")
    await fleet.http.post("/v1/regions/eu/drain", json={})
    back = await fleet.http.post("/v1/regions/eu/return", json={"reason": "done"})
    assert (back.status_code, back.json()["state"]) == (202, DrainState.RETURNING.value)


async def test_applying_the_fleet_again_keeps_a_drain(fleet):
    await fleet.http.post("/v1/regions/eu/drain", json={})
    await fleet.http.put("/v1/fleet", json=fleet.rooms.fleet_document())
    shown = {region["region"]: region["drain"] for region in (await fleet.http.get("/v1/regions")).json()["items"]}
    assert shown["eu"]["state"] == "recorded"


async def test_moves_are_paused_and_resumed_while_no_replan_runs(fleet):
    answer = await fleet.http.post("/v1/replans/steer", json={"action": "pause", "reason": "release night"})
    assert (answer.status_code, answer.json()["paused"]) == (200, "release night")
    seen = (await fleet.http.get("/v1/moves")).json()
    assert (seen["pause"]["reason"], seen["replan"], seen["replans_waiting"]) == ("release night", None, 0)
    answer = await fleet.http.post("/v1/replans/steer", json={"action": "resume"})
    assert (answer.status_code, answer.json()["paused"]) == (200, "")
    assert (await fleet.http.get("/v1/moves")).json()["pause"] is None
    assert fleet.rooms.lifecycle.moves_steered == 2


async def test_a_pause_holds_while_the_workflow_engine_is_down(fleet):
    fleet.rooms.lifecycle.down = True
    answer = await fleet.http.post("/v1/replans/steer", json={"action": "pause", "reason": "release night"})
    assert answer.status_code == 200
    assert (await fleet.http.get("/v1/moves")).json()["pause"]["reason"] == "release night"


async def test_the_replan_that_runs_is_cancelled_with_a_reason(fleet):
    answer = await fleet.http.post("/v1/replans/steer", json={"action": "cancel", "reason": "wrong day"})
    assert (answer.status_code, fleet.rooms.lifecycle.cancelled) == (200, ["wrong day"])
    wrong = await fleet.http.post("/v1/replans/steer", json={"action": "stop"})
    assert (wrong.status_code, wrong.json()["field"]) == (400, "action")


async def steer(fleet, key, **body):
    answer = await fleet.http.post("/v1/replans/steer", json=body, headers={"Idempotency-Key": key})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_steering_the_moves_again_with_one_key_undoes_nothing_that_was_asked_since(fleet):
    assert (await steer(fleet, "one", action="pause", reason="release night"))["paused"] == "release night"
    assert (await steer(fleet, "one", action="pause", reason="release night"))["paused"] == "release night"
    assert (await steer(fleet, "two", action="resume"))["paused"] == ""
    assert (await steer(fleet, "one", action="pause", reason="release night"))["paused"] == "", "a late repetition"
    with fleet.rooms.store.read() as unit:
        kinds = [event.kind for event in unit.events() if event.kind.startswith("Moves")]
    assert kinds == ["MovesResumed", "MovesPaused"]
    assert (await steer(fleet, "three", action="pause"))["paused"] == "by hand"


async def test_a_replan_is_cancelled_once_for_each_key(fleet):
    for key in ("one", "one", "two"):
        await steer(fleet, key, action="cancel", reason=key)
    assert fleet.rooms.lifecycle.cancelled == ["one", "two"]
