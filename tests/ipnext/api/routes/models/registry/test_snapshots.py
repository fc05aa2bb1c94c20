"""Single snapshots at the API: lineage, holds, deletion, and who sees them."""

import pytest

from ipnext.model.access.rights import Role
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.registry.registry import GenerationState, SnapshotManifest, SnapshotSource
from ipnext.model.registry.sources import SnapshotOrigin
from ipnext.model.value import canonical_json

HOLD = "/v1/models/ranker/snapshots/dense/1/hold"


@pytest.fixture
async def served(applied):
    """The ranker with three generations, of which the last one serves, and the first one was refused."""
    for number, content in enumerate(("a", "b", "c"), 1):
        await applied.publish(content)
        state = GenerationState.REFUSED if number == 1 else GenerationState.SERVING
        with applied.rooms.store.begin("ranker") as unit:
            unit.set_generation_state("ranker", number, state)
            change = unit.changes("ranker", limit=1)[0]
            unit.update_change(change.id, state=ChangeState.REFUSED if number == 1 else ChangeState.DONE)
            unit.update_model("ranker", serving_generation=None if number == 1 else number)
    return applied


async def test_a_hold_is_listed_renewed_and_released(served):
    held = await served.http.put(HOLD, json={"reason": "an audit"})
    assert held.status_code == 200
    shown = (await served.http.get("/v1/holds")).json()["items"]
    assert [(item["model"], item["part"], item["number"], item["reason"]) for item in shown] == [
        ("ranker", "dense", 1, "an audit")
    ]
    (await served.http.put(HOLD, json={"reason": "a longer audit"})).raise_for_status()
    assert (await served.http.get("/v1/holds?model=ranker")).json()["items"][0]["reason"] == "a longer audit"
    assert (await served.http.get("/v1/holds?model=other")).json()["items"] == []
    released = await served.http.delete(HOLD, params={"reason": "over"})
    assert released.json()["reason"] == "a longer audit"
    assert (await served.http.get("/v1/holds")).json()["items"] == []
    again = await served.http.delete(HOLD)
    assert (again.status_code, again.json()["code"]) == (404, "NotFound")


async def test_a_hold_needs_a_reason_and_a_snapshot(served):
    assert (await served.http.put(HOLD, json={"reason": ""})).status_code == 400
    missing = await served.http.put(HOLD.replace("/1/", "/9/"), json={"reason": "x"})
    assert (missing.status_code, missing.json()["code"]) == (404, "NotFound")


async def test_a_snapshot_is_deleted_unless_something_needs_it(served):
    (await served.http.put(HOLD, json={"reason": "an audit"})).raise_for_status()
    path = "/v1/models/ranker/snapshots/dense/1"
    refused = await served.http.delete(path)
    assert (refused.status_code, refused.json()["code"]) == (409, "Conflict")
    assert "an audit" in refused.json()["message"]
    (await served.http.delete(HOLD)).raise_for_status()
    assert (await served.http.delete(path)).json()["number"] == 1
    lineage = (await served.http.get(f"{path}/lineage")).json()
    assert lineage["collectedAt"] is not None
    for number, reason in ((1, "was deleted before"), (2, "can be rolled back to|is warm"), (3, "is serving")):
        refused = await served.http.delete(f"/v1/models/ranker/snapshots/dense/{number}")
        assert refused.status_code == 409
        assert any(text in refused.json()["message"] for text in reason.split("|"))


async def test_lineage_leads_from_the_training_run_to_the_generations(served):
    origin = SnapshotOrigin(
        source="nightly", key="v7", place="v7", metrics={"auc": 0.8}, lineage={"run": "3f", "commit": "abc"}
    )
    with served.rooms.store.begin("ranker") as unit:
        unit.set_origin("ranker", "dense", 3, canonical_json(origin))
        first = unit.snapshot("ranker", "dense", 1)
        trained = first.manifest.model_copy(update={"parent": first.digest, "producer": {"more": "1"}})
        source = SnapshotSource(manifest=SnapshotManifest.model_validate(trained.model_dump()), uri=first.uri)
        unit._add_snapshot("ranker", "dense", source, number=4)
    page = (await served.http.get("/v1/models/ranker/lineage", params={"part": "dense", "limit": 2})).json()
    assert [item["number"] for item in page["items"]] == [4, 3]
    rest = (await served.http.get("/v1/models/ranker/lineage", params={"part": "dense", "after": page["next"]})).json()
    assert [item["number"] for item in rest["items"]] == [2, 1]
    assert page["items"][0]["parent"] == {
        "part": "dense",
        "number": 1,
        "digest": first.digest,
        "derivation": "trained on",
    }
    third = page["items"][1]
    assert third["trainingRun"]["lineage"] == {"run": "3f", "commit": "abc"}
    assert third["trainingRun"]["metrics"] == {"auc": 0.8}
    assert [(item["number"], item["state"]) for item in third["generations"]] == [(3, "serving")]
    oldest = rest["items"][1]
    assert [(item["number"], item["derivation"]) for item in oldest["derived"]] == [(4, "trained on")]
    assert [(item["number"], item["state"]) for item in oldest["generations"]] == [(1, "refused")]
    missing = await served.http.get("/v1/models/ranker/snapshots/dense/9/lineage")
    assert missing.status_code == 404


async def test_holds_and_lineage_of_other_owners_models_are_not_shown(served):
    (await served.http.put(HOLD, json={"reason": "an audit"})).raise_for_status()
    stranger = {"Authorization": f"Bearer {served.rooms.add_key('eve', Role.VIEWER, owner='others')}"}
    assert (await served.http.get("/v1/holds", headers=stranger)).json()["items"] == []
    for path in ("/v1/models/ranker/lineage", "/v1/models/ranker/snapshots/dense/1/lineage"):
        assert (await served.http.get(path, headers=stranger)).status_code in {403, 404}
    viewer = {"Authorization": f"Bearer {served.rooms.add_key('vic', Role.VIEWER)}"}
    assert (await served.http.get("/v1/models/ranker/lineage", headers=viewer)).status_code == 200
    for method, path in (("PUT", HOLD), ("DELETE", HOLD), ("DELETE", HOLD.removesuffix("/hold"))):
        answer = await served.http.request(
            method, path, json={"reason": "x"} if method == "PUT" else None, headers=viewer
        )
        assert answer.status_code == 403
