"""A model whose manifest has it split: cut at its publish, served by the layout of each generation."""

import pytest

from activities.optimization import splitter
from activities.optimization.split_process import CutRefused
from activities.runtime.tool_process import ToolEnded
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.replans.replan import ScheduledReplan
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.registry.registry import GenerationState
from serving.splitting.report import FORM

pytestmark = pytest.mark.usefixtures("workers")

DEMAND = {"us-east": 350.0, "eu-west": 180.0}


@pytest.fixture
def parts_run(house, model):
    """Parts with replicas, as the store wants them."""

    def read():
        with house.store.read() as repository:
            return {d.key.part for d in repository.deployments(model) if d.replicas}

    return read


@pytest.fixture
def generation(house, model):
    def read(number):
        with house.store.read() as repository:
            return repository.generation(model, number)

    return read


@pytest.fixture
async def cut_by_table(house, kit, model, carried_out):
    """Generation 1, cut into sparse and dense, serves."""
    house.apply_split(model, kit.BY_TABLE)
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-1"))
    assert change.state is ChangeState.DONE, change.message


@pytest.fixture
async def cut_in_the_middle(cut_by_table, house, kit, model, carried_out):
    """The same bytes cut otherwise serve as generation 2."""
    house.apply_split(model, kit.IN_THE_MIDDLE)
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-2"))
    assert change.state is ChangeState.DONE, change.message


def check_floor(house, model, numbers):
    """At each moment every part of a generation has the ready capacity for the traffic sent to it."""
    with house.store.read() as repository:
        parts = {number: repository.generation(model, number).parts for number in numbers}
    for moment in house.infrastructure.history:
        for region in DEMAND:
            for _, number in moment.generations_with_traffic(model):
                sent = moment.sent_qps(model, region, number, DEMAND)
                for part in parts[number]:
                    ready = moment.ready_qps(model, part, region, number)
                    assert ready >= sent - 1e-6, (moment.number, moment.call, region, number, part, ready, sent)


async def test_a_published_snapshot_is_cut_and_its_parts_serve(cut_by_table, house, model, parts_run, generation):
    assert parts_run() == {"sparse", "dense"}
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    [served] = house.infrastructure.table(model, "us-east").served
    assert [node.part for node in served.graph.nodes] == ["sparse", "dense"]
    assert served.snapshots == {"sparse": 1, "dense": 1}
    layout = generation(1).layout
    assert layout.source == "whole"
    assert layout.equal_at == (1, 64)


async def test_the_pieces_lie_in_the_artifact_store_and_name_the_whole_as_their_parent(cut_by_table, house, model):
    with house.store.read() as repository:
        whole = repository.snapshot(model, "whole", 1)
        pieces = [repository.snapshot(model, part, 1) for part in ("sparse", "dense")]
    for piece in pieces:
        assert house.artifacts.manifest(piece.uri).parent == whole.digest


async def test_the_same_bytes_cut_otherwise_take_over_without_ever_lacking_capacity(
    cut_in_the_middle, house, model, parts_run
):
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
    check_floor(house, model, (1, 2))
    assert parts_run() == {"dense", "middle"}
    served = {s.generation: s for s in house.infrastructure.table(model, "us-east").served}
    assert served[2].snapshots == {"dense-s0": 1, "middle": 1, "dense-s2": 1}
    assert house.condition(model).status == "True"


async def test_a_generation_whose_parts_have_ended_is_not_warm(cut_in_the_middle, house, model, generation):
    assert generation(1).state is GenerationState.RETIRED
    assert set(house.held(model).values()) == {(2,)}


async def test_a_host_of_a_part_holds_all_of_its_segments(cut_in_the_middle, house, model):
    key = DeploymentKey(model=model, part="dense", region="us-east", hardware="cpu")
    assert house.infrastructure.deployment(key).pieces(2) == {"dense-s0", "dense-s2"}


async def test_a_rollback_goes_back_to_the_parts_of_its_generation(
    cut_in_the_middle, house, model, parts_run, carried_out
):
    change = await carried_out(house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1))

    assert change.state is ChangeState.DONE, change.message
    assert parts_run() == {"sparse", "dense"}
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    check_floor(house, model, (1, 2))
    assert house.cutter.calls == 2
    with house.store.read() as repository:
        assert {row.part for row in repository.placement(model).replicas} == {"sparse", "dense"}


async def test_the_same_bytes_and_policy_again_are_not_cut_again(
    cut_in_the_middle, house, kit, model, carried_out, generation
):
    house.apply_split(model, kit.BY_TABLE)
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-3"))

    assert (change.state, change.generation) == (ChangeState.DONE, 3)
    assert house.cutter.calls == 2
    assert generation(3).layout == generation(1).layout


async def test_pieces_whose_bytes_were_collected_are_cut_again(
    cut_in_the_middle, house, kit, model, carried_out, generation
):
    collected = generation(1).layout.segments[0]
    with house.store.begin(model) as repository:
        repository.release_snapshots(model, [(collected.name, collected.snapshot)])
    house.apply_split(model, kit.BY_TABLE)
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-3"))

    assert (change.state, change.generation) == (ChangeState.DONE, 3)
    assert house.cutter.calls == 3
    with house.store.read() as repository:
        assert repository.collected_snapshots(model) == frozenset()


async def test_bytes_that_were_cut_in_an_earlier_form_are_cut_again(
    cut_in_the_middle, house, kit, model, carried_out, monkeypatch
):
    monkeypatch.setattr(splitter, "FORM", FORM + 1)
    house.apply_split(model, kit.BY_TABLE)
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-3"))

    assert (change.state, change.generation) == (ChangeState.DONE, 3)
    assert house.cutter.calls == 3
    with house.store.read() as repository:
        forms = [repository.generation(model, number).layout.form for number in (1, 3)]
    assert forms == [FORM, FORM + 1]


@pytest.mark.parametrize("reason", [Reason.SPLIT_REFUSED, Reason.SPLIT_DIFFERS])
async def test_a_cut_that_is_refused_ends_the_run_with_its_reason(
    cut_by_table, house, model, carried_out, generation, reason
):
    house.cutter.faults = [CutRefused(reason, "output 'score' differs")]
    change = await carried_out(house.publish_whole(model, 2, change_id=f"{model}-2"))

    assert (change.state, change.reason) == (ChangeState.REFUSED, reason)
    assert "output 'score' differs" in change.message
    assert house.condition(model, ConditionType.VALIDATED).reason is reason
    assert house.condition(model).reason is reason
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    assert (generation(2).state, generation(2).layout) == (GenerationState.REFUSED, None)

    again = await carried_out(house.publish_whole(model, 2, change_id=f"{model}-3"))
    assert again.state is ChangeState.DONE, "the same bytes may be published again: they were never cut"


async def test_a_cut_whose_process_was_killed_is_tried_again(house, kit, model, carried_out):
    house.apply_split(model, kit.BY_TABLE)
    house.cutter.faults = [ToolEnded("cutting was ended by SIGKILL")]
    change = await carried_out(house.publish_whole(model, 1, change_id=f"{model}-1"))

    assert change.state is ChangeState.DONE
    assert house.cutter.calls == 2


async def test_a_new_manifest_reaches_the_parts_of_what_serves(cut_by_table, house, kit, model, carried_out, parts_run):
    more = [{"region": "us-east", "qps": 900}, {"region": "eu-west", "qps": 180}]
    fast = {"parts": [{**kit.BY_TABLE["parts"][0], "hardware": [{"kind": "cpu", "qps": 400}]}], "default": "dense"}
    house.apply_split(model, fast, demand=more)
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))

    assert change.state is ChangeState.DONE, change.message
    assert house.cutter.calls == 1, "only the hardware is another"
    assert "spec.split" not in change.message
    with house.store.read() as repository:
        found = {(d.key.part, d.qps): 0 for d in repository.deployments(model)}
        for d in repository.deployments(model):
            found[d.key.part, d.qps] += d.replicas
    assert set(found) == {("sparse", 400.0), ("dense", 100.0)}
    assert found["sparse", 400.0] * 400 >= 1080
    assert found["dense", 100.0] * 100 >= 1080


async def test_a_changed_policy_is_followed_from_the_next_publish_on(
    cut_by_table, house, kit, model, carried_out, parts_run
):
    house.apply_split(model, kit.IN_THE_MIDDLE)
    change = await carried_out(house.ask(model, ChangeKind.APPLY, f"{model}-apply"))

    assert change.state is ChangeState.DONE, change.message
    assert "the changed spec.split is followed from the next publish on" in change.message
    assert parts_run() == {"sparse", "dense"}
    assert house.cutter.calls == 1


async def test_a_rollout_that_fails_its_gate_leaves_the_former_parts_in_place_and_in_the_plan(
    cut_by_table, house, kit, model, carried_out, parts_run
):
    house.apply_split(model, kit.IN_THE_MIDDLE)
    house.infrastructure.answer_with(model, 2, errors=1.0)
    change = await carried_out(house.publish_whole(model, 2, change_id=f"{model}-2"))

    assert (change.state, change.reason) == (ChangeState.ROLLED_BACK, Reason.GATE_FAILED)
    assert parts_run() == {"sparse", "dense"}
    assert house.shares(model) == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    with house.store.read() as repository:
        placed = repository.placement(model)
    assert {row.part for row in placed.replicas} == {"sparse", "dense"}
    assert {part.part for part in placed.wishes.parts} == {"sparse", "dense"}
    assert placed.cost_per_hour > 0


async def test_a_replan_plans_the_parts_that_serve(cut_in_the_middle, house, kit, model, client, until):
    less = kit.FLEET.replace("region: eu-west, hardware: cpu, units: 40", "region: eu-west, hardware: cpu, units: 0")
    house.apply_fleet(less)
    replan = f"{model}-replan"
    await client.execute_workflow(
        "scheduled_replan", ScheduledReplan(id=replan), id=f"replan/{model}", task_queue="ipnext-lifecycle"
    )
    ended = await until(lambda: found if (found := house.replan(replan)).state.final else None)

    assert ended.is_adopted, ended.message
    assert house.shares(model)["eu-west"] == {2: 1.0}
    with house.store.read() as repository:
        running = [d.key for d in repository.deployments(model) if d.replicas]
    assert {(key.part, key.region) for key in running} == {("dense", "us-east"), ("middle", "us-east")}
