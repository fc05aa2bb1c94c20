"""Size limit of the access lists: a write that would exceed it is refused, whichever owner it is for."""

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.ipnext.api.routes.models.test_owners import put, put_model

CALLERS = ["a" * 63, "b" * 63]


def used(world):
    with world.rooms.store.read() as unit:
        return unit.access_bytes()


@asynccontextmanager
async def limited(world, limit):
    """The same platform by an API with this limit of models, and of keys and roles."""
    rooms = world.rooms
    rooms.settings = rooms.settings.model_copy(update={"access_list_bytes": limit})
    async with rooms.client() as http:
        yield replace(world, http=http)


def closed(*callers):
    return {"predictions": "authenticated", "callers": list(callers)}


@pytest.mark.parametrize("owner", ["search", "another"])
async def test_models_of_all_owners_together_are_limited(applied, owner):
    taken = used(applied).models
    async with limited(applied, taken + 100) as world:
        refused = await put_model(world, "one-more", status=409, owner=owner)
        assert (refused["code"], refused["field"]) == ("QuotaExceeded", "metadata.name")
        assert f"the entries of all models take {taken} of {taken + 100} bytes" in refused["message"]
        assert "IPNEXT_ACCESS_LIST_BYTES" in refused["message"]
        assert refused["allowed"] == ["at most 100 more bytes"]
        assert (await world.http.get("/v1/models/one-more")).status_code == 404


async def test_callers_that_find_no_room_are_refused_and_what_gets_smaller_is_not(applied):
    await put_model(applied, "ranker", access=closed(*CALLERS))
    async with limited(applied, used(applied).models) as world:
        refused = await put_model(world, "ranker", status=409, access=closed(*CALLERS, "c" * 63))
        assert (refused["code"], refused["field"], refused["value"]) == ("QuotaExceeded", "spec.access.callers", 66)
        await put_model(world, "ranker", qps=20, access=closed(*CALLERS))
        await put_model(world, "ranker", access=closed(CALLERS[0]))
        await put_model(world, "second", status=409)
    async with limited(applied, 1) as world:
        assert (await world.http.delete("/v1/models/ranker")).status_code == 202


async def test_a_retired_model_leaves_room_and_needs_it_again(applied):
    await put_model(applied, "second", access=closed(*CALLERS))
    most = used(applied).models
    with applied.rooms.store.begin("second") as unit:
        unit.update_model("second", retired=True)
    assert used(applied).models < most
    async with limited(applied, most - 1) as world:
        await put_model(world, "second", status=409, access=closed(*CALLERS))
    async with limited(applied, most) as world:
        await put_model(world, "second", access=closed(*CALLERS))
    assert used(applied).models == most


async def test_a_dry_run_says_so_and_takes_no_room(applied):
    taken = used(applied).models
    async with limited(applied, taken + 10) as world:
        await put_model(world, "one-more", status=409, query="?dryRun=true")
    async with limited(applied, taken + 1000) as world:
        await put_model(world, "one-more", query="?dryRun=true")
    assert used(applied).models == taken


async def test_keys_and_roles_are_limited_and_can_be_taken_away(applied):
    key = (await applied.http.post("/v1/keys", json={"name": "first", "role": "caller"})).json()
    taken = used(applied).callers
    async with limited(applied, taken) as world:
        for path, document, field in (
            ("/v1/keys", {"name": "other", "role": "caller"}, "name"),
            ("/v1/roles", {"subject": "user:ann", "role": "caller"}, "subject"),
        ):
            answer = await world.http.post(path, json=document)
            refused = answer.json()
            assert (answer.status_code, refused["code"], refused["field"]) == (409, "QuotaExceeded", field)
            assert f"valid keys and roles take {taken} of {taken} bytes" in refused["message"]
        refused = await put(world, status=409, members=[{"subject": "user:ann", "role": "viewer"}])
        assert (refused["code"], refused["field"]) == ("QuotaExceeded", "spec.members")
        await put(world)
        assert used(world).callers == taken
        assert (await world.http.delete(f"/v1/keys/{key['id']}")).status_code == 200
        made = await world.http.post("/v1/keys", json={"name": "other", "role": "caller"})
        assert made.status_code == 201, "the revoked one has left room"


async def test_the_metric_says_how_large_a_list_is(applied):
    taken = used(applied)
    async with limited(applied, taken.models + 77) as world:
        text = (await world.http.get("/metrics")).text
    assert f'ipnext_access_list_bytes{{part="models"}} {float(taken.models)}' in text
    assert f'ipnext_access_list_bytes{{part="callers"}} {float(taken.callers)}' in text
    assert f"ipnext_access_list_limit_bytes {float(taken.models + 77)}" in text
