"""Ids that the platform makes can't be taken by a client, and every one of them can be read."""

import pytest

from ipnext import names
from ipnext.model.lifecycle.changes.change import ChangeKind

MADE = {
    "again_id": names.again_id("ranker", 3),
    "denial_rollback_id": names.denial_rollback_id("ranker", 2, 1),
    "apply_id": names.apply_id("ranker", 2),
    "marked_apply_id": names.marked_apply_id("ranker", 2, "7"),
    "repair_id": names.repair_id("ranker", 4),
    "move_id": names.move_id(names.replan_plan_id("0199c2f0-7a3c"), "ranker"),
    "replan_plan_id": names.replan_plan_id("0199c2f0-7a3c"),
    "drain_id": names.drain_id("eu", 1),
    "drain_replan_id": names.drain_replan_id(names.drain_id("eu", 1), 2),
    "supply_replan_id": names.supply_replan_id(7),
    "shortage_replan_id": names.shortage_replan_id("ranker", 5),
    "scheduled_replan_id": names.scheduled_replan_id("schedule", "0199c2f0-7a3c"),
}
"""An id of each kind that the platform makes, by the function that makes it."""

ASKED = (
    ("/v1/models/ranker/publish", "changeId", {"parts": {"dense": {"digest": "0" * 64}}}),
    ("/v1/models/ranker/rollback", "changeId", {}),
    ("/v1/models/ranker/repair", "changeId", {}),
    ("/v1/replans", "replanId", {}),
)


def test_every_function_that_makes_an_id_of_a_record_is_covered():
    made = {name for name in vars(names) if name.endswith("_id") and not name.endswith("_workflow_id")}
    assert made == MADE.keys()


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize(("path", "field", "body"), ASKED)
async def test_a_client_cannot_take_an_id_that_the_platform_makes(applied, path, field, body, made):
    answer = await applied.http.post(path, json={field: MADE[made], **body})

    told = answer.json()
    assert (answer.status_code, told["code"], told["field"], told["value"]) == (400, "InvalidInput", field, MADE[made])
    assert all(prefix in told["message"] for prefix in names.RESERVED_PREFIXES)


async def test_an_id_that_only_resembles_a_reserved_one_is_taken(applied):
    assert (await applied.publish("a", change_id="reapply-1")).json()["id"] == "reapply-1"
    assert (await applied.publish("b", change_id="Repair-ranker-4")).json()["id"] == "Repair-ranker-4"


async def test_the_change_of_a_move_is_read_however_long_the_name_of_its_model(applied):
    name = "r" * 63
    document = applied.rooms.model_document()
    document["metadata"]["name"] = name
    assert (await applied.http.put(f"/v1/models/{name}", json=document)).status_code == 200
    change_id = names.move_id(names.replan_plan_id("0199c2f0-7a3c-7e55-b1a5-3f1d2c4b5a69"), name)
    with applied.rooms.store.begin(name) as unit:
        unit.add_change(name, ChangeKind.MOVE, change_id=change_id)

    assert (await applied.http.get(f"/v1/changes/{change_id}")).json()["id"] == change_id
