"""Sources at the API: what an apply refuses, pushes by key, pauses, lists, and what is sent to the workflow engine."""

import base64
import dataclasses
import hashlib
import hmac
import json
import time

import httpx
import pytest

from ipnext.api.workflow_engine.source_wakes import SourceWakes
from ipnext.model.access.rights import Role
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import Reach
from ipnext.store.sources.sources import WatchedSource
from tests.ipnext.conftest import write_snapshot

pytestmark = pytest.mark.trust

FEED = {"name": "feed", "part": "dense", "push": {}}
PATH = "/v1/models/ranker/sources/feed"


@pytest.fixture
def apply(applied):
    """Applies the ranker with these sources."""

    async def call(*sources, **more):
        document = applied.rooms.model_document()
        document["spec"]["sources"] = list(sources)
        return await applied.http.put("/v1/models/ranker", json=document, **more)

    return call


@pytest.fixture
def incoming(applied):
    """A directory below the root that principals of all owners may name."""
    (root,) = applied.rooms.settings.artifact_roots
    (root / "incoming").mkdir(parents=True)
    return root / "incoming"


async def test_an_apply_records_sources_and_has_their_systems_polled(applied, apply, incoming):
    directory = {"name": "nightly", "part": "sparse", "every": "5s", "directory": {"path": str(incoming)}}
    (await apply(FEED, directory)).raise_for_status()
    items = (await applied.http.get("/v1/sources")).json()["items"]
    assert [(item["name"], item["kind"], item["state"], item["cursor"]) for item in items] == [
        ("feed", "push", "waiting", ""),
        ("nightly", "directory", "waiting", ""),
    ]
    assert items[1]["spec"]["directory"] == {"path": str(incoming)}
    lifecycle = applied.rooms.lifecycle
    lifecycle.watches_woken.clear()
    assert await SourceWakes(applied.rooms.store, lifecycle).send_pending()
    assert set(lifecycle.watches_woken) <= {("push", "ranker"), ("directory", str(incoming))}
    (await apply()).raise_for_status()
    assert (await applied.http.get("/v1/sources")).json()["items"] == []


async def test_a_request_is_sent_again_until_the_engine_takes_it(applied, apply):
    (await apply(FEED)).raise_for_status()
    lifecycle, store = applied.rooms.lifecycle, applied.rooms.store
    with store.begin("ranker") as unit:
        unit.wake_source("ranker", "feed")
    lifecycle.down = True
    wakes = SourceWakes(store, lifecycle)
    assert not await wakes.send_pending()
    lifecycle.down = False
    lifecycle.watches_woken.clear()
    assert await wakes.send_pending()
    assert lifecycle.watches_woken == [("push", "ranker")]
    assert await wakes.send_pending()
    assert lifecycle.watches_woken == [("push", "ranker")]


@pytest.mark.parametrize(
    ("source", "status", "field"),
    [
        ({"name": "a", "part": "dense", "plugin": {"kind": "kafka"}}, 400, "spec.sources.0.plugin.kind"),
        ({"name": "a", "part": "dense", "directory": {"path": "ROOT/none"}}, 400, "spec.sources.0.directory.path"),
        ({"name": "a", "part": "dense", "s3": {"uri": "s3://secret/x"}}, 403, "spec.sources.0.uri"),
        ({"name": "a", "part": "wide", "push": {}}, 400, "spec"),
    ],
)
async def test_an_apply_refuses_what_can_not_be_watched_by_its_place(applied, apply, incoming, source, status, field):
    text = json.dumps(source).replace("ROOT", str(incoming))
    refused = await apply(json.loads(text))
    assert (refused.status_code, refused.json()["field"]) == (status, field), refused.text
    assert (await applied.http.get("/v1/sources")).json()["items"] == []


async def test_what_may_be_watched_follows_from_who_applies_and_stays_with_the_settings(applied, apply, incoming):
    rooms = applied.rooms
    publisher = {"Authorization": f"Bearer {rooms.add_key('publisher', Role.PUBLISHER, owner='search')}"}
    directory = {"name": "nightly", "part": "dense", "directory": {"path": str(incoming)}}
    refused = await apply(directory, headers=publisher)
    assert (refused.status_code, refused.json()["code"]) == (403, "PathNotAllowed")
    assert str(incoming) not in refused.json()["message"].partition("allowed")[2]
    (await apply(directory)).raise_for_status()
    again = await apply({**directory, "every": "9s"}, headers=publisher)
    assert again.status_code == 200, "it is the directory that an administrator granted"
    with rooms.store.read() as unit:
        assert unit.source("ranker", "nightly").reach is not Reach.OWNER
    moved = await apply({**directory, "directory": {"path": "/"}}, headers=publisher)
    assert moved.status_code == 403


async def test_a_pushed_version_is_recorded_once_for_each_key(applied, apply):
    (await apply(FEED)).raise_for_status()
    digest = await applied.upload(b"x")
    body = {"digest": digest, "metrics": {"auc": 0.7}, "trainedAt": "2026-11-30T00:00:00Z"}
    first = await applied.http.post(f"{PATH}/versions", json=body, headers={"Idempotency-Key": "run-1"})
    again = await applied.http.post(f"{PATH}/versions", json=body, headers={"Idempotency-Key": "run-1"})
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json()
    assert (first.json()["key"], first.json()["state"], first.json()["metrics"]) == ("run-1", "found", {"auc": 0.7})
    versions = (await applied.http.get(f"{PATH}/versions")).json()["items"]
    assert [version["key"] for version in versions] == ["run-1"]
    other = await applied.upload(b"y")
    taken = await applied.http.post(f"{PATH}/versions", json={"digest": other, "key": "run-1"})
    assert (taken.status_code, taken.json()["code"]) == (409, "Conflict")


@pytest.mark.parametrize("ended", [False, True])
async def test_a_push_during_which_the_model_is_retired_is_refused(applied, apply, monkeypatch, ended):
    (await apply(FEED)).raise_for_status()
    digest, read = await applied.upload(b"x"), applied.rooms.artifacts.manifest

    def retire(uri):
        with applied.rooms.store.begin("ranker") as unit:
            unit.add_change("ranker", ChangeKind.RETIRE, change_id="gone")
            if ended:
                unit.update_change("gone", state=ChangeState.DONE)
                unit.update_model("ranker", retired=True)
        return read(uri)

    monkeypatch.setattr(applied.rooms.artifacts, "manifest", retire)
    refused = await applied.http.post(f"{PATH}/versions", json={"digest": digest})

    told = "is retired; apply its manifest" if ended else "is being retired by change gone"
    assert (refused.status_code, told in refused.json()["message"]) == (409, True), refused.text
    with applied.rooms.store.read() as unit:
        assert unit.version_page("ranker", "feed").items == ()


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({}, 400, "exactly one of digest and uri"),
        ({"digest": "0" * 64, "uri": "file:///x"}, 400, "exactly one of digest and uri"),
        ({"digest": hashlib.sha256(b"none").hexdigest()}, 422, "not"),
        ({"uri": "file:///etc"}, 403, "outside the directories that may be read"),
        ({"uri": "ftp://x"}, 400, "not of a known form"),
        ({"digest": "0" * 64, "metrics": {"auc": "high"}}, 400, "metrics"),
    ],
)
async def test_a_push_says_what_is_wrong(applied, apply, body, status, told):
    (await apply(FEED)).raise_for_status()
    refused = await applied.http.post(f"{PATH}/versions", json=body)
    assert (refused.status_code, told in refused.json()["message"]) == (status, True), refused.text
    assert (await applied.http.get(f"{PATH}/versions")).json()["items"] == []


async def test_only_a_push_source_takes_pushes(applied, apply, incoming):
    write_snapshot(incoming / "a", b"1")
    (await apply({"name": "feed", "part": "dense", "directory": {"path": str(incoming)}})).raise_for_status()
    refused = await applied.http.post(f"{PATH}/versions", json={"digest": await applied.upload(b"x")})
    assert (refused.status_code, "of kind directory" in refused.json()["message"]) == (409, True)


async def test_a_pause_is_seen_and_ends_by_a_resume(applied, apply):
    (await apply(FEED)).raise_for_status()
    paused = (await applied.http.post(f"{PATH}/pause", json={"reason": "audit"})).json()
    assert (paused["state"], paused["pauseReason"], bool(paused["pausedBy"])) == ("paused", "audit", True)
    assert (await applied.http.post(f"{PATH}/poll", json={})).status_code == 409
    resumed = (await applied.http.post(f"{PATH}/resume", json={})).json()
    assert (resumed["state"], resumed["pausedBy"]) == ("waiting", None)
    assert (await applied.http.post(f"{PATH}/resume", json={})).status_code == 409
    assert (await applied.http.post(f"{PATH}/poll", json={})).status_code == 202
    unknown = await applied.http.post("/v1/models/ranker/sources/none/poll", json={})
    assert (unknown.status_code, "known: feed" in unknown.json()["message"]) == (404, True)


async def test_a_signed_webhook_has_the_sources_of_its_server_polled(rooms):
    url, secret = "https://mlflow.example.com", "secret"
    file = rooms.directory / "webhooks.json"
    file.write_text(json.dumps({url: secret}))
    file.chmod(0o600)
    rooms.seed("ranker")
    spec = SourceSpec.model_validate({"name": "champion", "part": "dense", "mlflow": {"uri": url, "model": "ctr"}})
    with rooms.store.begin("ranker") as unit:
        unit.put_sources("ranker", [WatchedSource(spec=spec, part="dense", upstream=url)])
        unit.mark_sent("mlflow", url)
    settings = rooms.settings.model_copy(update={"source_webhooks_file": file})
    app = dataclasses.replace(rooms, settings=settings).app()
    body, timestamp = b'{"entity": "model_version"}', str(int(time.time()))
    digest = hmac.digest(secret.encode(), f"d.{timestamp}.".encode() + body, hashlib.sha256)
    headers = {"X-MLflow-Delivery-Id": "d", "X-MLflow-Timestamp": timestamp, "Content-Type": "application/json"}
    signed = headers | {"X-MLflow-Signature": "v1," + base64.b64encode(digest).decode()}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        refused = await http.post("/v1/webhooks/mlflow", content=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "Unauthenticated")
        with rooms.store.read() as unit:
            assert unit.unsent_upstreams() == ()
        taken = await http.post("/v1/webhooks/mlflow", content=body, headers=signed)
    assert (taken.status_code, taken.json()) == (202, {"upstream": url})
    with rooms.store.read() as unit:
        assert unit.unsent_upstreams() == (("mlflow", url),)
