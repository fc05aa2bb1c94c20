"""When snapshots were trained, published and served, over the API: publishes, views, metrics, what owners see."""

import json

import pytest

from ipnext.model.access.rights import Role
from ipnext.model.manifest.manifest import ModelManifest

TRAINED = "2026-11-30T23:59:00Z"


async def publish(world, **more):
    parts = {part: {"digest": await world.upload(part.encode()), **more} for part in ("sparse", "dense")}
    return await world.http.post("/v1/models/ranker/publish", json={"parts": parts})


async def snapshots(world):
    return (await world.http.get("/v1/models/ranker/snapshots")).json()["items"]


async def metrics(world, name, **headers):
    text = (await world.http.get("/metrics", headers=headers)).text
    found = [line.rpartition(" ") for line in text.splitlines() if line.startswith(name)]
    return {labels: float(value) for labels, _, value in found}


def ask(rooms, model, **freshness):
    with rooms.store.begin() as unit:
        document = unit.model(model).manifest.model_dump(mode="json", by_alias=True)
        for part in document["spec"]["parts"]:
            part["freshness"] = freshness.get(part["name"])
        unit.put_model(ModelManifest.model_validate(document), expected_version=None)


async def test_a_publish_says_when_its_training_ended(applied):
    assert (await publish(applied, trainedAt=TRAINED)).status_code == 202
    for found in await snapshots(applied):
        assert (found["trained_at"], found["servings"]) == (TRAINED, [])
        assert found["created_at"] > found["trained_at"]


async def test_without_it_the_time_is_unknown(applied):
    assert (await publish(applied)).status_code == 202
    assert [found["trained_at"] for found in await snapshots(applied)] == [None, None]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("2999-01-01T00:00:00Z", "is in the future; allowed: until now"),
        ("2026-11-30T23:59:00", "timezone"),
        ("1764547140", "a time such as"),
    ],
)
async def test_a_time_that_is_wrong_is_refused_by_its_field(applied, given, told):
    answer = await publish(applied, trainedAt=given)
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInput")
    assert answer.json()["field"] in {"parts.sparse.trainedAt", "parts.dense.trainedAt"}
    assert told in answer.json()["message"]
    assert await snapshots(applied) == []


@pytest.mark.parametrize(
    ("record", "trained"),
    [({"trainedAt": TRAINED, "tags": {"stage": "prod"}}, TRAINED), ({"epochs": 3}, None), (None, None)],
)
async def test_a_directory_that_the_server_reads_says_it_in_its_training_record(applied, record, trained):
    root = applied.rooms.directory / "allowed"
    for part in ("sparse", "dense"):
        applied.rooms.write_snapshot(root / part, part.encode())
        if record is not None:
            (root / part / "training.json").write_text(json.dumps(record))
    parts = {part: {"uri": (root / part).as_uri()} for part in ("sparse", "dense")}
    answer = await applied.http.post("/v1/models/ranker/publish", json={"parts": parts})
    assert answer.status_code == 202, answer.text
    assert [found["trained_at"] for found in await snapshots(applied)] == [trained, trained]


async def test_a_model_has_the_snapshots_that_serve_each_region(applied):
    await publish(applied, trainedAt=TRAINED)
    applied.rooms.serve(1)
    ask(applied.rooms, "ranker", dense={"target": "15m"})
    found = {each["part"]: each for each in (await applied.http.get("/v1/models/ranker")).json()["freshness"]}
    dense, sparse = found["dense"], found["sparse"]
    assert (dense["snapshot"], dense["trainedAt"], dense["targetSeconds"], dense["objective"]) == (
        1,
        TRAINED,
        900,
        0.99,
    )
    assert dense["late"] is True
    assert dense["ageSeconds"] > 900
    assert (sparse["late"], sparse["freshShare"], sparse["objective"]) == (None, None, None)
    served = {each["part"]: each["servings"] for each in await snapshots(applied)}
    assert [each["serving_at"] for each in served["dense"]] == [dense["servingSince"]]
    one = (await applied.http.get("/v1/models/ranker/snapshots/dense/1")).json()
    assert one["servings"] == served["dense"]


async def test_metrics_tell_age_and_time_to_serving_by_model_part_and_region(applied):
    await publish(applied, trainedAt=TRAINED)
    applied.rooms.serve(1)
    region = (await applied.http.get("/v1/models/ranker")).json()["freshness"][0]["region"]
    place = f'{{model="ranker",part="dense",region="{region}"}}'
    ages = await metrics(applied, "ipnext_snapshot_age_seconds")
    assert ages[f"ipnext_snapshot_age_seconds{place}"] > 0
    assert len(ages) == 2
    assert (await metrics(applied, "ipnext_publish_to_serving_seconds"))[
        f"ipnext_publish_to_serving_seconds{place}"
    ] >= 0
    assert await metrics(applied, "ipnext_freshness") == {}, "no part asks"
    ask(applied.rooms, "ranker", dense={"target": "15m"})
    assert await metrics(applied, "ipnext_freshness") == {
        f"ipnext_freshness_ratio{place}": pytest.approx(0.0, abs=0.01),
        f"ipnext_freshness_breached{place}": 0.0,
    }


async def test_an_owner_sees_the_ages_of_its_own_models(applied):
    applied.rooms.seed("other")
    document = applied.rooms.model_document("other")
    document["metadata"]["owner"] = "ads"
    with applied.rooms.store.begin() as unit:
        unit.put_model(ModelManifest.model_validate(document), expected_version=None)
    for model in ("ranker", "other"):
        applied.rooms.publish_directly(model, "a")
        applied.rooms.serve(1, model=model)
        ask(applied.rooms, model, dense={"target": "15m"})
    for owner, shown in (("search", {"ranker"}), ("ads", {"other"}), ("*", {"ranker", "other"})):
        key = applied.rooms.add_key(f"viewer-{len(shown)}-{owner.strip('*')}x", Role.VIEWER, owner=owner)
        for family in ("ipnext_snapshot_age_seconds", "ipnext_publish_to_serving_seconds", "ipnext_freshness_ratio"):
            found = await metrics(applied, family, Authorization=f"Bearer {key}")
            assert {model for model in ("ranker", "other") for labels in found if f'"{model}"' in labels} == shown
