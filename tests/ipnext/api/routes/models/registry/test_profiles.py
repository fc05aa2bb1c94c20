"""Profiles over the API.

Kept with a snapshot, counted where they are asked for, and a replan where they change much.
"""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, SnapshotSource

PATH = "/v1/models/chat/snapshots/llm/{}/profiles"


def document(option, **part):
    given = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, **option}], **part}
    header = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "o"}}
    demand = [{"region": "eu", "tokensPerSecond": 1000}]
    return header | {"spec": {"task": "generation", "parts": [given], "demand": demand}}


def source(config, weights):
    files = {"config.json": config, "model.safetensors": weights}
    made = [ArtifactFile(path=path, sha256=f"{ord(text):064x}", size_bytes=9) for path, text in files.items()]
    manifest = SnapshotManifest(engine="vllm", signature=Signature(inputs=(), outputs=()), files=tuple(made))
    return SnapshotSource(manifest=manifest, uri=f"file:///nowhere/{manifest.digest}")


def profile(*tokens, minutes=0, hardware="cpu"):
    steps = [
        {
            "concurrency": 2**i,
            "requests": 9,
            "seconds": 1,
            "tokens_per_second": found,
            "requests_per_second": found / 10,
            "ttft_p50_ms": 10 * 2**i,
            "ttft_p99_ms": 20 * 2**i,
        }
        for i, found in enumerate(tokens)
    ]
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    conditions = {"engine_version": "mock 1", "prompt_tokens": 8, "output_tokens": 10}
    return {"hardware": hardware, "steps": steps, "conditions": conditions, "measured_at": at.isoformat()}


@pytest.fixture
async def serving(world):
    """The model `chat` with snapshots 1 and 2 of one architecture and 3 of another; generation 1 serves."""
    (await world.http.put("/v1/fleet", json=world.rooms.fleet_document())).raise_for_status()
    given = document({"profile": True, "tokensPerSecond": 500}, latencyTarget={"ttftMs": 30})
    (await world.http.put("/v1/models/chat", json=given)).raise_for_status()
    with world.rooms.store.begin() as unit:
        for i, (config, weights) in enumerate((("a", "v"), ("a", "w"), ("b", "x"))):
            unit.publish("chat", {"llm": source(config, weights)}, change_id=f"c{i}")
        unit.update_model("chat", serving_generation=1)
    return world


async def put(world, found, number=1, status=200):
    answer = await world.http.put(PATH.format(number), json=found)
    assert answer.status_code == status, answer.text
    return answer.json()


async def throughput(world):
    [line] = (await world.http.get("/v1/models/chat")).json()["throughput"]
    return line["rate"], line["unit"], line["snapshot"]


async def test_a_profile_is_kept_counts_and_asks_for_a_replan_once(serving):
    assert await throughput(serving) == (500, "tokens/s", None)
    found = await put(serving, profile(100, 300))
    assert (found["found"]["met"], found["found"]["tokens_per_second"], found["counts"]) == (True, 200, True)
    assert (found["profile"]["snapshot"], found["unit"]) == (1, "tokens/s")
    assert await throughput(serving) == (200, "tokens/s", 1)
    again = await put(serving, profile(100, 300))
    assert again == found
    assert (await serving.http.get(PATH.format(1))).json()["items"] == [found | {"replan_id": None}]
    [replan] = (await serving.http.get("/v1/replans")).json()["items"]
    assert (replan["id"], replan["trigger"]) == (found["replan_id"], "profile")
    events = [e for e in (await serving.http.get("/v1/models/chat/events")).json()["items"] if e["kind"] == "Profiled"]
    assert [e["message"] for e in events] == [
        "llm on cpu, snapshot 1: measured 200 tokens/s; plans take 200 tokens/s a replica, 500 tokens/s before"
    ]


@pytest.mark.parametrize(("tokens", "asked"), [(525, False), (475, False), (526, True), (474, True)])
async def test_only_a_change_of_more_than_a_twentieth_asks_for_a_replan(serving, tokens, asked):
    found = await put(serving, profile(tokens))
    assert (found["replan_id"] is not None) is asked
    assert len((await serving.http.get("/v1/replans")).json()["items"]) == asked


async def test_the_newest_measurement_counts_whatever_came_later(serving):
    await put(serving, profile(900, minutes=5))
    late = await put(serving, profile(100, minutes=1))
    assert (late["counts"], late["replan_id"]) == (False, None)
    assert await throughput(serving) == (900, "tokens/s", 1)


async def test_a_profile_holds_for_other_snapshots_of_its_architecture_alone(serving):
    await put(serving, profile(900, minutes=1), number=2)
    assert await throughput(serving) == (900, "tokens/s", 2)
    await put(serving, profile(100, minutes=2), number=3)
    assert await throughput(serving) == (900, "tokens/s", 2)
    with serving.rooms.store.begin() as unit:
        unit.update_model("chat", serving_generation=3)
    assert await throughput(serving) == (100, "tokens/s", 3)


async def test_a_declared_number_without_a_profile_asked_for_is_law(serving):
    given = document({"tokensPerSecond": 500})
    (await serving.http.put("/v1/models/chat", json=given)).raise_for_status()
    found = await put(serving, profile(100))
    assert (found["counts"], found["replan_id"]) == (False, None)
    assert await throughput(serving) == (500, "tokens/s", None)


async def test_an_apply_of_what_nobody_knows_or_what_was_measured_to_miss_its_target_is_refused(serving):
    alone = document({"profile": True}, latencyTarget={"ttftMs": 30})
    answer = await serving.http.put("/v1/models/chat?dryRun=true", json=alone)
    assert answer.status_code == 400
    assert "ipnext profile chat --part llm --hardware cpu" in answer.json()["message"]
    await put(serving, profile(100, 300))
    assert (await serving.http.put("/v1/models/chat?dryRun=true", json=alone)).status_code == 200
    strict = document({"profile": True}, latencyTarget={"ttftMs": 19})
    answer = await serving.http.put("/v1/models/chat", json=strict)
    assert (answer.status_code, answer.json()["field"]) == (400, "spec.parts.0.latencyTarget")


@pytest.mark.parametrize(
    ("number", "change", "status", "said"),
    [
        (9, {}, 404, "no snapshot 9 of part 'llm'"),
        (1, {"hardware": "gpu"}, 400, "part 'llm' does not run on 'gpu'; allowed: cpu"),
        (1, {"steps": []}, 400, "steps"),
        (1, {"measured_at": "2999-01-01T00:00:00+00:00"}, 400, "lies in the future"),
        (1, {"measured_at": "2026-01-01T00:00:00"}, 400, "needs a time zone"),
    ],
)
async def test_what_is_no_profile_of_a_snapshot_is_refused_and_nothing_is_kept(serving, number, change, status, said):
    assert said in (await put(serving, profile(100) | change, number, status))["message"]
    assert (await serving.http.get(PATH.format(1))).json()["items"] == []


async def test_unmet_demand_on_the_page_knows_which_models_are_in_tokens(serving):
    serving.rooms.seed("ranker")
    serving.rooms.adopt_plan()
    assert (await serving.http.get("/v1/overview")).json()["plan"]["tokens"] == []


async def put_owner(world, **quotas):
    owner = {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": "o"}, "spec": {"quotas": quotas}}
    answer = await world.http.put("/v1/owners/o", json=owner)
    assert answer.status_code == 200, answer.text
    return {line["quota"]: line["used"] for line in answer.json()["usage"]}


async def test_a_measurement_by_which_a_model_exceeds_a_quota_is_refused_and_nothing_is_kept(serving):
    assert (await put_owner(serving, units={"cpu": 4}))["units.cpu"] == 2
    refused = await put(serving, profile(100), status=409)
    assert (refused["code"], refused["value"], refused["allowed"]) == ("QuotaExceeded", 10, ["at most 4"])
    assert await throughput(serving) == (500, "tokens/s", None)
    assert (await serving.http.get(PATH.format(1))).json()["items"] == []
    await put(serving, profile(250))
    assert (await put_owner(serving, units={"cpu": 4}))["units.cpu"] == 4


async def test_a_profile_counts_once_as_bytes_of_its_owner(serving):
    before = (await put_owner(serving))["artifactBytes"]
    await put(serving, profile(500))
    after = (await put_owner(serving))["artifactBytes"]
    assert after - before > 300
    await put(serving, profile(500))
    assert (await put_owner(serving, artifactBytes=int(after)))["artifactBytes"] == after
    refused = await put(serving, profile(500, minutes=1), status=409)
    assert "bytes of artifacts and manifests (quotas.artifactBytes)" in refused["message"]
