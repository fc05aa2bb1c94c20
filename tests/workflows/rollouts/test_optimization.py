"""A model whose manifest has a pipeline: derived at its publish, served by what each generation was derived to."""

from datetime import UTC, datetime, timedelta

import pytest

from activities.optimization.step_process import StepRefused
from activities.runtime.tool_process import ToolEnded
from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.registry import GenerationState
from ipnext.model.registry.retention import Keep, SnapshotKeep, SnapshotRule

pytestmark = pytest.mark.usefixtures("workers")

INT8 = {"quantize": {"part": "sparse", "embeddings": "int8", "maxAucDrop": 0.001}}
INT4 = {"quantize": {"part": "sparse", "embeddings": "int4"}}


@pytest.fixture
def generation(house, model):
    def read(number):
        with house.store.read() as repository:
            return repository.generation(model, number)

    return read


@pytest.fixture
def snapshot(house, model):
    def read(number, part="sparse"):
        with house.store.read() as repository:
            return repository.snapshot(model, part, number)

    return read


@pytest.fixture
def publish(house, model, carried_out):
    """Publishes both parts, made from a seed, and waits for the end of the change."""

    async def call(seed, name=""):
        return await carried_out(house.publish(model, seed, change_id=f"{model}-{name or seed}"))

    return call


@pytest.fixture
async def derived(house, model, publish):
    """Generation 1, whose part sparse is derived from, serves."""
    house.apply(model, optimization=[INT8])
    change = await publish(1)
    assert change.state is ChangeState.DONE, change.message


def served(house, model, region="us-east"):
    return {one.generation: one.snapshots for one in house.infrastructure.table(model, region).served}


def events(house, model):
    with house.store.read() as repository:
        return [event.message for event in repository.events(model, limit=200) if event.kind == "Optimized"]


async def test_the_derived_snapshot_serves_in_place_of_the_published_one(derived, house, model, generation, snapshot):
    assert served(house, model) == {1: {"sparse": 2, "dense": 1}}
    assert (generation(1).snapshots, generation(1).derived.parts) == ({"sparse": 1, "dense": 1}, {"sparse": 2})
    assert (snapshot(2).derived_from, snapshot(2).manifest.parent) == (1, snapshot(1).digest)
    with house.store.read() as repository:
        held = {hold.digest for d in repository.deployments(model) for hold in d.holds if d.key.part == "sparse"}
    assert held == {snapshot(2).digest}
    [told] = events(house, model)
    assert told.startswith("generation 1: step 1 of 1, quantize of sparse: quantize: weights 100 of 200 bytes (0.500x)")


async def test_published_numbers_go_on_after_derived_ones_and_are_the_newest(
    derived, house, kit, model, publish, generation
):
    change = await publish(2)
    assert change.state is ChangeState.DONE, change.message
    assert (generation(2).snapshots, generation(2).derived.parts) == ({"sparse": 3, "dense": 2}, {"sparse": 4})
    with house.store.begin() as repository:
        later = repository.publish(
            model, {"dense": house.source(kit.DENSE, kit.weights(7))}, change_id=f"{model}-dense"
        )
        assert repository.generation(model, later.generation).snapshots["sparse"] == 3


async def test_routers_compare_derived_snapshots_by_the_published_ones(derived, house, model, snapshot):
    [one] = house.infrastructure.table(model, "us-east").served
    assert (one.facts["sparse"].published, one.facts["dense"].published) == (1, None)
    assert one.facts["sparse"].created_at == snapshot(1).created_at


async def test_a_rollback_serves_what_its_generation_was_derived_to(derived, house, model, publish, carried_out):
    house.apply(model, optimization=[])
    assert (await publish(2)).state is ChangeState.DONE
    assert served(house, model)[2] == {"sparse": 3, "dense": 2}
    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))
    assert change.state is ChangeState.DONE, change.message
    assert house.shares(model)["us-east"] == {1: 1.0}
    assert served(house, model)[1] == {"sparse": 2, "dense": 1}
    assert len(house.deriver.calls) == 1


async def test_the_same_bytes_and_steps_are_not_derived_again(derived, house, model, publish, generation):
    house.infrastructure.answer_with(model, 2, errors=1.0)
    house.apply(model, optimization=[INT4])
    assert (await publish(1, "again")).state is ChangeState.ROLLED_BACK
    assert len(house.deriver.calls) == 2, "another step"
    house.apply(model, optimization=[INT8])
    change = await publish(1, "third")
    assert change.state is ChangeState.DONE, change.message
    assert len(house.deriver.calls) == 2
    assert generation(3).derived.parts == {"sparse": 2}
    assert events(house, model)[0].endswith("(derived before)")


async def test_a_derived_snapshot_whose_bytes_were_collected_is_derived_again(
    derived, house, model, publish, generation
):
    house.apply(model, optimization=[])
    assert (await publish(2)).state is ChangeState.DONE
    with house.store.begin(model) as repository:
        repository.release_snapshots(model, [("sparse", 2)])
    house.apply(model, optimization=[INT8])
    change = await publish(1, "again")
    assert change.state is ChangeState.DONE, change.message
    assert len(house.deriver.calls) == 2
    with house.store.read() as repository:
        assert not set(generation(3).derived.parts.items()) & repository.collected_snapshots(model)


async def test_a_broken_limit_ends_the_change_with_its_figures(derived, house, model, publish, generation):
    house.deriver.broken = ("maxAucDrop: 0.02 is above 0.001",)
    change = await publish(2)
    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.ACCURACY_LOST)
    assert "quantize of sparse: maxAucDrop: 0.02 is above 0.001" in change.message
    assert house.condition(model, ConditionType.VALIDATED).reason is Reason.ACCURACY_LOST
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert generation(2).state is GenerationState.REFUSED
    house.deriver.broken = ()
    house.apply(model, optimization=[INT4])
    assert (await publish(2, "again")).state is ChangeState.DONE


@pytest.mark.parametrize(("limit", "calls"), [("maxAucDrop", 1), ("maxLatencyRatio", 2)])
async def test_a_refusal_is_judged_again_only_if_the_machine_decided_it(house, model, publish, limit, calls):
    house.deriver.broken = (f"{limit}: 2 is above 1",)
    house.apply(model, optimization=[INT8])
    for name in ("first", "second"):
        assert (await publish(1, name)).reason is Reason.ACCURACY_LOST
    assert len(house.deriver.calls) == calls


async def test_a_broken_limit_may_keep_the_published_snapshot(house, model, publish, generation):
    house.deriver.broken = ("maxAucDrop: 0.02 is above 0.001",)
    keeping = {"quantize": {**INT8["quantize"], "onRefusal": "keep"}}
    house.apply(model, optimization=[keeping])
    change = await publish(1)
    assert change.state is ChangeState.DONE, change.message
    assert served(house, model) == {1: {"sparse": 1, "dense": 1}}
    assert generation(1).derived.parts == {}
    assert "broken: maxAucDrop: 0.02 is above 0.001" in events(house, model)[0]


async def test_a_step_that_does_not_fit_is_refused_with_its_reason(house, model, publish):
    house.deriver.faults = [StepRefused("quantize: the snapshot has no embedding table to replace")]
    house.apply(model, optimization=[INT8])
    change = await publish(1)
    assert (change.state, change.reason) == (ChangeState.REFUSED, Reason.OPTIMIZATION_REFUSED)
    assert "quantize of sparse: the snapshot has no embedding table to replace" in change.message


async def test_a_step_whose_process_was_killed_is_tried_again_and_finished_ones_are_not_repeated(
    house, model, publish, generation, snapshot
):
    second = {"quantize": {**INT4["quantize"], "tables": ["b"]}}
    house.apply(model, optimization=[INT8, second])
    house.deriver.faults = [None, ToolEnded("quantize was ended by SIGKILL")]
    change = await publish(1)
    assert change.state is ChangeState.DONE, change.message
    assert house.deriver.calls == [snapshot(1).digest, snapshot(2).digest, snapshot(2).digest]
    assert generation(1).derived.parts == {"sparse": 3}
    assert (snapshot(3).derived_from, snapshot(3).manifest.parent) == (1, snapshot(2).digest)


async def test_another_pipeline_is_followed_from_the_next_publish_on(derived, house, model, carried_out):
    house.apply(model, optimization=[INT4])
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))
    assert change.state is ChangeState.DONE, change.message
    assert "the changed spec.optimization is followed from the next publish on" in change.message
    assert len(house.deriver.calls) == 1


async def test_a_snapshot_is_derived_and_then_split(house, kit, model, carried_out, snapshot, generation):
    house.apply_split(model, kit.BY_TABLE, optimization=[{"quantize": {"embeddings": "int8"}}])
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-1"))
    assert change.state is ChangeState.DONE, change.message
    whole = snapshot(2, "whole")
    assert (whole.derived_from, generation(1).derived.parts) == (1, {"whole": 2})
    assert snapshot(1, "dense").manifest.parent == whole.digest
    assert served(house, model) == {1: {"sparse": 1, "dense": 1}}


async def test_a_delta_of_a_part_with_a_pipeline_is_refused_at_once(derived, house, kit, model):
    delta = {"delta.json": b"{}"}
    with house.store.read() as repository:
        parent = repository.snapshot(model, "sparse", 1).digest
    source = house.source(kit.SPARSE, kit.weights(9), more=delta, parent=parent)
    with (
        pytest.raises(InvalidInput, match=r"a delta cannot be optimized by spec.optimization"),
        house.store.begin() as unit,
    ):
        unit.publish(model, {"sparse": source}, change_id=f"{model}-delta")


async def test_a_delta_of_a_derived_snapshot_is_refused_at_once(derived, house, kit, model, snapshot):
    house.apply(model, optimization=[])
    source = house.source(kit.SPARSE, kit.weights(9), more={"delta.json": b"{}"}, parent=snapshot(2).digest)
    with pytest.raises(InvalidInput, match=f"its newest: {snapshot(1).digest}"), house.store.begin() as unit:
        unit.publish(model, {"sparse": source}, change_id=f"{model}-delta")


async def test_what_serves_and_what_it_was_derived_from_are_not_collected(derived, house, model, publish):
    assert (await publish(2)).state is ChangeState.DONE
    rule = SnapshotRule(datetime.now(UTC) + timedelta(days=400), timedelta(days=7), timedelta(days=30))
    with house.store.read() as repository:
        found = repository.unneeded_snapshots([model], rule, SnapshotKeep(Keep(1, timedelta(days=30)), 1))
    kept = {("sparse", 3), ("sparse", 4)}
    assert not {one.line.key for each in found.values() for one in each.found} & kept
