"""Apply, read, explain and retire models."""

import json

import httpx
import pytest

from ipnext.api.services.checks.manifest import MOST_MANIFEST_BYTES
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import GenerationState
from tests.waiting import eventually


async def test_an_applied_model_is_read_back_with_status(applied):
    view = (await applied.http.get("/v1/models/ranker")).json()
    assert view["manifest"]["metadata"] == {"name": "ranker", "owner": "search", "labels": {}, "annotations": {}}
    assert view["version"] == 1
    assert view["status"]["servingGeneration"] is None
    assert [m["manifest"]["metadata"]["name"] for m in (await applied.http.get("/v1/models")).json()["items"]] == [
        "ranker"
    ]


async def test_the_same_manifest_twice_changes_nothing(applied):
    again = (await applied.http.put("/v1/models/ranker", json=applied.rooms.model_document())).json()
    assert (again["changed"], again["version"], again["fields"], again["change"]) == (False, 1, [], None)


async def test_a_dry_run_says_what_would_change_and_writes_nothing(applied):
    document = applied.rooms.model_document(qps=50)
    answer = (await applied.http.put("/v1/models/ranker?dryRun=true", json=document)).json()
    assert answer["dryRun"]
    assert answer["fields"] == [{"field": "spec.demand.0.qps", "before": 10.0, "after": 50.0}]
    assert (await applied.http.get("/v1/models/ranker")).json()["version"] == 1
    new = (await applied.http.put("/v1/models/other?dryRun=true", json=applied.rooms.model_document("other"))).json()
    assert (new["version"], new["changed"]) == (0, True)
    assert (await applied.http.get("/v1/models/other")).status_code == 404


async def test_an_unknown_field_is_refused_with_the_allowed_ones(applied):
    document = applied.rooms.model_document()
    document["spec"]["parts"][0]["hardwares"] = []
    answer = await applied.http.put("/v1/models/ranker", json=document)
    assert answer.status_code == 400
    assert answer.json()["code"] == "InvalidInput"
    assert answer.json()["field"] == "spec.parts.0.hardwares"
    assert "hardware" in answer.json()["allowed"]


async def test_a_region_the_fleet_lacks_is_refused_with_the_known_ones(applied):
    document = applied.rooms.model_document()
    document["spec"]["demand"][0]["region"] = "mars"
    answer = await applied.http.put("/v1/models/ranker", json=document)
    assert answer.status_code == 400
    body = answer.json()
    assert (body["field"], body["value"], body["allowed"]) == ("spec.demand.0.region", "mars", ["eu", "us"])


async def test_a_hardware_kind_the_fleet_lacks_is_refused(applied):
    document = applied.rooms.model_document()
    document["spec"]["parts"][1]["hardware"][0]["kind"] = "tpu"
    answer = await applied.http.put("/v1/models/ranker?dryRun=true", json=document)
    assert answer.status_code == 400
    assert answer.json()["field"] == "spec.parts.1.hardware.0.kind"
    assert answer.json()["allowed"] == ["cpu", "gpu"]


async def test_a_hardware_kind_of_a_split_that_the_fleet_lacks_is_refused(applied):
    document = applied.rooms.model_document("cut")
    document["spec"] |= {"parts": document["spec"]["parts"][:1], "graph": None}
    part = {"name": "tables", "modules": ["tables.*"], "hardware": ["cpu", {"kind": "tpu", "qps": 9}]}
    document["spec"]["split"] = {"parts": [part], "default": "dense"}
    answer = await applied.http.put("/v1/models/cut", json=document)
    assert answer.status_code == 400
    assert answer.json()["field"] == "spec.split.parts.0.hardware.1"
    assert answer.json()["allowed"] == ["cpu", "gpu"]


async def test_the_layout_of_what_serves_is_shown(applied):
    await applied.publish("a")
    layout = applied.rooms.lay_out(1)
    assert (await applied.http.get("/v1/models/ranker")).json()["layout"] is None, "nothing serves yet"
    applied.rooms.serve(1)
    [view] = (await applied.http.get("/v1/models")).json()["items"]
    assert view["layout"] == layout.model_dump(mode="json", by_alias=True)
    [generation] = (await applied.http.get("/v1/models/ranker/generations")).json()["items"]
    assert generation["layout"] == view["layout"]
    [shown] = (await applied.http.get("/v1/overview")).json()["models"]
    assert (shown["model"]["layout"], shown["generations"][0]["layout"]) == (view["layout"], None)


async def test_a_model_before_any_fleet_is_a_conflict_that_says_what_to_do(world):
    answer = await world.http.put("/v1/models/ranker", json=world.rooms.model_document())
    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")
    assert "fleet.yaml" in answer.json()["message"]


async def test_the_name_in_the_path_must_be_the_manifests(applied):
    answer = await applied.http.put("/v1/models/other", json=applied.rooms.model_document())
    assert (answer.status_code, answer.json()["field"]) == (400, "metadata.name")


async def test_a_write_on_a_stale_version_is_refused(applied):
    document = applied.rooms.model_document(qps=20)
    assert (await applied.http.put("/v1/models/ranker?expectedVersion=1", json=document)).status_code == 200
    for dry_run in ("false", "true"):
        late = await applied.http.put(f"/v1/models/ranker?expectedVersion=1&dryRun={dry_run}", json=document)
        assert (late.status_code, late.json()["code"]) == (409, "StaleWrite")


async def test_an_unknown_model_is_not_found_and_names_the_known_ones(applied):
    for path in ("", "/changes", "/generations", "/snapshots", "/events", "/transitions", "/explanation", "/reports/1"):
        answer = await applied.http.get(f"/v1/models/nope{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "NotFound"), path
    assert "ranker" in (await applied.http.get("/v1/models/nope")).json()["message"]


async def test_a_changed_manifest_of_a_model_that_serves_is_a_change_and_a_retry_finds_it(applied):
    rooms = applied.rooms
    await applied.publish("a")
    rooms.serve(1)
    document = rooms.model_document(qps=70)
    first = (await applied.http.put("/v1/models/ranker", json=document)).json()
    assert first["change"]["kind"] == "apply"
    again = (await applied.http.put("/v1/models/ranker", json=document)).json()
    assert (again["changed"], again["change"]["id"]) == (False, first["change"]["id"])
    await eventually(lambda: any(c.kind is ChangeKind.APPLY for c in rooms.lifecycle.submitted))


async def test_the_same_manifest_is_tried_again_after_its_change_has_failed(applied):
    rooms = applied.rooms
    await applied.publish("a")
    rooms.serve(1)
    document = rooms.model_document(qps=70)

    async def put(key=None, **changes):
        headers = {"Idempotency-Key": key} if key else {}
        answer = await applied.http.put("/v1/models/ranker", json=document | changes, headers=headers)
        return answer.json()["change"]["id"]

    def end(change_id, state=ChangeState.REFUSED, **observed):
        with rooms.store.begin("ranker") as unit:
            unit.update_change(change_id, state=state, reason=Reason.NO_CAPACITY, message="nothing can be placed")
            if observed:
                unit.update_model("ranker", **observed)

    first = await put("one")
    assert first.startswith("apply-ranker-2.")
    assert await put("two") == await put() == first, "it is open"
    end(first)
    assert await put("one") == first, "the retry of one request"
    second = await put("two")
    assert second not in {first, "apply-ranker-2"}
    assert await put() == second
    end(second, ChangeState.ROLLED_BACK)
    third = await put()
    assert third == "apply-ranker-2.4"
    end(third, ChangeState.DONE, observed_generation=2)
    assert await put() == await put("three") == third, "it is in force"


@pytest.mark.parametrize("since", ["retired", "changed"])
async def test_a_repeated_apply_undoes_nothing_that_came_after_it(applied, since):
    await applied.publish("a")
    applied.rooms.serve(1)
    document, headers = applied.rooms.model_document(qps=70), {"Idempotency-Key": "one"}

    async def put(body, **more):
        answer = await applied.http.put("/v1/models/ranker", json=body, **more)
        answer.raise_for_status()
        return answer.json()

    first = await put(document, headers=headers)
    with applied.rooms.store.begin("ranker") as unit:
        unit.update_change(first["change"]["id"], state=ChangeState.DONE)
    if since == "retired":
        with applied.rooms.store.begin("ranker") as unit:
            unit.add_change("ranker", ChangeKind.RETIRE, change_id="gone")
            unit.update_change("gone", state=ChangeState.DONE)
            unit.update_model("ranker", serving_generation=None, target_generation=None, retired=True)
    else:
        await put(applied.rooms.model_document(qps=80))
    with applied.rooms.store.read() as unit:
        before = unit.model("ranker")

    again = await put(document, headers=headers)

    assert (again["change"]["id"], again["change"]["state"]) == (first["change"]["id"], "done")
    assert (again["changed"], again["restored"]) == (False, False)
    with applied.rooms.store.read() as unit:
        assert unit.model("ranker") == before
    assert (await put(document, headers={"Idempotency-Key": "two"}))["restored"] is (since == "retired")


async def test_a_key_that_comes_with_another_manifest_is_refused_and_changes_nothing(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    headers = {"Idempotency-Key": "one"}

    async def put(qps):
        return await applied.http.put("/v1/models/ranker", json=applied.rooms.model_document(qps=qps), headers=headers)

    first = (await put(70)).json()
    refused = await put(80)
    assert (refused.status_code, refused.json()["code"]) == (409, "Conflict")
    told = f"Idempotency-Key: change {first['change']['id']!r} has this key with another manifest"
    assert refused.json()["message"].startswith(told)
    with applied.rooms.store.read() as unit:
        assert unit.model("ranker").manifest.spec.demand[0].qps == 70
    assert (await put(70)).json()["change"]["id"] == first["change"]["id"]


async def test_a_manifest_changed_before_anything_serves_waits_for_the_publish(applied):
    answer = (await applied.http.put("/v1/models/ranker", json=applied.rooms.model_document(qps=11))).json()
    assert (answer["changed"], answer["change"]) == (True, None)


async def test_new_labels_alone_move_nothing(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    document = applied.rooms.model_document()
    document["metadata"]["labels"] = {"team": "search"}
    answer = (await applied.http.put("/v1/models/ranker", json=document)).json()
    assert (answer["changed"], answer["version"], answer["change"]) == (True, 2, None)


async def test_deleting_twice_is_one_retirement(applied):
    first = await applied.http.delete("/v1/models/ranker")
    second = await applied.http.delete("/v1/models/ranker")
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    with applied.rooms.store.begin() as unit:
        unit.update_change(first.json()["id"], state=ChangeState.DONE, reason=Reason.SUCCEEDED)
        unit.update_model("ranker", retired=True)
    assert (await applied.http.delete("/v1/models/ranker")).status_code == 409
    assert (await applied.http.get("/v1/models")).json()["items"] == []
    assert (await applied.publish("a")).status_code == 409
    explained = (await applied.http.get("/v1/models/ranker/explanation")).json()
    assert explained["advice"].startswith(
        "To bring it back: `ipnext apply` its manifest again, then `ipnext publish ranker"
    )
    refused = await applied.http.post("/v1/models/ranker/repair", json={})
    assert refused.json()["message"].endswith("nothing to repair; apply its manifest again, then publish")


async def test_applying_a_retired_model_brings_it_back_and_says_what_to_do(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    with applied.rooms.store.begin() as unit:
        unit.set_generation_state("ranker", 1, GenerationState.RETIRED)
        unit.update_model("ranker", serving_generation=None, target_generation=None, retired=True)
        for half in (ConditionType.UP_TO_DATE, ConditionType.SERVING):
            unit.set_condition("ranker", half, "False", Reason.NOT_PUBLISHED, "the model is retired")
    document = applied.rooms.model_document()
    tried = (await applied.http.put("/v1/models/ranker?dryRun=true", json=document)).json()
    assert (tried["restored"], tried["dryRun"]) == (True, True)
    assert (await applied.publish("b")).status_code == 409

    answer = (await applied.http.put("/v1/models/ranker", json=document)).json()

    assert (answer["restored"], answer["changed"], answer["change"]) == (True, False, None)
    told = (await applied.http.get("/v1/models/ranker/explanation")).json()
    assert (
        told["message"] == "it was retired and is applied again: publish it, or roll back to a generation that served"
    )
    assert "`ipnext rollback ranker`" in told["advice"]
    assert (await applied.http.put("/v1/models/ranker", json=document)).json()["restored"] is False
    assert (await applied.http.post("/v1/models/ranker/rollback", json={})).json()["generation"] == 1


async def test_the_manifest_of_a_model_that_serves_by_an_older_one_is_brought_by_applying_it_again(applied):
    """It was applied while the model was retired, so no change brought it; a rollback served the former one."""
    await applied.publish("a")
    applied.rooms.serve(1)
    document = applied.rooms.model_document(qps=50)
    with applied.rooms.store.begin("ranker") as unit:
        unit.update_model("ranker", retired=True)
    assert (await applied.http.put("/v1/models/ranker", json=document)).json()["change"] is None

    again = (await applied.http.put("/v1/models/ranker", json=document)).json()["change"]

    assert again["kind"] == "apply"
    assert (await applied.http.put("/v1/models/ranker", json=document)).json()["change"]["id"] == again["id"]


async def test_nothing_is_taken_for_a_model_that_is_being_retired(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    retirement = (await applied.http.delete("/v1/models/ranker")).json()["id"]

    answers = [
        await applied.http.put("/v1/models/ranker", json=applied.rooms.model_document()),
        await applied.http.put("/v1/models/ranker?dryRun=true", json=applied.rooms.model_document()),
        await applied.publish("b"),
        await applied.http.post("/v1/models/ranker/rollback", json={}),
        await applied.http.post("/v1/models/ranker/repair", json={}),
    ]

    assert {answer.status_code for answer in answers} == {409}
    for answer in answers:
        assert f"is being retired by change {retirement}" in answer.json()["message"]
        assert "apply its manifest to bring it back" in answer.json()["message"]


async def test_what_a_retirement_that_is_held_up_waits_for_is_told_to_other_requests(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    retirement = (await applied.http.delete("/v1/models/ranker")).json()["id"]
    with applied.rooms.store.begin("ranker") as unit:
        told = "withdraw model is tried again: region 'eu' does not answer"
        unit.update_change(retirement, state=ChangeState.RUNNING, reason=Reason.REGION_UNREACHABLE, message=told)

    message = (await applied.publish("b")).json()["message"]

    assert f"by change {retirement}, which is held up: {told}; `ipnext wait ranker" in message


async def test_a_retirement_that_waits_for_a_freeze_names_it_and_what_takes_it_back(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    retirement = (await applied.http.delete("/v1/models/ranker")).json()["id"]
    with applied.rooms.store.begin("ranker") as unit:
        told = "frozen by sale until Monday"
        unit.update_change(retirement, state=ChangeState.RUNNING, reason=Reason.FROZEN, message=told)

    message = (await applied.publish("b")).json()["message"]

    assert f"by change {retirement}, which is {told}" in message
    assert "`ipnext abort ranker`" in message
    assert f"`ipnext override {retirement} --reason TEXT`" in message


async def test_values_that_no_store_can_keep_are_refused(applied):
    document = applied.rooms.model_document()
    for value in ("\ud800", "\0"):
        document["spec"]["parts"][0]["settings"] = {"x": [value]}
        headers = {"content-type": "application/json"}
        answer = await applied.http.put("/v1/models/ranker", content=json.dumps(document), headers=headers)
        assert answer.status_code == 400


def vllm_document(rooms, **settings):
    document = rooms.model_document("chat")
    document["spec"] |= {"task": "generation", "parts": [document["spec"]["parts"][0]]}
    del document["spec"]["graph"]
    document["spec"]["parts"][0] |= {"engine": "vllm", "settings": settings}
    return document


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"environment": {"LD_PRELOAD": "/blobs/x"}}, "spec.parts.0.settings.environment.LD_PRELOAD: 'LD_PRELOAD'"),
        ({"extraArgs": ["--trust-remote-cod"]}, "spec.parts.0.settings.extraArgs: '--trust-remote-cod'"),
    ],
)
async def test_a_manifest_whose_engine_might_load_code_is_refused(applied, settings, told):
    answer = await applied.http.put("/v1/models/chat", json=vllm_document(applied.rooms, **settings))
    assert answer.status_code == 400, answer.text
    assert answer.json()["message"].startswith(f"{told} is not allowed in a manifest")
    assert (await applied.http.get("/v1/models/chat")).status_code == 404


async def test_the_platforms_own_setting_allows_more(rooms):
    update = {"engine_environment_allow": ("LD_PRELOAD",), "engine_arguments_allow": ("--speculative-config",)}
    rooms.settings = rooms.settings.model_copy(update=update)
    app = rooms.app()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=rooms.headers) as http:
        (await http.put("/v1/fleet", json=rooms.fleet_document())).raise_for_status()
        settings = {"environment": {"LD_PRELOAD": "x"}, "extraArgs": ["--speculative-config", "{}"]}
        answer = await http.put("/v1/models/chat", json=vllm_document(rooms, **settings))
    assert answer.status_code == 200, answer.text


async def test_a_refused_body_is_validated_once(applied, monkeypatch):
    """Each value that does not belong into a body is a fault.

    Describing them twice would take the loop twice as long.
    """

    def again(*_given, **_more):
        msg = "validated again"
        raise AssertionError(msg)

    monkeypatch.setattr(ModelManifest, "model_validate", again)
    document = applied.rooms.model_document()
    document["spec"] |= {f"field{number}": number for number in range(100)}
    answer = await applied.http.put("/v1/models/ranker", json=document)
    assert (answer.status_code, answer.json()["field"]) == (400, "spec.field0")
    assert "unknown field; allowed here: " in answer.json()["message"]


@pytest.mark.parametrize("method", ["models", "owners", "freezes"])
async def test_a_manifest_has_a_largest_size(applied, method):
    """Lists, the page, planner and workers read manifests whole, and many at once."""
    freeze = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "big"}, "spec": {"reason": "r"}}
    window = {"start": "2031-01-01T00:00:00", "end": "2031-01-02T00:00:00"}
    documents = {
        "models": applied.rooms.model_document("big"),
        "owners": {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": "big"}, "spec": {}},
        "freezes": freeze | {"spec": {"reason": "r", "windows": [window]}},
    }
    document = documents[method]
    document["metadata"]["annotations"] = {"note": "é" * (MOST_MANIFEST_BYTES // 2)}
    refused = await applied.http.put(f"/v1/{method}/big", json=document)
    assert (refused.status_code, refused.json()["code"]) == (413, "TooLarge"), refused.text
    assert f"allowed: {MOST_MANIFEST_BYTES}" in refused.json()["message"]
    assert (await applied.http.get(f"/v1/{method}/big")).status_code == 404
    document["metadata"]["annotations"] = {"note": "é" * (MOST_MANIFEST_BYTES // 2 - 2000)}
    (await applied.http.put(f"/v1/{method}/big", json=document)).raise_for_status()
