"""Owners over HTTP: apply, read, delete; admission of their models; and who may see them."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ipnext.model.access.rights import Role
from ipnext.model.manifest.derived.owner_claims import NAMES_OF_A_MODEL
from ipnext.model.planning.plan import Owner


def owner_document(name="search", **spec):
    return {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": name}, "spec": spec}


async def put(world, name="search", *, status=200, query="", **spec):
    answer = await world.http.put(f"/v1/owners/{name}{query}", json=owner_document(name, **spec))
    assert answer.status_code == status, answer.text
    return answer.json()


async def put_model(world, name, *, status=200, query="", qps=10, owner="search", **spec):
    document = world.rooms.model_document(name, qps=qps)
    document["metadata"]["owner"] = owner
    document["spec"] |= spec
    answer = await world.http.put(f"/v1/models/{name}{query}", json=document)
    assert answer.status_code == status, answer.text
    return answer.json()


def line(view, quota):
    return next(use for use in view["usage"] if use["quota"] == quota)


async def test_an_owner_is_applied_read_and_listed_with_its_usage(applied):
    view = await put(applied, description="ranking", quotas={"models": 3, "units": {"cpu": 8}}, priority=4)
    assert (view["version"], view["warnings"], view["dryRun"]) == (1, [], False)
    assert line(view, "models") == {"quota": "models", "used": 1, "limit": 3, "placed": None}
    assert line(view, "units.cpu") == {"quota": "units.cpu", "used": 2, "limit": 8, "placed": 0}
    assert line(view, "requestsPerSecond")["used"] == 10
    assert view["modelsWithoutBudget"] == 1
    assert (await applied.http.get("/v1/owners/search")).json() == view
    assert (await applied.http.get("/v1/owners")).json()["items"] == [view]
    again = await put(applied, description="ranking", quotas={"models": 3, "units": {"cpu": 8}}, priority=4)
    assert again["version"] == 1
    assert (await applied.http.get("/v1/owners/none")).status_code == 404


async def test_a_dry_run_writes_nothing_and_another_version_is_refused(applied):
    assert (await put(applied, query="?dryRun=true", priority=2))["dryRun"]
    assert (await applied.http.get("/v1/owners")).json()["items"] == []
    await put(applied, query="?expectedVersion=0")
    assert (await put(applied, query="?expectedVersion=4", status=409))["code"] == "StaleWrite"
    assert (await put(applied, query="?expectedVersion=4&dryRun=true", status=409))["code"] == "StaleWrite"
    assert (await applied.http.delete("/v1/owners/search?expectedVersion=4")).status_code == 409


async def test_units_of_hardware_that_the_fleet_lacks_are_refused(applied):
    refused = await put(applied, status=400, quotas={"units": {"h100": 1}})
    assert (refused["field"], refused["allowed"]) == ("spec.quotas.units.h100", ["cpu", "gpu"])


async def test_a_manifest_beyond_a_quota_is_refused_and_nothing_is_written(applied):
    await put(applied, quotas={"models": 2, "units": {"cpu": 6}, "requestsPerSecond": 500})
    refused = await put_model(applied, "big", status=409, qps=300)
    assert (refused["code"], refused["field"], refused["value"]) == ("QuotaExceeded", "spec.parts", 6)
    assert refused["allowed"] == ["at most 4"]
    assert "owner 'search' uses 2 of 6 units of cpu" in refused["message"]
    assert (await applied.http.get("/v1/models/big")).status_code == 404
    await put_model(applied, "second", status=409, query="?dryRun=true", qps=300)
    await put_model(applied, "second", qps=100)
    third = await put_model(applied, "third", status=409)
    assert (third["field"], third["value"]) == ("metadata.owner", "search")
    assert "uses 2 of 2 models" in third["message"]
    await put_model(applied, "third", owner="ads")


async def test_under_a_quota_of_dollars_each_new_manifest_states_its_budget(applied):
    await put(applied, quotas={"dollarsPerHour": 20})
    assert (await put_model(applied, "second", status=409))["field"] == "spec.budgetPerHour"
    await put_model(applied, "second", budgetPerHour=15)
    assert "uses 15 of 20 $/h" in (await put_model(applied, "third", status=409, budgetPerHour=6))["message"]
    await put_model(applied, "ranker")  # it had no budget before there was a quota
    view = (await applied.http.get("/v1/owners/search")).json()
    assert (line(view, "dollarsPerHour")["used"], view["modelsWithoutBudget"]) == (15, 1)


async def test_a_quota_below_what_is_used_is_taken_with_a_warning_and_refuses_growth_only(applied):
    await put_model(applied, "second")
    view = await put(applied, quotas={"models": 1, "requestsPerSecond": 15})
    assert [warning.partition(":")[0] for warning in view["warnings"]] == ["quotas.models", "quotas.requestsPerSecond"]
    assert "nothing that runs changes" in view["warnings"][0]
    assert (await applied.http.get("/v1/models")).json()["items"][1]["version"] == 1
    await put_model(applied, "second", priority=2)
    await put_model(applied, "second", qps=9)
    await put_model(applied, "second", status=409, qps=11)


async def test_a_retired_model_does_not_count_until_it_is_back(applied):
    await put(applied, quotas={"models": 1})
    with applied.rooms.store.begin() as unit:
        unit.update_model("ranker", retired=True)
    await put_model(applied, "second")
    assert "uses 1 of 1 models" in (await put_model(applied, "ranker", status=409))["message"]


async def test_two_applies_at_the_same_time_do_not_pass_a_quota_together(applied):
    await put(applied, quotas={"models": 3})
    documents = {f"m{i}": applied.rooms.model_document(f"m{i}") for i in range(6)}
    answers = await asyncio.gather(
        *(applied.http.put(f"/v1/models/{name}", json=document) for name, document in documents.items())
    )
    assert sorted(answer.status_code for answer in answers) == [200, 200, 409, 409, 409, 409]


async def test_without_an_object_an_owner_has_the_limit_of_replicas_only_unless_the_fleet_requires_one(applied):
    await put_model(applied, "free", owner="ads", qps=5e4, budgetPerHour=1e6)
    fleet = applied.rooms.fleet_document()
    fleet["spec"]["requireOwners"] = True
    (await applied.http.put("/v1/fleet", json=fleet)).raise_for_status()
    refused = await put_model(applied, "second", status=400, owner="ads")
    assert (refused["field"], refused["value"]) == ("metadata.owner", "ads")
    await put(applied, "ads")
    await put_model(applied, "second", owner="ads")


async def test_models_are_limited_also_for_an_owner_without_an_object_or_quota(applied):
    """A model without demand needs no replica, and has a table in each gateway."""
    rooms = applied.rooms
    rooms.settings = rooms.settings.model_copy(update={"owner_models": 1})
    nothing = [{"region": "eu", "qps": 0}]
    async with rooms.client() as http:
        world = replace(applied, http=http)
        await put_model(world, "first", owner="ads", demand=nothing)
        refused = await put_model(world, "second", status=409, owner="ads", demand=nothing)
        assert refused["allowed"] == ["at most 0"]
        assert "uses 1 of 1 models in its other models (IPNEXT_OWNER_MODELS)" in refused["message"]
        assert line(await put(world, "ads"), "models")["limit"] == 1
        await put(world, "ads", quotas={"models": 2})
        await put_model(world, "second", owner="ads", demand=nothing)


async def test_retired_models_are_limited_too_and_their_names_can_be_used_again(applied):
    """They stay in every region's access list."""
    await put(applied, "ads", quotas={"models": 1})
    for number in range(NAMES_OF_A_MODEL):
        await put_model(applied, f"m{number}", owner="ads")
        with applied.rooms.store.begin() as unit:
            unit.update_model(f"m{number}", retired=True)
    refused = await put_model(applied, "more", status=409, owner="ads")
    assert (refused["code"], refused["field"]) == ("QuotaExceeded", "metadata.name")
    assert "has 10 with those that are retired, of 10 (10 times quotas.models)" in refused["message"]
    await put_model(applied, "more", owner="others")
    assert (await put_model(applied, "more", status=409, owner="ads"))["field"] == "metadata.name"
    await put_model(applied, "m3", owner="ads")
    await put_model(applied, "m3", owner="ads", qps=11)
    await put(applied, "ads", quotas={"models": 2})
    await put_model(applied, "more", owner="ads")


async def test_callers_are_limited_also_for_an_owner_without_an_object_or_quota(applied):
    """Every region gets the callers of all models with each change of any of them."""
    rooms = applied.rooms
    rooms.settings = rooms.settings.model_copy(update={"owner_callers": 5})

    def shared(count):
        return {"predictions": "authenticated", "callers": [f"owner-{i}" for i in range(count)]}

    async with rooms.client() as http:
        world = replace(applied, http=http)
        await put_model(world, "first", owner="ads", access=shared(3))
        refused = await put_model(world, "second", status=409, owner="ads", access=shared(3))
        assert (refused["code"], refused["field"], refused["value"]) == ("QuotaExceeded", "spec.access.callers", 3)
        assert refused["allowed"] == ["at most 2"]
        assert "uses 3 of 5 callers in its other models (IPNEXT_OWNER_CALLERS)" in refused["message"]
        await put_model(world, "second", owner="ads", access=shared(2))
        await put_model(world, "second", owner="others", access=shared(5))
        used = line(await put(world, "ads"), "callers")
        assert used == {"quota": "callers", "used": 3, "limit": 5, "placed": None}
        await put(world, "ads", quotas={"callers": 6})
        refused = await put_model(world, "first", status=409, owner="ads", access=shared(7))
        assert "uses 0 of 6 callers in its other models (quotas.callers)" in refused["message"]
        await put_model(world, "first", owner="ads", access=shared(6))


async def test_replicas_are_limited_also_for_an_owner_without_an_object_or_quota(applied):
    most = applied.rooms.settings.owner_replicas
    nodes = [{"name": "main", "part": "main", "inputs": {"x": "request.x"}}]
    tiny = {
        "parts": [{"name": "main", "hardware": [{"kind": "cpu", "units": 0.01, "qps": 1}]}],
        "graph": {"nodes": nodes, "outputs": {"y": "main.y"}},
    }
    refused = await put_model(applied, "tiny", status=409, owner="ads", qps=most + 1, **tiny)
    assert (refused["code"], refused["field"], refused["allowed"]) == (
        "QuotaExceeded",
        "spec.parts",
        [f"at most {most:g}"],
    )
    assert f"owner 'ads' uses 0 of {most:g} replicas in its other models (IPNEXT_OWNER_REPLICAS)" in refused["message"]
    view = await put(applied, "ads")
    assert line(view, "replicas") == {"quota": "replicas", "used": 0, "limit": most, "placed": 0}
    await put(applied, "ads", quotas={"replicas": 5})
    refused = await put_model(applied, "tiny", status=409, owner="ads", qps=6, **tiny)
    assert "uses 0 of 5 replicas in its other models (quotas.replicas); allowed: at most 5" in refused["message"]
    await put_model(applied, "tiny", owner="ads", qps=3, **tiny)
    refused = await put_model(applied, "tiny-2", status=409, owner="ads", qps=3, **tiny)
    assert "uses 3 of 5 replicas" in refused["message"]
    view = await put(applied, "ads", quotas={"replicas": most + 1})
    assert (line(view, "replicas")["used"], line(view, "replicas")["limit"]) == (3, most + 1)
    await put_model(applied, "tiny", owner="ads", qps=most + 1, **tiny)


async def test_members_are_the_role_bindings_over_the_owner(applied):
    roles = {"subject": "user:bob", "role": "viewer", "owner": "search"}
    (await applied.http.post("/v1/roles", json=roles)).raise_for_status()
    (await applied.http.post("/v1/roles", json={"subject": "user:eve", "role": "viewer"})).raise_for_status()
    kept = await put(applied)
    assert kept["manifest"]["spec"]["members"] == [{"subject": "user:bob", "role": "viewer"}]
    ann = {"subject": "user:ann", "role": "publisher"}
    replaced = await put(applied, members=[ann])
    assert replaced["manifest"]["spec"]["members"] == [ann]
    bindings = (await applied.http.get("/v1/roles")).json()["items"]
    assert {(b["subject"], b["role"], b["owner"]) for b in bindings} == {
        ("user:ann", "publisher", "search"), ("user:eve", "viewer", "*"),
    }  # fmt: skip
    again = await put(applied, members=[ann])
    assert again == replaced
    assert (await put(applied, members=[]))["manifest"]["spec"]["members"] == []


async def test_an_owner_is_deleted_with_its_members_once_it_has_no_models(applied):
    await put(applied, members=[{"subject": "user:ann", "role": "viewer"}])
    refused = await applied.http.delete("/v1/owners/search")
    assert refused.status_code == 409
    assert "still has models: ranker" in refused.json()["message"]
    with applied.rooms.store.begin() as unit:
        unit.update_model("ranker", retired=True)
    refused = await applied.http.delete("/v1/owners/search")
    assert (refused.status_code, "still has models: ranker (retired);" in refused.json()["message"]) == (409, True)
    document = applied.rooms.model_document()
    document["metadata"]["owner"] = "ads"
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    assert (await applied.http.delete("/v1/owners/search")).status_code == 200
    assert (await applied.http.get("/v1/owners/search")).status_code == 404
    assert (await applied.http.get("/v1/roles")).json()["items"] == []


async def test_an_owner_that_may_ask_models_of_others_is_not_deleted(applied):
    """The next owner of that name would be let in. Who is named for something else does not count."""
    await put(applied, "ads")
    document = applied.rooms.model_document()
    document["metadata"]["labels"] = {"team": "ads"}
    document["spec"]["access"] = {"predictions": "authenticated", "callers": ["sales", "ads"]}
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    with applied.rooms.store.begin() as unit:
        unit.update_model("ranker", retired=True)
    refused = await applied.http.delete("/v1/owners/ads")
    assert (refused.status_code, refused.json()["code"]) == (409, "Conflict")
    assert "may still ask models of other owners: ranker; take it out of their spec.access.callers" in refused.text
    document["spec"]["access"]["callers"] = ["sales"]
    (await applied.http.put("/v1/models/ranker", json=document)).raise_for_status()
    assert (await applied.http.delete("/v1/owners/ads")).status_code == 200


async def test_an_owner_with_valid_keys_is_not_deleted(applied):
    await put(applied, "ads")
    ended = {"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}
    for name, more in (("ci", {}), ("old", ended), ("other", {"owner": "search"})):
        applied.rooms.add_key(name, Role.PUBLISHER, **{"owner": "ads"} | more)
    refused = await applied.http.delete("/v1/owners/ads")
    assert (refused.status_code, refused.json()["code"]) == (409, "Conflict")
    assert (await applied.http.get("/v1/owners/ads")).status_code == 200
    (key,) = [key for key in (await applied.http.get("/v1/keys")).json()["items"] if key["name"] == "ci"]
    assert f"still has API keys: ci ({key['id']});" in refused.json()["message"]
    (await applied.http.delete(f"/v1/keys/{key['id']}")).raise_for_status()
    assert (await applied.http.delete("/v1/owners/ads")).status_code == 200


async def test_owners_are_there_for_those_only_who_may_read_their_models(applied):
    await put(applied)
    await put(applied, "ads", members=[{"subject": "user:eve", "role": "viewer"}])
    key = applied.rooms.add_key("search-team", Role.OPERATOR, owner="search")
    headers = {"Authorization": f"Bearer {key}"}
    mine = (await applied.http.get("/v1/owners", headers=headers)).json()["items"]
    assert [view["manifest"]["metadata"]["name"] for view in mine] == ["search"]
    assert (await applied.http.get("/v1/owners/search", headers=headers)).status_code == 200
    theirs = await applied.http.get("/v1/owners/ads", headers=headers)
    none = await applied.http.get("/v1/owners/none", headers=headers)
    assert theirs.status_code == none.status_code == 404
    assert theirs.text.replace("ads", "none") == none.text
    nothing = await applied.http.get("/v1/owners/search-2", headers=headers)
    assert nothing.text.replace("search-2", "none") == none.text
    refused = await applied.http.put("/v1/owners/search", json=owner_document(), headers=headers)
    assert (refused.status_code, refused.json()["policy"]) == (403, "admins-do-everything")


async def test_an_owner_that_is_visible_and_has_no_object_is_answered_like_one_that_is_not(applied):
    key = applied.rooms.add_key("search-team", Role.VIEWER, owner="search")
    headers = {"Authorization": f"Bearer {key}"}
    mine = await applied.http.get("/v1/owners/search", headers=headers)
    theirs = await applied.http.get("/v1/owners/ads", headers=headers)
    assert mine.status_code == theirs.status_code == 404
    assert mine.text.replace("search", "ads") == theirs.text


@pytest.mark.parametrize("priority", [0, 7])
async def test_the_priority_reaches_the_planner(applied, priority):
    from activities.planning.problem import fleet_problem, model_problem  # noqa: PLC0415

    await put(applied, priority=priority)
    with applied.rooms.store.read() as unit:
        problem = fleet_problem(
            unit.fleet().spec, [model_problem(unit.model("ranker").manifest)], priorities=unit.owner_priorities()
        )
    assert problem.owners == (Owner(owner="search", priority=priority),)
