"""A part whose hardware kinds serve derivatives of their own: from the publish to rollback, denial and memory."""

import numpy as np
import pytest
from safetensors.numpy import save

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.checks import LIVE_LATENCY
from ipnext.model.lifecycle.status import Reason
from ipnext.platform.denials import carry_out_denials
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("workers", "two_kinds")

FLEET = """
apiVersion: ipnext/v1
kind: Fleet
spec:
  regions: [us-east, eu-west]
  rttMs: [[1, 76], [76, 1]]
  hardware: [cpu, small]
  memoryBytes: {small: %d}
  supply:
    - {region: us-east, hardware: cpu, units: 40, unitCost: 2}
    - {region: us-east, hardware: small, units: 1, unitCost: 1}
    - {region: eu-west, hardware: cpu, units: 40, unitCost: 2}
"""
KINDS = [{"kind": "cpu", "units": 1, "qps": 100}, {"kind": "small", "units": 1, "qps": 100}]
DENSE = {"name": "dense", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
PARTS = [{"name": "sparse", "engine": "torch", "hardware": KINDS}, DENSE]
ON_SMALL = {"quantize": {"part": "sparse", "embeddings": "int8", "hardware": ["small"]}}
FOR_ALL = {"quantize": {"part": "sparse", "embeddings": "int4"}}


@pytest.fixture
def two_kinds(house):
    house.apply_fleet(FLEET % 10**9)


@pytest.fixture
def publish(house, model, carried_out):
    async def call(seed, name="", **parts):
        return await carried_out(house.publish(model, seed, change_id=f"{model}-{name or seed}", **parts))

    return call


@pytest.fixture
async def derived(house, model, publish):
    """Generation 1 serves: the published snapshot 1 of sparse on cpu, snapshot 2 on small."""
    house.apply(model, parts=PARTS, optimization=[ON_SMALL])
    change = await publish(1)
    assert change.state is ChangeState.DONE, change.message


@pytest.fixture
def loaded(house, model):
    """Hardware kind -> generation -> snapshots of `sparse` in the replica sets that agents have."""

    def read():
        found = {}
        with house.store.read() as repository:
            for deployment in repository.deployments(model):
                for hold in deployment.holds if deployment.key.part == "sparse" and deployment.replicas else ():
                    for generation in hold.generations:
                        found.setdefault(deployment.key.hardware, {}).setdefault(generation, set()).add(hold.snapshot)
        return found

    return read


def snapshots(house, model):
    with house.store.read() as repository:
        return {one.number: one for one in repository.snapshots(model) if one.part == "sparse"}


async def test_each_hardware_kind_loads_and_answers_with_its_own_derivative(derived, house, model, loaded):
    assert loaded() == {"cpu": {1: {1}}, "small": {1: {2}}}
    [served] = house.infrastructure.table(model, "us-east").served
    assert (served.snapshots, served.by_hardware) == ({"sparse": 1, "dense": 1}, {"small": {"sparse": 2}})
    found = snapshots(house, model)
    assert (found[2].derived_from, found[2].manifest.parent, found[2].hardware) == (1, found[1].digest, ("small",))
    with house.store.read() as repository:
        [told] = [event.message for event in repository.events(model, limit=200) if event.kind == "Optimized"]
    assert told.startswith("generation 1: step 1 of 1, quantize of sparse on small: quantize: weights 100 of 200")


async def test_a_shared_step_is_derived_once_and_a_rollback_serves_both_derivatives_again(
    derived, house, model, publish, loaded, carried_out
):
    house.apply(model, parts=PARTS, optimization=[FOR_ALL, ON_SMALL])
    assert (await publish(2)).state is ChangeState.DONE
    assert (loaded()["cpu"][2], loaded()["small"][2]) == ({4}, {5})
    assert len(house.deriver.calls) == 3
    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))
    assert change.state is ChangeState.DONE, change.message
    assert (loaded()["cpu"][1], loaded()["small"][1]) == ({1}, {2})
    served = {one.generation: one.by_hardware for one in house.infrastructure.table(model, "us-east").served}
    assert served[1] == {"small": {"sparse": 2}}


async def test_equal_steps_of_two_kinds_derive_once(house, model, publish, loaded):
    on_cpu = {"quantize": {**ON_SMALL["quantize"], "hardware": ["cpu"]}}
    house.apply(model, parts=PARTS, optimization=[ON_SMALL, on_cpu])
    change = await publish(1)
    assert change.state is ChangeState.DONE, change.message
    assert len(house.deriver.calls) == 1
    assert loaded() == {"cpu": {1: {2}}, "small": {1: {2}}}
    assert snapshots(house, model)[2].hardware == ("cpu", "small")


async def test_a_broken_limit_of_one_kind_refuses_or_keeps_its_branch(house, model, publish, loaded):
    house.deriver.broken = ("maxAucDrop: 0.02 is above 0.001",)
    house.apply(model, parts=PARTS, optimization=[ON_SMALL])
    refused = await publish(1)
    assert (refused.state, refused.reason) == (ChangeState.REFUSED, Reason.ACCURACY_LOST)
    assert "quantize of sparse on small: maxAucDrop" in refused.message
    keeping = {"quantize": {**ON_SMALL["quantize"], "onRefusal": "keep"}}
    house.apply(model, parts=PARTS, optimization=[keeping])
    assert (await publish(1, "again")).state is ChangeState.DONE
    assert loaded() == {"cpu": {2: {1}}, "small": {2: {1}}}


async def test_a_denied_derivative_of_one_kind_denies_the_generation(derived, house, model, publish):
    assert (await publish(2)).state is ChangeState.DONE
    with house.store.begin() as repository:
        repository.put_denial(snapshots(house, model)[4].digest, reason="a fault", denied_by="ops")
    carry_out_denials(house.store)
    with house.store.read() as repository:
        [use] = repository.denied_uses([model])
    assert (use.serving, use.denial.reason) == (2, "a fault")


async def test_a_shadow_has_the_derivative_of_each_kind_and_ends_if_one_is_denied(derived, house, model, submit, ended):
    settings = {"share": 0.2, "minRequests": 10, "seconds": 600}
    shadow = {"stage": "shadow", "before": "transition", "settings": settings}
    house.apply(model, parts=PARTS, optimization=[ON_SMALL], lifecycle=[shadow])
    change = house.publish(model, 2, change_id=f"{model}-2")
    await submit(change)
    await eventually(lambda: house.infrastructure.table(model, "us-east").shadow)
    served = house.infrastructure.table(model, "us-east").shadow.served
    assert (served.snapshots["sparse"], served.by_hardware) == (3, {"small": {"sparse": 4}})
    with house.store.begin() as repository:
        repository.put_denial(snapshots(house, model)[4].digest, reason="a fault", denied_by="ops")
    carry_out_denials(house.store)
    found = await ended(change)
    assert (found.state, found.message) == (ChangeState.REFUSED, "stage shadow: snapshot 4 of 'sparse' is denied")


async def test_memory_is_judged_by_the_derivative_of_each_kind(house, model, publish, carried_out):
    house.apply_fleet(FLEET % 1000)
    house.apply(model, parts=PARTS, optimization=[ON_SMALL])
    assert (await publish(1)).state is ChangeState.DONE
    assert memory(house, model) == ("passed", True, False)
    small = [{"name": "sparse", "engine": "torch", "hardware": KINDS[1:]}, DENSE]
    house.apply(model, parts=small, optimization=[ON_SMALL])
    refused = await publish(2)
    assert (refused.state, refused.reason) == (ChangeState.REFUSED, Reason.OUT_OF_MEMORY)
    assert "memory: sparse: fits no hardware kind of the part: small: needs" in refused.message


async def test_an_apply_judges_memory_by_what_the_serving_generation_was_derived_to(derived, house, model, carried_out):
    house.apply_fleet(FLEET % 1000)
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    assert change.state is ChangeState.DONE, change.message
    assert memory(house, model) == ("passed", True, False)


def memory(house, model):
    """The check's outcome for sparse, and whether it fits on each kind."""
    with house.store.read() as repository:
        report = repository.report(model, 1)
    [found] = [each for each in report.checks if (each.check, each.subject) == ("memory", "sparse")]
    return found.outcome.value, *(found.evidence["kinds"][kind]["fits"] for kind in ("cpu", "small"))


async def test_live_latency_times_each_derivative_on_its_own_kind(house, kit, model, publish):
    limits = {"maxP50Ratio": 1.2, "part": "sparse"}
    house.apply(model, parts=PARTS, optimization=[ON_SMALL], validation={"liveLatency": limits})
    files = {"replay.safetensors": save({"features": np.ones((100, 4), np.float32)})}
    for seed in (1, 2):
        sparse = house.source(kit.SPARSE, kit.weights(seed), more=files)
        change = await publish(seed, sparse=sparse)
        assert change.state is ChangeState.DONE, change.message
    with house.store.read() as repository:
        checks = [each for each in repository.report(model, 2).checks if each.check == LIVE_LATENCY]
    assert {each.message.partition(" in ")[0]: each.outcome.value for each in checks} == {
        "on cpu": "passed",
        "on small": "passed",
    }


@pytest.fixture
async def split(house, kit, model, carried_out):
    """Generation 1, cut into sparse and dense, serves: segment 1 of sparse on cpu, its quantised form 2 on small."""
    steps = [{"quantize": {"embeddings": "int8", "hardware": ["small"]}}]
    whole = {"name": "whole", "engine": "torch", "hardware": KINDS}
    house.apply_split(model, kit.BY_TABLE, parts=[whole], optimization=steps)
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-1"))
    assert change.state is ChangeState.DONE, change.message


async def test_each_kind_answers_with_its_cut_of_a_split_until_one_is_denied(split, house, model, loaded, carried_out):
    assert loaded()["cpu"] == {1: {1}}
    [served] = house.infrastructure.table(model, "us-east").served
    assert (served.snapshots, served.by_hardware) == ({"sparse": 1, "dense": 1}, {"small": {"sparse": 2}})
    change = await carried_out(house.publish_whole(model, 2, change_id=f"{model}-2"))
    assert change.state is ChangeState.DONE, change.message
    served = {one.generation: one.by_hardware for one in house.infrastructure.table(model, "us-east").served}
    assert served[2] == {"small": {"sparse": 4}}
    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))
    assert change.state is ChangeState.DONE, change.message
    numbers = {kind: held[1] for kind, held in loaded().items()}
    assert numbers == {kind: {2 if kind == "small" else 1} for kind in numbers}
    with house.store.begin() as repository:
        repository.put_denial(repository.snapshot(model, "whole", 2).digest, reason="a fault", denied_by="ops")
    carry_out_denials(house.store)
    with house.store.read() as repository:
        [use] = repository.denied_uses([model])
    assert (use.serving, use.denial.reason) == (1, "a fault")
