"""How a new snapshot comes to a model.

Into the running processes, or into new ones, as the rollout or the memory says.
"""

import pytest

from ipnext.model.deployment.footprint import PROCESS_BYTES
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.manifest.parser import parse_manifest

pytestmark = pytest.mark.usefixtures("workers")

DEMAND = {"us-east": 350.0, "eu-west": 180.0}


def rollout(refresh):
    return {"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 180, "refresh": refresh}


def parts(memory_bytes):
    part = {"engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}], "memoryBytes": memory_bytes}
    return [{"name": "sparse", **part}, {"name": "dense", **part}]


def side_by_side(house, model):
    """Whether any process ever held two generations, by what the infrastructure saw."""
    moments = house.infrastructure.history
    deployments = [d for m in moments for key, d in m.deployments.items() if key.model == model]
    return any(len(d.generations) > 1 and not d.own for d in deployments)


async def test_replacing_starts_new_processes_and_ends_the_former_without_lacking_capacity(
    house, kit, model, carried_out
):
    house.apply(model, rollout=rollout("replace"))
    await carried_out(house.publish(model, 1))

    change = await carried_out(house.publish(model, 2))

    assert change.state is ChangeState.DONE, change.message
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    kit.check_floor(house.infrastructure, model, DEMAND)
    assert not side_by_side(house, model)
    assert set(house.held(model).values()) == {(2,)}, "a warm generation would keep its processes"
    last = house.infrastructure.history[-1].deployments
    counts = {(key.part, key.region): d.replicas for key, d in last.items()}
    assert counts == {
        ("sparse", "us-east"): 4,
        ("dense", "us-east"): 4,
        ("sparse", "eu-west"): 2,
        ("dense", "eu-west"): 2,
    }


async def test_a_rollback_after_replacing_starts_the_former_generation_anew(house, kit, model, carried_out):
    house.apply(model, rollout=rollout("replace"))
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2))

    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert change.state is ChangeState.DONE, change.message
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    kit.check_floor(house.infrastructure, model, DEMAND)


@pytest.mark.parametrize("refresh", ["replace", "in_place"])
async def test_a_generation_that_serves_and_is_broken_is_left_by_a_rollback_or_a_repaired_one(
    house, kit, model, carried_out, refresh
):
    house.apply(model, rollout=rollout(refresh))
    await carried_out(house.publish(model, 1))
    broken = house.source(kit.SPARSE, kit.weights(2))
    await carried_out(house.publish(model, 2, sparse=broken))
    house.infrastructure.fail_load(broken.manifest.digest)

    back = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))
    assert back.state is ChangeState.DONE, back.message

    house.infrastructure.heal_load(broken.manifest.digest)
    await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-again", generation=2))
    house.infrastructure.fail_load(broken.manifest.digest)

    repaired = await carried_out(house.publish(model, 3))
    assert repaired.state is ChangeState.DONE, repaired.message
    assert house.shares(model) == {"us-east": {3: 1.0}, "eu-west": {3: 1.0}}


async def test_a_part_that_did_not_change_keeps_its_processes(house, kit, model, carried_out):
    house.apply(model, rollout=rollout("replace"))
    sparse = house.source(kit.SPARSE, kit.weights(1))
    await carried_out(house.publish(model, 1, sparse=sparse))

    change = await carried_out(house.publish(model, 2, sparse=sparse))

    assert change.state is ChangeState.DONE, change.message
    kit.check_floor(house.infrastructure, model, DEMAND)
    with house.store.read() as repository:
        held = {d.key.part: [h.snapshot for h in d.holds] for d in repository.deployments(model)}
    assert held == {"sparse": [1], "dense": [2]}


@pytest.mark.parametrize(("room", "beside"), [(10**9, True), (None, True), (PROCESS_BYTES + 50 * 10**6, False)])
async def test_left_to_itself_memory_decides(house, kit, model, carried_out, room, beside):
    house.apply(model, rollout=rollout("auto"), parts=parts(room) if room else parts(None))
    await carried_out(house.publish(model, 1))

    change = await carried_out(house.publish(model, 2))

    assert change.state is ChangeState.DONE, change.message
    assert side_by_side(house, model) is beside
    kit.check_floor(house.infrastructure, model, DEMAND)


async def test_a_model_that_replaced_may_go_on_in_place(house, kit, model, carried_out):
    house.apply(model, rollout=rollout("replace"))
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2))
    with house.store.begin() as repository:
        version = repository.model(model).version
        repository.put_model(parse_manifest(kit.manifest(model, rollout=rollout("in_place"))), expected_version=version)

    change = await carried_out(house.publish(model, 3))

    assert change.state is ChangeState.DONE, change.message
    assert side_by_side(house, model)
    kit.check_floor(house.infrastructure, model, DEMAND)


async def test_a_cut_model_is_replaced_with_all_segments_of_a_part_in_one_process(house, kit, model, carried_out):
    house.apply_split(model, kit.BY_TABLE, rollout=rollout("replace"))
    await carried_out(house.publish_whole(model, 1, change_id=f"{model}-1"))
    house.apply_split(model, kit.IN_THE_MIDDLE, rollout=rollout("replace"))
    await carried_out(house.publish_whole(model, 1, change_id=f"{model}-2"))

    change = await carried_out(house.publish_whole(model, 3, change_id=f"{model}-3"))

    assert change.state is ChangeState.DONE, change.message
    assert house.shares(model) == {"us-east": {3: 1.0}, "eu-west": {3: 1.0}}
    assert not side_by_side(house, model)
    for moment in house.infrastructure.history:
        for region in DEMAND:
            for _, number in moment.generations_with_traffic(model):
                sent = moment.sent_qps(model, region, number, DEMAND)
                for part in ("sparse", "dense") if number == 1 else ("middle", "dense"):
                    assert moment.ready_qps(model, part, region, number) >= sent - 1e-6, (moment.number, number, part)
    with house.store.read() as repository:
        held = {d.key.part: sorted(h.part for h in d.holds if h.part) for d in repository.deployments(model)}
    assert held == {"middle": [], "dense": ["dense-s0", "dense-s2"]}
