"""A fleet is refused if a new region has no agent, or if it drops a region that is still in use."""

import pytest

from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.fleet import FleetManifest
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.planning.transition import Transition
from ipnext.store.records import TransitionRecord
from tests.ipnext.conftest import fleet_document, model_document


def fleet_of(*regions):
    document = fleet_document()
    spec = document["spec"]
    spec["regions"] = list(regions)
    spec["rttMs"] = [[1 if a == b else 90 for b in regions] for a in regions]
    spec["supply"] = [{"region": region, "hardware": "cpu", "units": 8, "unitCost": 1} for region in regions]
    return document


async def put(world, *regions, **params):
    return await world.http.put("/v1/fleet", json=fleet_of(*regions), params=params)


async def regions_of(world):
    return (await world.http.get("/v1/fleet")).json()["spec"]["regions"]


@pytest.mark.parametrize("params", [{}, {"dryRun": True}])
async def test_a_new_region_without_an_agent_is_refused(world, params):
    assert (await put(world, "eu", "us")).status_code == 200

    answer = await put(world, "eu", "us", "mars", **params)

    assert (answer.status_code, answer.json()["field"]) == (400, "spec.regions.2")
    assert (answer.json()["value"], answer.json()["allowed"]) == ("mars", ["eu", "us"])
    assert "IPNEXT_AGENTS" in answer.json()["message"]
    assert await regions_of(world) == ["eu", "us"]


async def test_a_region_of_the_fleet_in_force_may_lose_its_agent(world):
    with world.rooms.store.begin() as unit:
        unit.put_fleet(FleetManifest.model_validate(fleet_of("eu", "us", "mars")).spec, expected_version=None)
    assert (await put(world, "us", "eu", "mars")).status_code == 200


async def test_a_region_with_models_does_not_leave_the_fleet_until_it_is_drained(applied):
    await applied.publish("a")
    with applied.rooms.store.begin() as unit:
        unit.put_route(table("us"))
    answer = await put(applied, "eu")
    assert (answer.status_code, answer.json()["code"]) == (409, "Conflict")
    assert "region 'us' is still used by ranker; drain it first (`ipnext drain us`" in answer.json()["message"]
    assert await regions_of(applied) == ["eu", "us"]

    with applied.rooms.store.begin() as unit:
        unit.put_route(table("eu", revision=3))
        drain = unit.add_drain("us")
    answer = await put(applied, "eu")
    assert answer.status_code == 409
    assert "the drain of region 'us' is recorded; wait until it is drained" in answer.json()["message"]

    with applied.rooms.store.begin() as unit:
        unit.update_drain(drain.id, state=DrainState.DRAINED)
    assert (await put(applied, "eu")).status_code == 200


async def test_an_open_transition_keeps_its_regions_in_the_fleet(applied):
    await applied.publish("a")
    share = {"model": "ranker", "from": "eu", "to": "us", "generation": 1, "fraction": 1}
    transition = Transition.model_validate({"from": {}, "to": {"traffic": (share,)}})
    with applied.rooms.store.begin() as unit:
        change = unit.changes("ranker", limit=1)[0]
        record = TransitionRecord(
            id=change.id,
            model="ranker",
            change_id=change.id,
            generation=1,
            transition=transition,
            created_at=change.created_at,
        )
        unit.save_transition(record)
    answer = await put(applied, "eu")
    assert (answer.status_code, "is still used by ranker" in answer.json()["message"]) == (409, True)

    with applied.rooms.store.begin() as unit:
        unit.close_transition(change.id, done=False, message="aborted")
    assert (await put(applied, "eu")).status_code == 200


async def test_no_more_than_five_models_are_named(applied):
    names = [f"m{number}" for number in range(7)]
    for name in names:
        document = model_document(name)
        (await applied.http.put(f"/v1/models/{name}", json=document)).raise_for_status()
        with applied.rooms.store.begin() as unit:
            unit.put_route(table("us", model=name))
    answer = await put(applied, "eu")
    assert "used by m0, m1, m2, m3, m4 and 2 more; drain" in answer.json()["message"]


async def test_a_region_that_has_left_the_fleet_is_drained_while_models_use_it(applied):
    await applied.publish("a")
    with applied.rooms.store.begin() as unit:
        unit.put_route(table("mars"))
    answer = await applied.http.post("/v1/regions/mars/drain", json={"disaster": True})
    assert (answer.status_code, answer.json()["state"]) == (202, "recorded")


def table(to, *, model="ranker", revision=2):
    share = RouteShare(to=to, generation=1, fraction=1.0)
    return RouteTable(model=model, region="eu", revision=revision, shares=(share,), served=())
