"""One change of one model, from the record to what serves."""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.registry import GenerationState, Signature, TensorSpec

pytestmark = pytest.mark.usefixtures("workers")

DEMAND = {"us-east": 350.0, "eu-west": 180.0}


async def test_a_published_generation_serves_everywhere_and_ready_is_true(house, model, carried_out):
    house.apply(model)

    change = await carried_out(house.publish(model, 1))

    assert (change.state, change.reason) == (ChangeState.DONE, Reason.SUCCEEDED)
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert house.condition(model).status == "True"
    with house.store.read() as repository:
        record = repository.model(model)
        assert (record.serving_generation, record.observed_generation) == (1, 1)
        assert repository.generation(model, 1).state is GenerationState.SERVING
        assert all(condition.status == "True" for condition in repository.conditions(model))


async def test_a_run_looks_at_its_own_model_alone(house, model, carried_out, monkeypatch):
    observe, asked = house.infrastructure.observe, []

    def remembered(region, models=None):
        asked.append(models)
        return observe(region, models)

    monkeypatch.setattr(house.infrastructure, "observe", remembered)
    house.apply(model)
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2))
    await carried_out(house.ask(model, ChangeKind.RETIRE, f"{model}-retire"))

    assert asked
    assert [models for models in asked if models != [model]] == []


async def test_the_second_generation_takes_over_without_ever_lacking_capacity(house, kit, model, carried_out):
    house.apply(model)
    await carried_out(house.publish(model, 1))

    change = await carried_out(house.publish(model, 2))

    assert change.state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    kit.check_floor(house.infrastructure, model, DEMAND)
    assert set(house.held(model).values()) == {(1, 2)}, "the former generation stays warm"
    with house.store.read() as repository:
        assert repository.generation(model, 1).state is GenerationState.WARM


async def test_weights_with_nan_are_refused_and_the_former_generation_serves_on(house, model, carried_out):
    house.apply(model)
    await carried_out(house.publish(model, 1))

    change = await carried_out(house.publish(model, 2, value=float("nan")))

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.NON_FINITE_WEIGHTS)
    assert "'bias'" in change.message
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    ready = house.condition(model)
    assert (ready.status, ready.reason) == ("False", Reason.NON_FINITE_WEIGHTS)
    assert "generation 1 serves" in ready.message
    with house.store.read() as repository:
        assert repository.generation(model, 2).state is GenerationState.REFUSED
        assert repository.report(model, 2).refusal is not None
        assert repository.transitions(model, limit=1)[0].generation == 1


async def test_parts_that_do_not_fit_together_are_refused_by_the_edge(house, kit, model, carried_out):
    house.apply(model)
    wide = TensorSpec(name="x", datatype="FP32", shape=(-1, 16))
    dense = house.source(Signature(inputs=(wide,), outputs=(kit.OUT,)), kit.weights(9))

    change = await carried_out(house.publish(model, 1, dense=dense))

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.SCHEMA_MISMATCH)
    assert "sparse.embeddings -> dense.x" in change.message
    assert house.infrastructure.calls("apply", "route") == ()


async def test_a_first_publish_that_fits_nowhere_is_refused_with_the_binding_rules(house, model, carried_out):
    part = {"engine": "torch", "hardware": [{"kind": "cpu", "units": 41, "qps": 1000}]}
    house.apply(model, parts=[{"name": "sparse", **part}, {"name": "dense", **part}])

    change = await carried_out(house.publish(model, 1))

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.NO_CAPACITY)
    assert "supply us-east/cpu" in change.message
    assert house.condition(model, ConditionType.PLANNED).status == "False"
    with house.store.read() as repository:
        assert repository.plan_in_force() is None


async def test_a_rollback_needs_no_load_and_makes_ready_true_again(house, model, carried_out):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2))
    await carried_out(house.publish(model, 3, value=float("inf")))
    before = house.held(model)

    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert change.state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert house.held(model) == before, "both generations were loaded and stay loaded"
    with house.store.read() as repository:
        assert len(repository.transition(change.id).transition.waves) == 1, "no canary for what has served before"
    ready = house.condition(model)
    assert (ready.status, ready.reason) == ("True", Reason.SERVING)


async def test_a_rollback_to_what_never_served_is_refused(house, model, carried_out):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2, value=float("nan")))

    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=2))

    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.TRANSITION_REFUSED)
    assert "has never served; a rollback may go to: 1" in change.message
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}


async def test_a_rollback_is_not_refused_for_demand_that_nothing_was_placed_for_yet(house, model, carried_out):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    await carried_out(house.publish(model, 2))
    before = house.held(model)
    house.apply(model, demand=[{"region": region, "qps": 2000.0} for region in ("us-east", "eu-west")])

    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert (change.state, change.message) == (ChangeState.DONE, "")
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert house.held(model) == before


async def test_a_new_manifest_is_planned_and_reached_with_the_same_snapshots(house, kit, model, carried_out):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    more = {"us-east": 900.0, "eu-west": 180.0}
    house.apply(model, demand=[{"region": region, "qps": qps} for region, qps in more.items()])

    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))

    assert change.state is ChangeState.DONE
    with house.store.read() as repository:
        record = repository.model(model)
        assert (record.generation, record.observed_generation, record.serving_generation) == (2, 2, 1)
        units = sum(d.replicas * d.qps for d in repository.deployments(model) if d.key.part == "dense")
    assert units >= sum(more.values())
    assert house.condition(model).status == "True"


async def test_a_retired_model_leaves_nothing_running(house, model, carried_out, client, until):
    house.apply(model)
    await carried_out(house.publish(model, 1))

    change = await carried_out(house.ask(model, ChangeKind.RETIRE, f"{model}-retire"))

    assert change.state is ChangeState.DONE
    assert (house.held(model), house.shares(model)) == ({}, {})
    with house.store.read() as repository:
        record = repository.model(model)
        assert (record.retired, record.serving_generation) == (True, None)
        assert repository.placement(model) is None
    handle = client.get_workflow_handle(f"model/{model}")
    assert await handle.result() is None


async def test_the_same_change_submitted_twice_runs_once(house, model, submit, ended):
    house.apply(model)
    change = house.publish(model, 1)

    await submit(change)
    await submit(change)
    await ended(change)
    await submit(change)

    with house.store.read() as repository:
        begun = [event for event in repository.events(model) if event.kind == "Started"]
    assert len(begun) == 1


async def test_a_refused_snapshot_of_one_part_stands_in_the_way_of_no_publish_of_another(
    house, kit, model, carried_out
):
    house.apply(model)
    await carried_out(house.publish(model, 1))
    refused = await carried_out(house.publish(model, 2, value=float("nan")))
    sparse = house.source(kit.SPARSE, kit.weights(7))
    with house.store.begin() as repository:
        change = repository.publish(model, {"sparse": sparse}, change_id=f"{model}-sparse")

    done = await carried_out(change)

    assert (refused.state, done.state) == (ChangeState.REFUSED, ChangeState.DONE)
    with house.store.read() as repository:
        snapshots = repository.generation(model, done.generation).snapshots
    assert snapshots == {"sparse": 3, "dense": 1}


async def test_a_snapshot_that_has_gone_is_told_once(house, model, carried_out):
    house.apply(model)
    change = house.publish(model, 1)
    with house.store.read() as repository:
        uri = repository.snapshot(model, "sparse", 1).uri
    digest = uri.rsplit("/", 1)[-1]
    (house.root / "artifacts" / "snapshots" / digest / "snapshot.json").unlink()

    done = await carried_out(change)

    assert (done.state, done.reason) == (ChangeState.REFUSED, Reason.ARTIFACT_MISSING)
    with house.store.read() as repository:
        told = [event.message for event in repository.events(model) if event.kind == ConditionType.RESOLVED.value]
    assert len(told) == 1, told
