"""Lists and the page in a large fleet: pages by key, filters, one statement whatever the number of models."""

import asyncio
import math
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import event

from activities.planning.replan import read_records
from ipnext.api.requests import guarded_route
from ipnext.api.services.region_states import States
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult, ValidationReport
from ipnext.model.lifecycle.failure_cause import Cause, Place
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.transition import Transition
from ipnext.store.records import TransitionRecord
from tests.ipnext.conftest import World
from tests.ipnext.store.conftest import snapshot_source
from tests.ipnext.store.registry.test_profiles import profile


@pytest.fixture
async def quiet(rooms, monkeypatch):
    """The API without its background work: nothing but the requests asks or writes the store."""
    monkeypatch.setattr(guarded_route, "LATE_SECONDS", math.inf)  # however slow the machine
    app = rooms.app()
    app.state.platform.access._clock = lambda: 0.0  # a credential that was proved once stays so
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=rooms.headers) as http:
        await http.get("/v1/sessions/current")
        yield World(http, rooms)


def name_of(number):
    return f"model-{number:04}"


def fill(rooms, count, *, ready=lambda _: True, owner="search"):
    """That many models with a condition, a deployment-free history and a few changes each."""
    rooms.seed()
    with rooms.store.begin() as unit:
        for number in range(count):
            document = rooms.model_document(name_of(number))
            document["metadata"]["owner"] = owner if isinstance(owner, str) else owner(number)
            unit.put_model(ModelManifest.model_validate(document), expected_version=None)
            status = "True" if ready(number) else "False"
            reason = Reason.SERVING if ready(number) else Reason.LOAD_FAILED
            for half in (ConditionType.UP_TO_DATE, ConditionType.SERVING):
                unit.set_condition(name_of(number), half, status, reason)


@contextmanager
def statements(rooms):
    """The statements that the store runs meanwhile."""
    seen = []

    def before(_connection, _cursor, statement, *_):
        seen.append(statement)

    event.listen(rooms.store._engine, "before_cursor_execute", before)
    yield seen
    event.remove(rooms.store._engine, "before_cursor_execute", before)


async def pages(http, path, **params):
    """All pages of a list: the items, and the size of each page."""
    items, sizes, after = [], [], None
    while True:
        answer = await http.get(httpx.URL(path).copy_merge_params(params | ({"after": after} if after else {})))
        answer.raise_for_status()
        page = answer.json()
        items += page["items"]
        sizes.append(len(page["items"]))
        after = page["next"]
        if after is None:
            return items, sizes


def names(items):
    return [item["manifest"]["metadata"]["name"] for item in items]


async def test_models_come_in_pages_by_name_and_each_of_them_once(world):
    fill(world.rooms, 7)
    items, sizes = await pages(world.http, "/v1/models", limit=3)
    assert names(items) == [name_of(number) for number in range(7)]
    assert sizes == [3, 3, 1]


async def test_the_last_page_that_is_full_has_no_next(world):
    fill(world.rooms, 6)
    _, sizes = await pages(world.http, "/v1/models", limit=3)
    assert sizes == [3, 3]


async def test_a_model_that_comes_between_two_pages_moves_none_out_of_them(world):
    fill(world.rooms, 4)
    first = (await world.http.get("/v1/models?limit=2")).json()
    with world.rooms.store.begin() as unit:
        early = ModelManifest.model_validate(world.rooms.model_document("aaa"))
        unit.put_model(early, expected_version=None)
    rest, _ = await pages(world.http, "/v1/models", limit=2, after=first["next"])
    assert names(first["items"]) + names(rest) == [name_of(number) for number in range(4)]


async def test_models_are_filtered_by_owner_readiness_and_text(world):
    fill(world.rooms, 12, ready=lambda n: n % 3 > 0, owner=lambda n: "ads" if n < 6 else "search")
    for query, expected in {
        "owner=ads": range(6),
        "ready=false": (0, 3, 6, 9),
        "ready=true&owner=search": (7, 8, 10, 11),
        "search=-001": (10, 11),
        "search=%25": (),
        "owner=nobody": (),
    }.items():
        found, _ = await pages(world.http, f"/v1/models?{query}")
        assert names(found) == [name_of(number) for number in expected], query


@pytest.mark.parametrize("limit", [0, 201, "x"])
async def test_a_page_of_models_has_a_limit(world, limit):
    answer = await world.http.get(f"/v1/models?limit={limit}")
    assert (answer.status_code, answer.json()["field"]) == (400, "limit")


async def test_an_owner_that_is_applied_later_is_found_by_the_filter(world):
    fill(world.rooms, 1, owner="ads")
    document = world.rooms.model_document(name_of(0))
    (await world.http.put(f"/v1/models/{name_of(0)}", json=document)).raise_for_status()
    assert (await pages(world.http, "/v1/models?owner=ads"))[0] == []
    assert len((await pages(world.http, "/v1/models?owner=search"))[0]) == 1


async def test_a_model_whose_replicas_fail_is_listed_as_not_ready_although_it_is_recorded_as_ready(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    assert (await pages(applied.http, "/v1/models?ready=false"))[0] == []
    digest = applied.rooms.snapshot_manifest(b"densea").digest
    applied.rooms.infrastructure.fail_load(digest, code="OutOfMemory", message="needs 9 GiB")
    await applied.http.get("/v1/models/ranker")
    assert names((await pages(applied.http, "/v1/models?ready=false"))[0]) == ["ranker"]
    assert (await pages(applied.http, "/v1/models?ready=true"))[0] == []
    overview = (await applied.http.get("/v1/overview")).json()
    assert (overview["model_count"], overview["ready_count"], overview["not_ready"]) == (1, 0, ["ranker"])
    assert "ipnext_models_ready 0.0" in (await applied.http.get("/metrics")).text


async def test_a_model_in_a_region_that_does_not_answer_is_listed_as_not_ready(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    applied.rooms.infrastructure.cut("eu")
    assert names((await pages(applied.http, "/v1/models?ready=false"))[0]) == ["ranker"]


async def test_a_model_whose_gateway_sends_its_users_nowhere_is_listed_as_not_ready(applied):
    """As after the loss of the only region that answered them."""
    await applied.publish("a")
    applied.rooms.serve(1)
    assert (await applied.http.get("/v1/overview")).json()["ready_count"] == 1
    with applied.rooms.store.begin() as unit:
        table = unit.route("ranker", "eu")
        unit.put_routes([table.model_copy(update={"revision": table.revision + 1, "shares": ()})])
    assert names((await pages(applied.http, "/v1/models?ready=false"))[0]) == ["ranker"]
    overview = (await applied.http.get("/v1/overview")).json()
    assert (overview["ready_count"], overview["not_ready"]) == (0, ["ranker"])


async def test_the_overview_counts_all_models_and_names_those_that_are_not_ready(world):
    fill(world.rooms, 30, ready=lambda n: n % 10 > 0)
    view = (await world.http.get("/v1/overview?limit=5")).json()
    assert (len(view["models"]), view["next"]) == (5, name_of(4))
    assert (view["model_count"], view["ready_count"]) == (30, 27)
    assert view["not_ready"] == [name_of(0), name_of(10), name_of(20)]


LISTS = ("/v1/models?limit=200", "/v1/overview?limit=200", "/metrics")


async def count_statements(quiet):
    """Map each list to the number of statements of a request after a write, so that no earlier answer is used."""
    found = {}
    for path in LISTS:
        with quiet.rooms.store.begin() as unit:
            unit.add_event(None, "Test", "something happened")
        with statements(quiet.rooms) as seen:
            (await quiet.http.get(path)).raise_for_status()
        found[path] = len(seen)
    return found


async def test_ten_models_and_two_hundred_take_the_same_statements(quiet):
    fill(quiet.rooms, 10)
    few = await count_statements(quiet)
    fill(quiet.rooms, 200)
    assert await count_statements(quiet) == few
    assert all(few.values()), "the store was asked"


def fail(rooms, name, number):
    """Refuse a model's publish, or revert it.

    It stores the report, the transition, the events and the cause of such an end.
    """
    generation = rooms.publish_directly(name, "a")
    message = f"weights of {name}"
    rooms.refuse(generation, Reason.LOAD_FAILED, message, model=name)
    with rooms.store.begin(name) as unit:
        change = unit.changes(name)[0]
        cause = Cause(change=change.id, reason=Reason.LOAD_FAILED, message=message, place=Place(host=f"host-{number}"))
        check = CheckResult(check="artifact", subject="dense", outcome=CheckOutcome.REFUSED, message=message)
        unit.save_report(ValidationReport(model=name, generation=generation, checks=(check,)))
        unit.add_event(name, "Failed", message, detail=cause.detail)
        later = cause.model_copy(update={"message": "later", "place": Place(host="another")})
        unit.add_event(name, "Failed", "later", detail=later.detail)
        transition = Transition.model_validate({"from": {}, "to": {}, "waves": ({"gate": "final"},)})
        record = {"id": change.id, "model": name, "change_id": change.id, "generation": generation}
        unit.save_transition(TransitionRecord(**record, transition=transition, created_at=change.created_at))


async def test_one_model_and_many_that_failed_take_the_same_statements(quiet):
    """The page explains each of them by its change, transition, report and events."""
    fill(quiet.rooms, 10, ready=lambda n: n > 0)
    fail(quiet.rooms, name_of(0), 0)
    with statements(quiet.rooms) as few:
        (await quiet.http.get("/v1/overview?limit=200")).raise_for_status()
    fill(quiet.rooms, 100, ready=lambda n: n % 10 > 0)
    for number in range(10, 100, 10):
        fail(quiet.rooms, name_of(number), number)
    with statements(quiet.rooms) as many:
        view = (await quiet.http.get("/v1/overview?limit=200")).raise_for_status().json()
    assert len(many) == len(few)
    shown = {each["model"]["manifest"]["metadata"]["name"]: each["explanation"] for each in view["models"]}
    explained = {name: found for name, found in shown.items() if found is not None}
    assert list(explained) == [name_of(number) for number in range(0, 100, 10)]
    for number in range(0, 100, 10):
        name, chain = name_of(number), explained[name_of(number)]["chain"]
        assert "check artifact" in {step["message"] for step in chain}
        assert f"weights of {name}" in {step["message"] for step in chain}
        assert f"host-{number}" in {step["subject"] for step in chain}, "the first cause, not a later one"
        assert (await quiet.http.get(f"/v1/models/{name}/explanation")).json() == explained[name]


def measure(rooms, count):
    """That many models whose throughput is measured: twice for each of two snapshots of the same architecture."""
    option = {"kind": "cpu", "units": 1, "tokensPerSecond": 5, "profile": True}
    part = {"name": "llm", "engine": "vllm", "hardware": [option]}
    demand = [{"region": "eu", "tokensPerSecond": 10}]
    spec = {"task": "generation", "parts": [part], "demand": demand}
    for name in map(name_of, range(count)):
        head = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": name}}
        with rooms.store.begin(name) as unit:
            unit.put_model(ModelManifest.model_validate(head | {"spec": spec}), expected_version=None)
            for number in (1, 2):
                unit.publish(name, {"llm": snapshot_source(f"weights {number}")}, change_id=f"{name}-{number}")
                for hours in range(2):
                    unit.add_profile(name, "llm", number, profile(number, hours=hours))
            unit.update_model(name, serving_generation=1)
            for half in (ConditionType.UP_TO_DATE, ConditionType.SERVING):
                unit.set_condition(name, half, "True", Reason.SERVING)


@pytest.mark.parametrize("path", ["/v1/overview?limit=200", f"/v1/models/{name_of(0)}"])
async def test_measured_throughput_of_many_models_is_read_at_once(quiet, path):
    quiet.rooms.seed()
    measure(quiet.rooms, 10)
    with statements(quiet.rooms) as few:
        answer = (await quiet.http.get(path)).raise_for_status().json()
    view = answer if "throughput" in answer else answer["models"][0]["model"]
    assert [line["snapshot"] for line in view["throughput"] if line["snapshot"]] == [2], (
        "the newest of its architecture"
    )
    measure(quiet.rooms, 60)
    with statements(quiet.rooms) as many:
        (await quiet.http.get(path)).raise_for_status()
    assert len(many) == len(few)
    assert sum("FROM profiles" in statement for statement in many) == 1


async def test_a_fleet_is_planned_by_what_was_measured_in_as_many_statements_as_one_model(quiet):
    quiet.rooms.seed()
    measure(quiet.rooms, 1)
    with quiet.rooms.store.read() as unit, statements(quiet.rooms) as few:
        read_records(unit)
    measure(quiet.rooms, 40)
    with quiet.rooms.store.read() as unit, statements(quiet.rooms) as many:
        found = read_records(unit)
    assert (len(many), len(found)) == (len(few), 40)


async def test_the_newest_changes_of_many_models_are_found_through_the_index(quiet):
    fill(quiet.rooms, 3)
    with quiet.rooms.store.read() as unit, statements(quiet.rooms) as seen:
        unit.recent_changes([name_of(0), name_of(1)], limit=5)
        unit.recent_generations([name_of(0)], limit=5)
        unit.model_counts()
        unit.units_running()
        unit.change_counts(unit.model(name_of(0)).created_at)
    plans = []
    with quiet.rooms.store._engine.connect() as connection:
        for statement in seen:
            parameters = tuple("x" for _ in range(statement.count("?")))
            plans += [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
    assert [step for step in plans if step.startswith("SCAN") and "INDEX" not in step] == []


def identity(item):
    """What of an item of any list stays the same from one look to the next."""
    keys = ("id", "number", "part", "ordinal", "region", "kind", "at")
    return {key: item[key] for key in keys if key in item}


async def test_every_history_comes_in_pages(applied):
    for salt in "abcde":
        await applied.publish(salt)
    applied.rooms.serve(1)
    for path, count in {
        "/v1/models/ranker/changes": 5,
        "/v1/changes": 5,
        "/v1/models/ranker/generations": 5,
        "/v1/models/ranker/snapshots": 10,
        "/v1/events": 1,
        "/v1/regions": 2,
        "/v1/regions/eu/replicas": 4,
    }.items():
        whole, _ = await pages(applied.http, path)
        parts, sizes = await pages(applied.http, path, limit=2)
        assert [identity(item) for item in parts] == [identity(item) for item in whole], path
        assert (len(whole), max(sizes)) == (count, min(count, 2)), path


@pytest.mark.parametrize(
    "path", ["/v1/events", "/v1/changes", "/v1/plans", "/v1/models/ranker/snapshots", "/v1/models/ranker/generations"]
)
async def test_a_cursor_that_no_page_gave_out_is_named(applied, path):
    answer = await applied.http.get(path, params={"after": "nonsense"})
    assert (answer.status_code, answer.json()["field"], answer.json()["value"]) == (400, "after", "nonsense")


async def test_apply_finds_its_change_among_many_later_ones(applied):
    await applied.publish("a")
    applied.rooms.serve(1)
    document = applied.rooms.model_document(qps=20)
    first = (await applied.http.put("/v1/models/ranker", json=document)).json()["change"]
    for number in range(60):
        await applied.http.post("/v1/models/ranker/rollback", json={"changeId": f"back-{number}", "generation": 1})
        await applied.publish(f"b{number}")
    again = (await applied.http.put("/v1/models/ranker", json=document)).json()["change"]
    assert (again["id"], first["kind"]) == (first["id"], "apply")


async def test_an_error_lists_a_bounded_number_of_allowed_values(applied):
    for number in range(30):
        await applied.publish(f"s{number}")
        applied.rooms.serve(number + 1)
    answer = await applied.http.post("/v1/models/ranker/rollback", json={"generation": 999})
    assert len(answer.json()["allowed"]) == 20
    assert answer.json()["allowed"][0] == "29", "the newest first"


async def test_an_idle_fleet_is_answered_with_304_and_computed_once(quiet):
    fill(quiet.rooms, 3)
    shared = quiet.http._transport.app.state.platform.shared
    first = await quiet.http.get("/v1/overview")
    again = await quiet.http.get("/v1/overview", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert shared.computed == 1
    with quiet.rooms.store.begin() as unit:
        unit.add_event(None, "Test", "something happened")
    changed = await quiet.http.get("/v1/overview", headers={"If-None-Match": first.headers["etag"]})
    assert changed.status_code == 200
    assert shared.computed == 2


async def test_a_write_without_an_event_is_seen_by_the_next_reader(quiet):
    fill(quiet.rooms, 1)
    first = await quiet.http.get("/v1/models")
    with quiet.rooms.store.begin() as unit:
        unit.set_condition(name_of(0), ConditionType.SERVING, "False", Reason.LOAD_FAILED)
    second = await quiet.http.get("/v1/models", headers={"If-None-Match": first.headers["etag"]})
    assert second.status_code == 200
    assert second.json()["items"][0]["status"]["conditions"][0]["status"] == "False"


async def test_readers_who_come_together_share_one_computation(quiet):
    fill(quiet.rooms, 3)
    shared = quiet.http._transport.app.state.platform.shared
    answers = await asyncio.gather(*(quiet.http.get("/v1/overview") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert shared.computed == 1


def test_replicas_are_indexed_by_model_and_only_troubled_models_are_suspects():
    def replica(model, number, **changes):
        key = DeploymentKey(model=model, part="p", region="eu", hardware="cpu")
        return Replica(id=f"{model}-{number}", key=key, phase=ReplicaPhase.RUNNING, ready=(1,)).model_copy(
            update=changes
        )

    bad = replica("b", 1, ready=())
    state = RegionState(region="eu", gateway_url="http://eu", replicas=(replica("a", 2), replica("a", 1), bad))
    states = States({"eu": state, "us": None})
    assert [each.id for each in states.of("a")] == ["a-1", "a-2"]
    assert states.of("c") == ()
    assert (states.troubled, states.unreachable) == ({"b"}, {"us"})
