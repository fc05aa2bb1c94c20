"""What a model counts for its owner while its manifest, its plan and what runs differ.

No order of changes frees what is in use.
"""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.status import Reason
from ipnext.store.operations.change_end import end_change
from ipnext.store.operations.quota_claims import lower_claims
from tests.ipnext.api.routes.models.test_owners import line, put, put_model

LARGE, SMALL = 400, 10
"""Requests a second that need 4 and 1 replicas of each of the two parts."""


@pytest.fixture
async def placed(applied):
    """The ranker has all 8 units of its owner's quota, and is placed by them."""
    await put(applied, quotas={"units": {"cpu": 8}})
    await put_model(applied, "ranker", qps=LARGE)
    applied.rooms.publish_directly("ranker", "a")
    applied.rooms.serve(1)
    applied.rooms.adopt_plan()
    return applied


def end(world, *, state, accepted):
    """End the model's open apply as a run does."""
    reason = Reason.SUCCEEDED if accepted else Reason.SIGNATURE_INVALID
    with world.rooms.store.begin("ranker") as unit:
        revision = unit.model("ranker").generation
        if accepted:
            unit.accept_revision("ranker", revision, unit.model("ranker").manifest.spec)
        else:
            unit.refuse_revision("ranker", revision)
        end_change(
            unit,
            RecordInput(
                model="ranker",
                change_id=unit.open_kinds("ranker")[ChangeKind.APPLY],
                kind=ChangeKind.APPLY,
                generation=1,
                revision=revision,
                run_id="run",
                result=LifecycleResult(state=state, generation=1, reason=reason),
            ),
        )
        lower_claims(unit, "ranker")


async def used(world):
    return line((await world.http.get("/v1/owners/search")).json(), "units.cpu")["used"]


async def test_a_smaller_manifest_frees_nothing_before_it_is_in_force(placed):
    await put_model(placed, "ranker", qps=SMALL)
    assert await used(placed) == 8
    refused = await put_model(placed, "second", status=409, qps=SMALL)
    assert "uses 8 of 8 units of cpu" in refused["message"]


async def test_a_smaller_manifest_that_is_refused_frees_nothing(placed):
    await put_model(placed, "ranker", qps=SMALL)
    end(placed, state=ChangeState.REFUSED, accepted=False)
    await put_model(placed, "second", status=409, qps=SMALL)
    await put_model(placed, "ranker", qps=LARGE)
    assert await used(placed) == 8


@pytest.mark.parametrize("state", [ChangeState.ROLLED_BACK, ChangeState.SUPERSEDED])
async def test_a_smaller_manifest_whose_rollout_is_reverted_frees_nothing(placed, state):
    await put_model(placed, "ranker", qps=SMALL)
    end(placed, state=state, accepted=True)
    await put_model(placed, "second", status=409, qps=SMALL)


async def test_a_smaller_manifest_in_force_frees_what_the_plan_no_longer_uses(placed):
    await put_model(placed, "ranker", qps=SMALL)
    end(placed, state=ChangeState.DONE, accepted=True)
    assert await used(placed) == 4, "the plan still has the former 4 replicas of one part"
    with placed.rooms.store.begin("ranker") as unit:
        unit._forget(["ranker"])
        lower_claims(unit, "ranker")
    assert await used(placed) == 4, "they still run"
    with placed.rooms.store.begin("ranker") as unit:
        for left in unit.deployments("ranker"):
            unit.delete_deployment(left.key)
        lower_claims(unit, "ranker")
    assert await used(placed) == 2
    await put_model(placed, "second", qps=LARGE // 2)


async def test_hardware_that_a_manifest_leaves_counts_until_the_manifest_is_in_force(placed):
    await put(placed, quotas={"units": {"cpu": 8, "gpu": 2}})
    gpu = [{"name": part, "hardware": [{"kind": "gpu", "units": 1, "qps": 1000}]} for part in ("sparse", "dense")]
    await put_model(placed, "ranker", qps=LARGE, parts=gpu)
    await put_model(placed, "second", status=409, qps=SMALL)


async def test_a_model_that_changes_its_owner_takes_along_what_it_is_placed_by(placed):
    await put(placed, "ads", quotas={"units": {"cpu": 4}})
    refused = await put_model(placed, "ranker", status=409, owner="ads", qps=SMALL)
    assert (refused["value"], refused["allowed"]) == (8, ["at most 4"])


async def test_a_manifest_that_nothing_was_placed_by_frees_at_once_what_it_counted(applied):
    await put(applied, quotas={"units": {"cpu": 8}})
    await put_model(applied, "ranker", qps=LARGE)
    await put_model(applied, "ranker", qps=SMALL)
    assert await used(applied) == 2
    await put_model(applied, "second", qps=300)


async def test_a_failed_publish_that_placed_nothing_leaves_the_newest_manifest_only(applied):
    await put(applied, quotas={"units": {"cpu": 8}})
    await put_model(applied, "ranker", qps=LARGE)
    applied.rooms.publish_directly("ranker", "a")
    await put_model(applied, "ranker", qps=SMALL)
    assert await used(applied) == 8, "the publish may still go by the former manifest"
    with applied.rooms.store.begin("ranker") as unit:
        for change in unit.open_kinds("ranker").values():
            unit.update_change(change, state=ChangeState.REFUSED)
        lower_claims(unit, "ranker")
    assert await used(applied) == 2


def one_part(units, **spec):
    hardware = [{"kind": "cpu", "units": units, "qps": 1}]
    return {"parts": [{"name": "main", "hardware": hardware}], "graph": None, **spec}


async def put_fleet(world, *, status=200, **least):
    document = world.rooms.fleet_document()
    document["spec"]["leastUnits"] = least
    answer = await world.http.put("/v1/fleet", json=document)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_no_replica_has_fewer_units_than_the_fleet_allows_so_that_hosts_do_not_run_out_before_them(applied):
    await put_fleet(applied, cpu=0.5)
    refused = await put_model(applied, "tiny", status=400, qps=40, **one_part(0.01))
    assert (refused["field"], refused["allowed"]) == ("spec.parts.0.hardware.0.units", ["at least 0.5"])
    split = {"parts": [{"name": "tables", "modules": ["tables"], "hardware": [{"kind": "cpu", "units": 0.1}]}]}
    refused = await put_model(applied, "tiny", status=400, qps=4, **one_part(0.5, split=split))
    assert refused["field"] == "spec.split.parts.0.hardware.0.units"
    await put_model(applied, "tiny", qps=4, **one_part(0.5))


async def test_a_fleet_does_not_allow_fewer_units_than_its_models_declare(applied):
    await put_model(applied, "tiny", qps=4, **one_part(0.25))
    refused = await put_fleet(applied, status=409, cpu=0.5)
    assert "model 'tiny' still needs it: spec.parts.0.hardware.0.units: 0.25 units of cpu" in refused["message"]
    await put_fleet(applied, cpu=0.25)


async def test_a_fleet_bounds_the_units_of_hardware_that_it_has_only(applied):
    assert "leastUnits.h100" in (await put_fleet(applied, status=400, h100=1))["message"]
