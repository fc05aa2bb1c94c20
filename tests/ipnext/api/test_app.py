"""What holds for every endpoint: errors, metrics, health, the schema, the fleet and plans."""

import asyncio
import dataclasses
import json
import re
from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ipnext.api.workflow_engine.attempts import FailedSubmission
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.errors import InvalidInput
from ipnext.model.access.rights import Role
from ipnext.model.api.resources import PlanView
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.store.store import Store
from tests.waiting import eventually


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
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost", headers=rooms.headers
    ) as http:
        answer = await http.get("/v1/models")
        assert (answer.status_code, answer.json()["code"]) == (503, "Unavailable")
        assert answer.headers["retry-after"]
        ready = await http.get("/readyz")
        assert (ready.status_code, ready.json()["store"]) == (503, "down")
        assert (await http.get("/healthz")).status_code == 200
    unmigrated.close()


async def test_an_api_on_the_record_of_another_platform_answers_and_is_not_ready(rooms):
    with rooms.store.begin() as repository:
        repository.belong_to(WorkflowNamespace(id="another", name="default", address="there:7233"))
        repository.add_drain("eu")
    app = rooms.app()
    async with (
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app), base_url="http://localhost", headers=rooms.headers
        ) as http,
        app.router.lifespan_context(app),
    ):
        await eventually(lambda: app.state.platform.outbox.foreign)
        ready = await http.get("/readyz")
        assert ready.status_code == 503
        expected = {
            "ready": False,
            "store": "foreign",
            "temporal": "ok",
            "unsubmitted_changes": 0,
            "access_settings": "ok",
        }
        assert ready.json() == {**expected, "stuck_changes": 0}
        assert (await http.get("/v1/models")).status_code == 200
    assert rooms.lifecycle.drains_told == []


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
    regions = {r["region"]: r for r in (await applied.http.get("/v1/regions")).json()["items"]}
    assert regions["eu"]["supply"] == [{"hardware": "cpu", "units": 8, "used": 4, "free": 4, "unit_cost": 1}]
    assert regions["us"]["supply"][0]["free"] == 4
    assert regions["eu"]["gateway_url"] == "http://eu.memory"
    assert len(regions["eu"]["replicas"]) == 4


async def test_plans_are_listed_read_and_compared(applied):
    assert (await applied.http.get("/v1/plans")).json()["items"] == []
    applied.rooms.adopt_plan("plan-1")
    applied.rooms.adopt_plan("plan-2")
    listed = (await applied.http.get("/v1/plans")).json()["items"]
    assert [(p["id"], p["in_force"], p["unmet_qps"]) for p in listed] == [
        ("plan-2", True, 12.5),
        ("plan-1", False, 12.5),
    ]
    plan = (await applied.http.get("/v1/plans/plan-1")).json()
    assert (plan["in_force"], plan["plan"]["traffic"][0]["from"]) == (False, "eu")
    assert (await applied.http.get("/v1/plans/plan-1/diff")).json()["moves"] == 4
    assert (await applied.http.get("/v1/plans/nope")).status_code == 404


async def test_a_plan_is_read_without_its_documents_or_with_them_as_they_lie_in_the_store(applied):
    applied.rooms.adopt_plan("plan-1")
    applied.rooms.fail_replan("the planner was killed")
    summary = (await applied.http.get("/v1/plans/plan-1/summary")).json()
    whole = (await applied.http.get("/v1/plans/plan-1")).json()
    assert {**whole, "problem": None, "plan": None, "diff": None} == {
        **summary, "problem": None, "plan": None, "diff": None
    }  # fmt: skip
    assert PlanView.model_validate(whole).problem.models[0].model == "ranker"
    assert (summary["wall_seconds"], summary["cpu_seconds"], summary["peak_memory_bytes"]) == (1.5, 2.5, 2**20)
    assert (summary["method"], summary["bound"], summary["bound_covers"]) == ("highs", 9.5, "all")
    failed = (await applied.http.get("/v1/plans?fleetOnly=true")).json()["items"][0]
    assert (failed["outcome"], failed["reason"], failed["has_documents"]) == ("failed", "PlannerFailed", False)
    for path in ("/v1/plans/replan-failed", "/v1/plans/replan-failed/diff"):
        answer = await applied.http.get(path)
        assert (answer.status_code, "only its line is kept" in answer.json()["message"]) == (404, True)


async def test_a_replan_is_recorded_handed_on_and_followed(applied):
    asked = await applied.http.post("/v1/replans", json={"replanId": "r1", "dryRun": True, "maxMoves": 3})
    assert asked.status_code == 202
    assert (asked.json()["state"], asked.json()["dry_run"], asked.json()["max_moves"]) == ("recorded", True, 3)
    again = await applied.http.post("/v1/replans", json={"replanId": "r1", "dryRun": True, "maxMoves": 3})
    assert again.json()["id"] == "r1"
    other = await applied.http.post("/v1/replans", json={"replanId": "r1"})
    assert (other.status_code, other.json()["code"]) == (409, "Conflict")
    await eventually(lambda: applied.rooms.lifecycle.replans_woken > 0)
    applied.rooms.finish_replan("r1", state=ReplanState.DRY_RUN, message="told")
    done = (await applied.http.get("/v1/replans/r1")).json()
    assert (done["state"], done["plan_id"], done["message"]) == ("dry_run", "plan-1", "told")
    assert done["run_url"].endswith("/workflows/replan/run-of-replan")
    assert [r["id"] for r in (await applied.http.get("/v1/replans")).json()["items"]] == ["r1"]
    assert (await applied.http.get("/v1/replans/none")).status_code == 404


async def test_a_replan_while_the_engine_is_down_is_recorded_and_handed_on_later(applied):
    applied.rooms.lifecycle.down = True
    answer = await applied.http.post("/v1/replans", json={"replanId": "r1"})
    assert (answer.status_code, answer.json()["state"]) == (202, "recorded")
    applied.rooms.lifecycle.down = False

    def queued():
        with applied.rooms.store.read() as unit:
            return unit.replan("r1").state is ReplanState.QUEUED

    await eventually(queued)


def _fleet(world, units):
    document = world.rooms.fleet_document()
    document["spec"]["supply"][0]["units"] = units
    return document


async def test_a_changed_fleet_asks_for_one_replan_however_many_changes_come(applied):
    applied.rooms.adopt_plan()
    for units in (9, 9, 10, 11):
        (await applied.http.put("/v1/fleet", json=_fleet(applied, units))).raise_for_status()
    (await applied.http.put("/v1/fleet?dryRun=true", json=_fleet(applied, 12))).raise_for_status()
    replans = (await applied.http.get("/v1/replans")).json()["items"]
    assert [(r["id"], r["trigger"], r["state"]) for r in replans] == [("supply-2", "supply", "recorded")]
    assert replans[0]["not_before"] > replans[0]["created_at"], "it waits for further changes"
    assert applied.rooms.lifecycle.replans_woken == 0


async def test_a_changed_fleet_is_handed_on_once_its_time_has_come(rooms):
    settings = rooms.settings.model_copy(update={"replan_delay_seconds": 0.0})
    rooms.seed("ranker")
    rooms.adopt_plan()
    app = dataclasses.replace(rooms, settings=settings).app()
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=rooms.headers) as http,
    ):
        document = rooms.fleet_document()
        document["spec"]["supply"][0]["unitCost"] = 2
        (await http.put("/v1/fleet", json=document)).raise_for_status()
        await eventually(lambda: rooms.lifecycle.replans_woken)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert rooms.lifecycle.replans_woken == 1


@pytest.mark.parametrize(("switched_on", "placed"), [(False, True), (True, False)])
async def test_a_changed_fleet_asks_for_nothing_where_that_is_switched_off_or_nothing_is_placed(
    rooms, switched_on, placed
):
    settings = rooms.settings.model_copy(update={"replan_on_supply": switched_on})
    rooms.seed("ranker")
    if placed:
        rooms.adopt_plan()
    app = dataclasses.replace(rooms, settings=settings).app()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://localhost", headers=rooms.headers
    ) as http:
        document = rooms.fleet_document()
        document["spec"]["supply"][0]["units"] = 9
        (await http.put("/v1/fleet", json=document)).raise_for_status()
        assert (await http.get("/v1/replans")).json()["items"] == []


async def test_a_model_that_no_region_reaches_in_time_is_refused_and_so_is_a_fleet_that_makes_it_so(applied):
    document = applied.rooms.model_document("far")
    document["spec"]["latencyToleranceMs"] = 0.5
    answer = await applied.http.put("/v1/models/far", json=document)
    assert (answer.status_code, answer.json()["field"]) == (400, "spec.latencyToleranceMs")
    assert "reaches no region from eu; allowed: at least 1" in answer.json()["message"]
    fleet = applied.rooms.fleet_document()
    fleet["spec"]["rttMs"] = [[900, 901], [901, 900]]
    answer = await applied.http.put("/v1/fleet", json=fleet)
    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")


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

    await eventually(refused)


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
    await eventually(lambda: [c.model for c in lifecycle.submitted] == ["other"])


async def test_metrics_of_an_owner_tell_no_demand_of_others(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    applied.rooms.adopt_plan()
    shown = {}
    for owner in ("search", "ads"):
        headers = {"Authorization": f"Bearer {applied.rooms.add_key(owner, Role.VIEWER, owner=owner)}"}
        shown[owner] = (await applied.http.get("/metrics", headers=headers)).text
    for family in ("ipnext_priority_unmet_demand_qps", "ipnext_owner_unmet_demand_qps", "ipnext_unmet_demand_qps"):
        assert f"{family}{{" in shown["search"]
        assert f"{family}{{" not in shown["ads"]


async def test_metrics_of_an_owner_tell_no_work_of_others(applied):
    families = ("ipnext_outbox_stuck_changes", "ipnext_outbox_refused_total", "ipnext_event_streams")
    for owner, shown in (("search", False), ("*", True)):
        headers = {"Authorization": f"Bearer {applied.rooms.add_key(f'viewer-{len(owner)}', Role.VIEWER, owner=owner)}"}
        lines = (await applied.http.get("/metrics", headers=headers)).text.splitlines()
        assert [any(line.startswith(f"{family} ") for line in lines) for family in families] == [shown] * 3


@pytest.mark.parametrize(
    ("role", "owner", "region", "counted"),
    [
        (None, "*", "*", False),
        (Role.VIEWER, "*", "*", False),
        (Role.ADMIN, "search", "*", False),
        (Role.OPERATOR, "*", "eu", False),
        (Role.OPERATOR, "*", "*", True),
    ],
)
async def test_readyz_counts_changes_for_operators_of_all_owners_only(applied, role, owner, region, counted):
    applied.rooms.lifecycle.down = True
    await applied.publish("a")
    key = None if role is None else applied.rooms.add_key("asker", role, owner=owner, region=region)
    transport = httpx.ASGITransport(app=applied.rooms.app())
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as http:
        answer = await http.get("/readyz")
        wrong = await http.get("/readyz", headers={"Authorization": f"Bearer {(key or '')[:-1]}"})
    shown = {"ready": True, "store": "ok", "temporal": "down", "access_settings": "ok"}
    assert answer.json() == {
        **shown,
        "unsubmitted_changes": 1 if counted else None,
        "stuck_changes": 0 if counted else None,
    }
    assert wrong.status_code == 200
    assert wrong.json() == {**shown, "unsubmitted_changes": None, "stuck_changes": None}


async def test_an_unready_answer_names_no_change(applied, monkeypatch):
    error = "namespace limit of secret-model"
    tried = FailedSubmission("apply-secret-model-3", tries=1, since=datetime.now(UTC), error=error, refused=True)
    monkeypatch.setattr(Outbox, "stuck", property(lambda _: (tried,)))
    ready = await applied.http.get("/readyz")
    assert ready.json()["stuck_changes"] == 1
    assert "secret" not in ready.text


async def test_metrics_tell_changes_models_plan_and_supply(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    applied.rooms.adopt_plan()
    await applied.http.post("/v1/replans", json={"replanId": "r1"})
    applied.rooms.finish_replan("r1", moves=4)
    text = (await applied.http.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values["ipnext_models_ready"] == "1.0"
    assert values['ipnext_serving_generation{model="ranker"}'] == "1.0"
    assert values['ipnext_changes{state="done"}'] == "1.0"
    assert values['ipnext_unmet_demand_qps{model="ranker",region="eu"}'] == "12.5"
    assert values["ipnext_plan_gap_ratio"] == "0.05"
    assert values['ipnext_owner_unmet_demand_qps{owner="search"}'] == "12.5"
    assert values['ipnext_priority_unmet_demand_qps{priority="2"}'] == "12.5"
    assert values['ipnext_owner_cost_dollars_per_hour{owner="search"}'] == "4.0"
    assert (values["ipnext_plan_cost_dollars_per_hour"], values["ipnext_plan_bound_dollars_per_hour"]) == ("4.0", "9.5")
    assert values["ipnext_plan_objective_dollars_per_hour"] == "10.0"
    assert (values["ipnext_solve_seconds"], values["ipnext_solve_cpu_seconds"]) == ("1.5", "2.5")
    assert values['ipnext_supply_planned_units{hardware="cpu",region="eu"}'] == "4.0"
    assert values['ipnext_supply_planned_units{hardware="cpu",region="us"}'] == "0.0"
    assert values['ipnext_replans_total{outcome="adopted",trigger="manual"}'] == "1.0"
    assert values['ipnext_replans_total{outcome="failed",trigger="manual"}'] == "0.0"
    assert values["ipnext_replan_moves_total"] == "4.0"
    assert values["ipnext_replans_waiting"] == "0.0"
    assert values['ipnext_supply_units{hardware="cpu",region="eu"}'] == "8.0"
    assert values['ipnext_supply_used_units{hardware="cpu",region="eu"}'] == "4.0"
    assert 'ipnext_run_duration_seconds{kind="publish",model="ranker",state="done"}' in values
    assert all(name.startswith("ipnext_") for name in values)


async def test_history_is_read_back(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    change = (await applied.http.get("/v1/models/ranker/changes")).json()["items"][0]
    assert change["run_url"].endswith(f"/workflows/lifecycle%2Franker%2F{change['id']}/run-of-1")
    assert (await applied.http.get(f"/v1/changes/{change['id']}")).json() == change
    assert (await applied.http.get("/v1/models/ranker/generations")).json()["items"][0]["state"] == "serving"
    assert (await applied.http.get("/v1/models/ranker/events")).json()["items"][0]["kind"] == "generation_serving"
    assert (await applied.http.get("/v1/events")).json()["items"][0]["model"] == "ranker"
    assert (await applied.http.get("/v1/models/ranker/transitions")).json()["items"] == []
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
    assert (view["replan"]["id"], view["replan"]["outcome"]) == ("plan-1", "adopted")
    assert [r["region"] for r in view["regions"]] == ["eu", "us"]


async def test_the_schema_and_its_page_are_made_once(world, monkeypatch):
    """Anybody may request them, and they take milliseconds to make."""
    made = []
    monkeypatch.setattr("ipnext.api.routes.page.page.render_schema", lambda schema: made.append(schema) or "a page")
    monkeypatch.setattr("ipnext.api.schema.Api.openapi", lambda _: made.append("schema") or {"paths": {}})
    for _ in range(3):
        assert (await world.http.get("/openapi.json")).json() == {"paths": {}}
        assert (await world.http.get("/docs")).text == "a page"
    assert made == ["schema", "schema", {"paths": {}}]


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        (
            "PUT",
            "/v1/models/ranker?dry_run=true",
            "dry_run: no parameter of the query of PUT /v1/models/{name}; allowed: expectedVersion, dryRun",
        ),
        (
            "POST",
            "/v1/models/ranker/pause?reason=x",
            "reason: no parameter of the query of POST /v1/models/{name}/pause; this endpoint has none",
        ),
        (
            "GET",
            "/v1/models?Limit=1",
            "Limit: no parameter of the query of GET /v1/models; allowed: owner, ready, search, after, limit, label",
        ),
        (
            "DELETE",
            "/v1/owners/search?force",
            "force: no parameter of the query of DELETE /v1/owners/{owner}; allowed: expectedVersion",
        ),
        ("GET", "/metrics?x=1", "x: no parameter of the query of GET /metrics; this endpoint has none"),
    ],
)
async def test_a_parameter_that_an_endpoint_does_not_have_is_refused_and_nothing_is_done(applied, method, path, said):
    before = (await applied.http.get("/v1/models/ranker")).json()
    body = applied.rooms.model_document(qps=99) if method == "PUT" else {}
    answer = await applied.http.request(method, path, json=body if method in {"PUT", "POST"} else None)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")
    assert answer.json()["message"] == said
    assert answer.json()["field"] == said.partition(":")[0]
    assert (await applied.http.get("/v1/models/ranker")).json() == before


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
          "POST /v1/replans", "POST /v1/artifacts/missing", "POST /v1/artifacts/snapshots")  # fmt: skip
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
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost", headers=rooms.headers)

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
