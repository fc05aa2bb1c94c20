"""The Python client against a real server, and against one that misbehaves."""

import json
import subprocess
import sys
import threading

import httpx
import pytest

from ipnext import errors
from ipnext.client import Client
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.names import again_id
from tests.genai.support.checkpoints import write_llama
from tests.ipnext.conftest import write_snapshot
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def client(live):
    with Client(live.url) as client:
        yield client


@pytest.fixture
def snapshots(live):
    directory = live.rooms.directory / "local"
    for part in ("sparse", "dense"):
        live.rooms.write_snapshot(directory / part, part.encode(), b"shared")
    return {part: directory / part for part in ("sparse", "dense")}


@pytest.fixture
def applied(client, live):
    client.apply(json.dumps(live.rooms.model_document()) + "\n---\n" + json.dumps(live.rooms.fleet_document()))
    return client


def test_apply_takes_several_documents_and_sends_the_fleet_first(applied):
    assert applied.fleet().version == 1
    assert [view.status.model for view in applied.models()] == ["ranker"]


def test_apply_takes_a_manifest_and_dry_runs(applied, live):
    manifest = ModelManifest.model_validate(live.rooms.model_document(qps=99))
    (answer,) = applied.apply(manifest, dry_run=True)
    assert [f.field for f in answer.fields] == ["spec.demand.0.qps"]
    assert applied.model("ranker").manifest.spec.demand[0].qps == 10


def test_a_bad_manifest_is_refused_before_it_is_sent():
    with Client("http://127.0.0.1:1") as client, pytest.raises(errors.InvalidInput, match="unknown field"):
        client.apply("apiVersion: ipnext/v1\nkind: Fleet\nspec: {}\nmetadata: {}\n")


def test_publish_uploads_only_what_the_server_lacks(applied, snapshots):
    uploaded = []
    change = applied.publish("ranker", snapshots, on_upload=lambda file: uploaded.append(file.path))
    assert change.generation == 1
    assert len(uploaded) == 3
    (snapshots["dense"] / "file-0.txt").write_bytes(b"denso")
    with pytest.raises(errors.ArtifactDigestMismatch, match="file-0"):
        applied.publish("ranker", snapshots)
    assert [s.number for s in applied.snapshots("ranker")] == [1, 1]


def test_a_snapshot_of_many_files_is_asked_for_in_several_queries(applied, snapshots, monkeypatch):
    monkeypatch.setattr("ipnext.client.calls.publications.MOST_ASKED", 2)
    asked, real = [], applied._call

    def noted(method, path, *given, **named):
        asked.extend([named["body"].digests] if path == "/v1/artifacts/missing" else [])
        return real(method, path, *given, **named)

    monkeypatch.setattr(applied, "_call", noted)
    many = snapshots["dense"].with_name("many")
    write_snapshot(many, *(b"%d" % n for n in range(5)))
    uploaded = []
    applied.publish("ranker", snapshots | {"dense": many}, on_upload=lambda file: uploaded.append(file.path))
    assert sorted(map(len, asked)) == [1, 2, 2, 2]
    assert len(uploaded) == 7


def test_a_checkpoint_directory_is_published_as_the_snapshot_that_it_makes(applied, snapshots, tmp_path, live):
    checkpoint = write_llama(tmp_path / "hf", shards=4)  # the test server takes small blobs only
    uploaded = []
    change = applied.publish(
        "ranker",
        {"sparse": snapshots["sparse"], "dense": checkpoint},
        on_upload=lambda file: uploaded.append(file.path),
    )
    assert change.generation == 1
    assert {"config.json", "model.safetensors.index.json", "model-00004-of-00004.safetensors"} <= set(uploaded)
    (snapshot,) = [one for one in applied.snapshots("ranker") if one.part == "dense"]
    assert snapshot.manifest.checkpoint.architecture == "LlamaForCausalLM"
    assert not (checkpoint / "snapshot.json").exists()


def test_publish_by_uri_is_read_by_the_server(applied, live):
    root = live.rooms.directory / "allowed"
    for part in ("sparse", "dense"):
        live.rooms.write_snapshot(root / part, part.encode())
    change = applied.publish("ranker", {part: (root / part).as_uri() for part in ("sparse", "dense")})
    assert applied.change(change.id).generation == 1


def test_a_directory_that_is_no_snapshot_is_named(applied, tmp_path):
    with pytest.raises(errors.InvalidInput, match=r"no snapshot\.json"):
        applied.publish("ranker", {"dense": tmp_path})
    with pytest.raises(errors.InvalidInput, match="not a directory"):
        applied.publish("ranker", {"dense": tmp_path / "nothing"})


def test_a_snapshot_that_leads_outside_its_directory_is_refused(applied, live, snapshots):
    (live.rooms.directory / "secret").write_bytes(b"dense")
    (snapshots["dense"] / "file-0.txt").unlink()
    (snapshots["dense"] / "file-0.txt").symlink_to(live.rooms.directory / "secret")
    with pytest.raises(errors.PathNotAllowed):
        applied.publish("ranker", snapshots)


def test_a_checkpoint_with_a_link_to_another_file_is_refused_before_the_server_is_asked(tmp_path):
    directory = write_llama(tmp_path / "llm")
    (tmp_path / "secret.cfg").write_text("password")
    (directory / "notes.txt").symlink_to("../secret.cfg")
    with Client("http://127.0.0.1:1") as client, pytest.raises(errors.PathNotAllowed, match=r"'notes\.txt' to"):
        client.publish("ranker", {"llm": directory})


def test_the_servers_errors_come_back_as_the_same_class(applied, snapshots):
    applied.publish("ranker", snapshots)
    with pytest.raises(errors.DuplicateSnapshot):
        applied.publish("ranker", snapshots)
    with pytest.raises(errors.NotFound, match="known: ranker"):
        applied.model("nope")
    with pytest.raises(errors.StaleWrite):
        applied.put_model(applied.model("ranker").manifest, expected_version=7)
    with pytest.raises(errors.InvalidInput) as caught:
        applied.publish("ranker", {"head": snapshots["dense"]})
    assert caught.value.allowed == ("sparse", "dense")


def test_waiting_for_a_change_sees_every_state_and_its_end(applied, live, snapshots):
    change = applied.publish("ranker", snapshots)
    seen = []

    def on_update(update):
        seen.append(update.state)
        if update.state is ChangeState.QUEUED:
            live.rooms.serve(1)

    done = applied.wait_change(change.id, PATIENCE_SECONDS, on_update=on_update)
    assert (done.state, seen[-1]) == (ChangeState.DONE, ChangeState.DONE)
    assert done.run_url is not None
    assert applied.wait_ready("ranker", PATIENCE_SECONDS).status.serving_generation == 1
    assert applied.explain("ranker").ready
    assert applied.events("ranker")[0].kind == "generation_serving"
    assert applied.generations("ranker")[0].number == 1
    assert {r.region for r in applied.regions()} == {"eu", "us"}


def test_waiting_for_a_change_that_is_carried_out_again_waits_for_the_second_one(applied, live, snapshots):
    change, seen = applied.publish("ranker", snapshots), []
    with live.rooms.store.begin("ranker") as unit:
        again = unit.record_again(unit.change(change.id), change_id=again_id("ranker", change.sequence))
        unit.update_change(change.id, state=ChangeState.ROLLED_BACK, reason=Reason.REGION_UNREACHABLE)
        unit.update_change(again.id, state=ChangeState.DONE, reason=Reason.SUCCEEDED)

    done = applied.wait_change(change.id, PATIENCE_SECONDS, on_update=lambda update: seen.append(update.id))

    assert (done.id, done.state, done.generation) == (again.id, ChangeState.DONE, change.generation)
    assert seen == [change.id, again.id]


def test_waiting_too_long_says_where_it_stands(applied, snapshots):
    change = applied.publish("ranker", snapshots)
    with pytest.raises(errors.DeadlineExceeded, match=change.id):
        applied.wait_change(change.id, 0.3)
    with pytest.raises(errors.DeadlineExceeded, match="ipnext explain ranker"):
        applied.wait_ready("ranker", 0)


def test_waiting_after_a_publish_never_returns_the_former_generation(applied, live, snapshots):
    applied.publish("ranker", snapshots)
    live.rooms.serve(1)
    applied.wait_ready("ranker", PATIENCE_SECONDS)
    live.rooms.write_snapshot(live.rooms.directory / "newer", b"newer")

    change = applied.publish("ranker", {"dense": live.rooms.directory / "newer"})
    with pytest.raises(errors.DeadlineExceeded, match=f"{change.id} waits; generation 1 serves"):
        applied.wait_ready("ranker", 0)
    live.rooms.serve(2)
    assert applied.wait_ready("ranker", PATIENCE_SECONDS).status.serving_generation == 2


def test_a_replan_is_followed_to_its_result(applied, live):
    replan = applied.replan()
    assert not applied.replan_status(replan.id).state.final
    live.rooms.adopt_plan()
    live.rooms.finish_replan(replan.id, moves=4)
    result = applied.wait_replan(replan.id, PATIENCE_SECONDS)
    assert (result.is_adopted, result.plan_id) == (True, "plan-1")
    assert applied.plan_diff("plan-1").moves == result.moves == 4
    assert applied.plans(fleet_only=True)[0].in_force
    assert applied.plan("plan-1").plan.cost_per_hour == 4
    assert applied.plan_summary("plan-1").wall_seconds == 1.5
    assert [found.id for found in applied.replans()] == [replan.id]


def test_a_replan_that_fails_is_told_with_its_reason(applied, live):
    replan = applied.replan()
    live.rooms.finish_replan(
        replan.id, state=ReplanState.FAILED, reason=Reason.PLANNER_FAILED, message="the planner was killed"
    )
    with pytest.raises(errors.Unavailable, match="PlannerFailed: the planner was killed"):
        applied.wait_replan(replan.id, PATIENCE_SECONDS)


def test_waiting_for_a_replan_too_long_says_where_it_stands(applied):
    with pytest.raises(errors.DeadlineExceeded, match=r"is (recorded|queued) after 0\.3 s"):
        applied.replan(dry_run=True, max_moves=2, wait=True, timeout_seconds=0.3)
    assert (applied.replans()[0].dry_run, applied.replans()[0].max_moves) == (True, 2)


def test_an_api_that_does_not_answer_is_named_with_what_to_do():
    with Client("http://127.0.0.1:1") as client, pytest.raises(errors.Unavailable, match="IPNEXT_API_URL") as caught:
        client.models()
    assert "http://127.0.0.1:1" in caught.value.message


def test_a_call_that_may_be_repeated_is_repeated():
    calls = []

    def answer(request):
        calls.append(request.method + request.url.path)
        if len(calls) < 3:
            body = {"code": "Unavailable", "message": "starting"}
            return httpx.Response(503, json=body)
        return httpx.Response(200, json={"items": []})

    with Client("http://api", transport=httpx.MockTransport(answer)) as client:
        assert tuple(client.models()) == ()
        assert calls == ["GET/v1/models"] * 3


def test_a_repeated_replan_carries_the_same_id():
    ids = []

    def answer(request):
        ids.append(json.loads(request.content)["replanId"])
        if len(ids) == 1:
            return httpx.Response(503, json={"code": "Unavailable", "message": "starting"})
        at = "2026-01-01T00:00:00Z"
        return httpx.Response(202, json={"id": ids[0], "trigger": "manual", "not_before": at, "created_at": at})

    with Client("http://api", transport=httpx.MockTransport(answer)) as client:
        assert client.replan().id == ids[0] == ids[1]


def test_a_repeated_publish_carries_the_same_change_id():
    ids = []

    def answer(request):
        ids.append(json.loads(request.content)["changeId"])
        if len(ids) == 1:
            msg = "cut"
            raise httpx.ReadError(msg)
        change = {"id": ids[0], "model": "m", "kind": "publish", "sequence": 1, "created_at": "2026-01-01T00:00:00Z"}
        return httpx.Response(202, json=change)

    with Client("http://api", transport=httpx.MockTransport(answer)) as client:
        client.publish("m", {"p": "s3://bucket/prefix"})
    assert len(ids) == 2
    assert ids[0] == ids[1]


def test_an_answer_that_is_not_ours_says_so():
    transport = httpx.MockTransport(lambda _: httpx.Response(404, text="<html>"))
    with (
        Client("http://other", transport=transport) as client,
        pytest.raises(errors.IPnextError, match="is it an IPnext API"),
    ):
        client.models()


def test_one_client_serves_several_threads(applied):
    failures = []

    def ask():
        try:
            for _ in range(5):
                applied.models()
        except errors.IPnextError as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.usefixtures("subprocesses")
def test_client_and_command_line_need_the_base_dependencies_only():
    heavy = (
        "numpy fastapi sqlmodel sqlalchemy temporalio torch cvxpy boto3 structlog prometheus_client uvicorn "
        "aiohttp psutil"
    )
    code = (
        "import sys, ipnext.client, ipnext.cli, ipnext.model.api.resources\n"
        f"print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_without_a_url_the_client_asks_the_api_that_the_environment_names(live, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    with Client() as client:
        assert tuple(client.models()) == ()
    with Client("http://127.0.0.1:1", timeout_seconds=1) as client, pytest.raises(errors.Unavailable, match=":1 "):
        client.models()


@pytest.mark.parametrize(("name", "value"), [("IPNEXT_API_URL", "nowhere"), ("IPNEXT_TIMEOUT_SECONDS", "-1")])
def test_a_variable_that_says_nothing_usable_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(errors.InvalidInput, match=f"{name}.*{value}"):
        Client()


class Pages:
    """An API that lists the numbers from 0 on, in pages, and remembers what it was asked for."""

    def __init__(self, count):
        self.count = count
        self.asked = []

    def __call__(self, request):
        after, limit = request.url.params.get("after"), int(request.url.params["limit"])
        self.asked.append((after, limit))
        start = 0 if after is None else int(after) + 1
        end = min(self.count, start + limit)
        items = [
            {"at": "2026-01-01T00:00:00Z", "model": None, "kind": "k", "message": str(n)} for n in range(start, end)
        ]
        return httpx.Response(200, json={"items": items, "next": str(end - 1) if end < self.count else None})


def numbers(events):
    return [int(event.message) for event in events]


def test_a_list_reads_its_pages_while_it_is_iterated_over():
    api = Pages(450)
    with Client("http://api", transport=httpx.MockTransport(api)) as client:
        found = client.events(limit=None)
        assert api.asked == [(None, 200)], "one page before anything is looked at"
        assert numbers(found) == list(range(450))
        assert api.asked == [(None, 200), ("199", 200), ("399", 200)]
        assert (len(found), found[449].message, found[-1].message) == (450, "449", "449")
        assert len(api.asked) == 3, "what was read is kept"
        with pytest.raises(IndexError):
            found[450]


def test_a_list_with_a_limit_asks_for_no_more_and_says_that_there_is_more():
    api = Pages(450)
    with Client("http://api", transport=httpx.MockTransport(api)) as client:
        found = client.events(limit=250)
        assert (numbers(found), found.next) == (list(range(250)), "249")
        assert api.asked == [(None, 200), ("199", 50)]
        assert client.events(limit=450).next is not None
        assert bool(client.events(limit=1))


def test_the_end_of_a_list_has_no_cursor():
    with Client("http://api", transport=httpx.MockTransport(Pages(3))) as client:
        assert client.events(limit=3).next is None
    with Client("http://api", transport=httpx.MockTransport(Pages(0))) as client:
        assert (list(client.events()), bool(client.events())) == ([], False)


def test_models_are_listed_by_their_filters(live):
    live.rooms.seed("a-one", "a-two", "b-three")
    with Client(live.url) as client:
        assert [view.manifest.name for view in client.models(search="a-", limit=1)] == ["a-one"]
        assert [view.manifest.name for view in client.models(owner="search", ready=False)] == [
            "a-one",
            "a-two",
            "b-three",
        ]
        assert not client.models(ready=True)
