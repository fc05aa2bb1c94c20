"""What holds for every endpoint: errors, metrics, health, the schema, the fleet and plans."""

import asyncio
import dataclasses
import json
import re
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ipnext.errors import InvalidInput
from ipnext.model.lifecycle import ChangeState, ReplanResult
from ipnext.model.status import Reason
from ipnext.store.session import Store


async def test_an_unknown_path_and_a_wrong_method_have_an_error_body(world):
    unknown = await world.http.get("/v1/nothing")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "NotFound")
    wrong = await world.http.post("/v1/fleet", json={})
    assert (wrong.status_code, wrong.json()["code"]) == (405, "MethodNotAllowed")


async def test_a_body_that_is_no_json_says_so(world):
    broken = await world.http.put("/v1/fleet", content="{", headers={"content-type": "application/json"})
    assert (broken.status_code, broken.json()["code"]) == (400, "InvalidInput")
    assert "not JSON" in broken.json()["message"]
    untyped = await world.http.put("/v1/fleet", content="{}")
    assert (untyped.status_code, "content-type" in untyped.json()["message"]) == (400, True)


async def test_a_bad_parameter_is_invalid_input_not_422(applied):
    for path in ("/v1/plans?limit=0", "/v1/models/ranker/reports/x", "/v1/models/NOT_A_NAME", "/v1/changes/%20"):
        answer = await applied.http.get(path)
        assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput"), path
        assert answer.json()["field"]


async def test_a_database_that_is_not_usable_is_unavailable_and_not_ready(rooms):
    unmigrated = Store.open(f"sqlite:///{rooms.directory}/other.db")
    app = dataclasses.replace(rooms, store=unmigrated).app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api") as http:
        answer = await http.get("/v1/models")
        assert (answer.status_code, answer.json()["code"]) == (503, "Unavailable")
        assert answer.headers["retry-after"]
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["store"]) == (503, "down")
        assert (await http.get("/healthz")).status_code == 200
    unmigrated.close()


async def test_the_fleet_is_read_written_and_guarded(world):
    assert (await world.http.get("/v1/fleet")).status_code == 404
    document = world.rooms.fleet_document()
    dry = await world.http.put("/v1/fleet?dryRun=true", json=document)
    assert (dry.status_code, dry.json()["version"]) == (200, 0)
    assert (await world.http.put("/v1/fleet?expectedVersion=0", json=document)).json()["version"] == 1
    document["spec"]["supply"][0]["units"] = 9
    assert (await world.http.put("/v1/fleet?expectedVersion=1", json=document)).json()["version"] == 2
    for dry_run in ("false", "true"):
        stale = await world.http.put(f"/v1/fleet?expectedVersion=1&dryRun={dry_run}", json=document)
        assert (stale.status_code, stale.json()["code"]) == (409, "StaleWrite")
    assert (await world.http.get("/v1/fleet")).json()["spec"]["supply"][0]["units"] == 9


async def test_a_fleet_may_not_lose_what_a_model_names(applied):
    document = applied.rooms.fleet_document()
    document["spec"] |= {"regions": ["us"], "rttMs": [[1]], "supply": []}
    answer = await applied.http.put("/v1/fleet", json=document)
    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")
    assert "'ranker'" in answer.json()["message"]


async def test_regions_show_supply_and_what_is_used(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    regions = {r["region"]: r for r in (await applied.http.get("/v1/regions")).json()}
    assert regions["eu"]["supply"] == [{"hardware": "cpu", "units": 8, "used": 4, "free": 4, "unit_cost": 1}]
    assert regions["us"]["supply"][0]["free"] == 4
    assert regions["eu"]["gateway_url"] == "http://eu.memory"
    assert len(regions["eu"]["replicas"]) == 4


async def test_plans_are_listed_read_and_compared(applied):
    assert (await applied.http.get("/v1/plans")).json() == []
    applied.rooms.adopt_plan("plan-1")
    applied.rooms.adopt_plan("plan-2")
    listed = (await applied.http.get("/v1/plans")).json()
    assert [(p["id"], p["in_force"], p["unmet_qps"]) for p in listed] == [
        ("plan-2", True, 12.5),
        ("plan-1", False, 12.5),
    ]
    plan = (await applied.http.get("/v1/plans/plan-1")).json()
    assert (plan["in_force"], plan["plan"]["traffic"][0]["from"]) == (False, "eu")
    assert (await applied.http.get("/v1/plans/plan-1/diff")).json()["moves"] == 4
    assert (await applied.http.get("/v1/plans/nope")).status_code == 404


async def test_a_replan_is_started_and_followed(applied):
    started = await applied.http.post("/v1/replan", json={})
    assert started.status_code == 202
    run = {"workflowId": started.json()["workflow_id"], "runId": started.json()["run_id"]}
    assert (await applied.http.get("/v1/replan", params=run)).json()["state"] == "running"
    applied.rooms.lifecycle.replan_result = ReplanResult(plan_id="plan-1", adopted=True, moves=2)
    done = (await applied.http.get("/v1/replan", params=run)).json()
    assert (done["state"], done["result"]["moves"]) == ("done", 2)
    assert (await applied.http.get("/v1/replan", params=run | {"runId": "x"})).status_code == 404


async def test_a_replan_while_the_engine_is_down_is_unavailable(applied):
    applied.rooms.lifecycle.down = True
    answer = await applied.http.post("/v1/replan", json={})
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "Unavailable", "1")


async def test_a_change_that_the_engine_can_never_take_ends_refused(applied, monkeypatch):
    async def refuse(_change):
        msg = "never"
        raise InvalidInput(msg)

    monkeypatch.setattr(applied.rooms.lifecycle, "submit", refuse)
    change_id = (await applied.publish("a")).json()["id"]

    def refused():
        with applied.rooms.store.read() as unit:
            change = unit.change(change_id)
        return (change.state, change.reason) == (ChangeState.REFUSED, Reason.INTERNAL_ERROR)

    await applied.eventually(refused)


async def test_one_model_whose_submission_hangs_holds_up_no_other(applied, monkeypatch):
    lifecycle, submit = applied.rooms.lifecycle, applied.rooms.lifecycle.submit

    async def hang_for_ranker(change):
        if change.model == "ranker":
            await asyncio.Event().wait()
        return await submit(change)

    monkeypatch.setattr(lifecycle, "submit", hang_for_ranker)
    (await applied.http.put("/v1/models/other", json=applied.rooms.model_document("other"))).raise_for_status()
    await applied.publish("a")
    await applied.publish("b", model="other")
    await applied.eventually(lambda: [c.model for c in lifecycle.submitted] == ["other"])


async def test_metrics_tell_changes_models_plan_and_supply(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    applied.rooms.adopt_plan()
    text = (await applied.http.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["ipnext_models_ready"] == "1.0"
    assert values['ipnext_serving_generation{model="ranker"}'] == "1.0"
    assert values['ipnext_changes{state="done"}'] == "1.0"
    assert values['ipnext_unmet_demand_qps{model="ranker",region="eu"}'] == "12.5"
    assert values["ipnext_plan_gap_ratio"] == "0.05"
    assert values['ipnext_supply_units{hardware="cpu",region="eu"}'] == "8.0"
    assert values['ipnext_supply_used_units{hardware="cpu",region="eu"}'] == "4.0"
    assert 'ipnext_run_duration_seconds{kind="publish",model="ranker",state="done"}' in values
    assert all(name.startswith("ipnext_") for name in values)


async def test_history_is_read_back(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    change = (await applied.http.get("/v1/models/ranker/changes")).json()[0]
    assert change["run_url"].endswith(f"/workflows/lifecycle%2Franker%2F{change['id']}/run-of-1")
    assert (await applied.http.get(f"/v1/changes/{change['id']}")).json() == change
    assert (await applied.http.get("/v1/models/ranker/generations")).json()[0]["state"] == "serving"
    assert (await applied.http.get("/v1/models/ranker/events")).json()[0]["kind"] == "generation_serving"
    assert (await applied.http.get("/v1/events")).json()[0]["model"] == "ranker"
    assert (await applied.http.get("/v1/models/ranker/transitions")).json() == []
    assert (await applied.http.get("/v1/models/ranker/reports/1")).status_code == 404
    assert (await applied.http.get("/v1/changes/nope")).status_code == 404


async def test_the_overview_holds_everything_the_page_shows(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    applied.rooms.adopt_plan()
    view = (await applied.http.get("/v1/overview")).json()
    assert [m["model"]["status"]["servingGeneration"] for m in view["models"]] == [1]
    assert view["models"][0]["generations"][0]["number"] == 1
    assert (view["plan"]["summary"]["id"], len(view["changes"]), len(view["events"])) == ("plan-1", 1, 1)
    assert [r["region"] for r in view["regions"]] == ["eu", "us"]


async def test_the_schema_and_its_page_need_no_other_host(world):
    schema = (await world.http.get("/openapi.json")).json()
    page = (await world.http.get("/docs")).text
    assert "HTTPValidationError" not in json.dumps(schema)
    for path in schema["paths"]:
        assert path in page
    linked = re.findall(r'(?:href|src)="([^"]+)"', page + (await world.http.get("/")).text)
    assert linked
    assert all(link.startswith(("/", "#")) for link in linked)
    undescribed = [
        f"{method} {path}"
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
        if not operation.get("summary") or not operation.get("description")
    ]
    assert undescribed == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
BODIES = ("PUT /v1/fleet", "PUT /v1/models/ranker", "POST /v1/models/ranker/publish", "POST /v1/models/ranker/rollback",
          "POST /v1/replan", "POST /v1/artifacts/missing", "POST /v1/artifacts/snapshots")  # fmt: skip
FUZZ = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)


def _mutated(document, data):
    """A valid document with one value replaced, at any depth."""
    node, steps = document, data.draw(st.integers(1, 5))
    for _ in range(steps):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            node[key] = data.draw(JSON)
            return
        node = node[key]


@pytest.fixture
def fuzzed(rooms):
    """A synchronous client of the application: hypothesis drives synchronous tests."""
    rooms.seed("ranker")
    app = rooms.app()
    loop = asyncio.new_event_loop()
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://api")

    def ask(method, path, **options):
        return loop.run_until_complete(http.request(method, path, **options))

    ask.rooms = rooms  # type: ignore[attr-defined]
    yield ask
    loop.run_until_complete(http.aclose())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@FUZZ
@given(data=st.data())
def test_no_body_whatever_makes_a_server_error(fuzzed, data):
    method, path = data.draw(st.sampled_from(BODIES)).split()
    content = json.dumps(data.draw(JSON))
    answer = fuzzed(method, path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code < 500
    assert answer.is_success or answer.json()["code"]


@FUZZ
@given(data=st.data())
def test_a_nearly_right_manifest_never_makes_a_server_error(fuzzed, data):
    document = data.draw(st.sampled_from(["model", "fleet"]))
    body = fuzzed.rooms.model_document() if document == "model" else fuzzed.rooms.fleet_document()
    _mutated(body, data)
    path = "/v1/models/ranker" if document == "model" else "/v1/fleet"
    answer = fuzzed("PUT", path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code < 500
    fuzzed("PUT", "/v1/fleet", json=fuzzed.rooms.fleet_document())
    assert fuzzed("GET", "/v1/overview").status_code == 200


@FUZZ
@given(tail=st.text(max_size=12), name=st.sampled_from(["models", "changes", "plans", "models/ranker/reports"]))
def test_no_path_whatever_makes_a_server_error(fuzzed, tail, name):
    answer = fuzzed("GET", f"/v1/{name}/{quote(tail, safe='')}")
    assert answer.status_code < 500
