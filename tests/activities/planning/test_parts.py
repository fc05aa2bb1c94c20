"""Placement, waves and plans go by the parts of the generation that they are for, whatever the newest manifest has."""

from collections import Counter
from dataclasses import replace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.metadata.activities import MetadataActivities
from activities.planning.problem import units_in_use
from activities.planning.replan import fleet_snapshot
from activities.state.desired import read_facts
from activities.state.replica_sets import wanted_deployments
from activities.state.routes.served_generations import served_generation
from activities.state.wave_state import ModelWaveState, peak
from activities.transition.takeover import TakeoverActivities
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.takeover import TakeOver
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import Limits, Objective
from tests.activities.carried_out import CarriedOut
from tests.fleets import two_regions

DEMAND = [{"region": "us-east", "qps": 350}, {"region": "eu-west", "qps": 180}]
SKIP = {"skip": {"interface": "its outputs change with its parts"}}
BASE = ("sparse", "dense")
MORE = (*BASE, "extra")


def apply(house, kit, names, *, units=1, demand=DEMAND):
    """A model of these parts; `extra` is answered besides."""
    option = {"kind": "cpu", "units": units, "qps": 100}
    parts = [{"name": name, "engine": "torch", "hardware": [option], "settings": {"threads": 2}} for name in names]
    graph = {"nodes": list(kit.GRAPH["nodes"]), "outputs": dict(kit.GRAPH["outputs"])}
    if "extra" in names:
        graph["nodes"].append({"name": "extra", "part": "extra", "inputs": {"x": "sparse.embeddings"}})
        graph["outputs"]["more"] = "extra.score"
    house.apply("ranker", parts=parts, graph=graph, demand=demand, validation=SKIP)


def publish(house, kit, seed, names):
    more = {"extra": house.source(kit.DENSE, kit.weights(seed + 2000))} if "extra" in names else {}
    return house.publish("ranker", seed, **more)


def serve(house, kit, names):
    """Generation 1 of these parts serves."""
    carried = CarriedOut(house)
    apply(house, kit, names)
    carried.carry_out(publish(house, kit, 1, names), 1)
    return carried


@pytest.fixture
def removed(house, kit):
    """Generation 1 has the extra part; generation 2, by a manifest without it, serves."""
    carried = serve(house, kit, MORE)
    apply(house, kit, BASE)
    carried.carry_out(publish(house, kit, 2, BASE), 2)
    assert parts_running(house) == set(BASE)
    return carried


def parts_running(house):
    with house.store.read() as unit:
        return {found.key.part for found in unit.deployments("ranker") if found.replicas}


def parts_placed(house):
    with house.store.read() as unit:
        placed = unit.placement("ranker")
    return {row.part for row in placed.replicas if row.count}, {part.part for part in placed.wishes.parts}


def parts_planned(house):
    with house.store.read() as unit:
        (wishes,) = fleet_snapshot(unit, Objective(), Limits()).problem.models
    return {part.part for part in wishes.parts}


def outputs(house, generation):
    with house.store.read() as unit:
        served = [found for table in unit.routes("ranker") for found in table.served]
    return {name for found in served if found.generation == generation for name in found.graph.outputs}


def lose(house, region):
    with house.store.begin() as unit:
        unit.update_drain(unit.add_drain(region, disaster=True).id, state=DrainState.DRAINED)


def rollback(house):
    return house.ask("ranker", ChangeKind.ROLLBACK, "back", generation=1)


def test_a_rollback_brings_back_the_part_that_the_manifest_lost(house, removed):
    change = rollback(house)
    metadata = MetadataActivities(house.store, house.artifacts)
    assert ActivityEnvironment().run(metadata.resolve_snapshots, removed.stage(change, 1)).places
    removed.carry_out(change, 1)
    assert set(house.shares("ranker")["us-east"]) == {1}
    assert parts_running(house) == set(MORE)
    assert outputs(house, 1) == {"score", "more"}
    with house.store.read() as unit:
        extra = [found for found in unit.deployments("ranker") if found.key.part == "extra"]
    assert {(found.units, found.qps, found.settings["threads"]) for found in extra} == {(1, 100, 2)}


def test_a_plan_of_the_fleet_keeps_the_part_that_the_manifest_lost(house, kit, removed):
    removed.carry_out(rollback(house), 1)
    assert removed.replan(1).total == 0
    assert parts_planned(house) == set(MORE)
    house.apply_fleet(two_regions(0, 40))
    assert removed.replan(2).total == 1
    with house.store.read() as unit:
        plan_id = unit.placement("ranker").plan_id
    removed.move(house.ask("ranker", ChangeKind.MOVE, f"{plan_id}.ranker", plan_id=plan_id), 1)
    with house.store.read() as unit:
        assert {(d.key.region, d.key.part) for d in unit.deployments("ranker")} == {("eu-west", p) for p in MORE}


def test_another_manifest_counts_for_a_generation_that_keeps_a_lost_part(house, kit, removed):
    removed.carry_out(rollback(house), 1)
    apply(house, kit, BASE, demand=[{"region": "us-east", "qps": 450}])
    removed.carry_out(house.ask("ranker", ChangeKind.APPLY, "more"), 1)
    with house.store.read() as unit:
        assert {(d.key.part, d.replicas) for d in unit.deployments("ranker")} == {(part, 5) for part in MORE}
    assert removed.replan().total == 0


def test_an_apply_that_removes_a_part_leaves_it_to_the_generation_that_serves(house, kit):
    carried = serve(house, kit, MORE)
    apply(house, kit, BASE)
    change = house.ask("ranker", ChangeKind.APPLY, "less")
    metadata = MetadataActivities(house.store, house.artifacts)
    note = ActivityEnvironment().run(metadata.resolve_snapshots, carried.stage(change, 1)).note
    assert note == "generation 1 keeps its part extra: it leaves with the next publish"
    carried.carry_out(change, 1)
    assert (parts_running(house), parts_placed(house)) == (set(MORE), (set(MORE), set(MORE)))
    assert outputs(house, 1) == {"score"}
    assert carried.replan().total == 0
    carried.carry_out(publish(house, kit, 2, BASE), 2)
    assert (parts_running(house), parts_placed(house)) == (set(BASE), (set(BASE), set(BASE)))


def test_a_generation_is_answered_by_the_one_part_of_a_manifest_without_a_graph(house, kit):
    carried = serve(house, kit, BASE)
    whole = {"name": "sparse", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
    house.apply("ranker", parts=[whole], graph=None, demand=DEMAND, validation=SKIP)
    carried.carry_out(house.ask("ranker", ChangeKind.APPLY, "less"), 1)
    assert outputs(house, 1) == {"embeddings"}
    with house.store.read() as unit:
        facts = read_facts(unit, "ranker", 1)
    assert set(served_generation(facts, 1).graph.outputs) == {"embeddings"}


def test_a_part_that_never_served_and_that_the_manifest_lost_is_named(house, kit):
    carried = serve(house, kit, BASE)
    apply(house, kit, MORE)
    change = publish(house, kit, 2, MORE)
    apply(house, kit, BASE)
    assert carried.placed(change, 2).feasible
    refused = carried.planned(change, 2).refused
    assert refused is not None
    assert refused.startswith("generation 2 has part extra, which plan ")
    assert refused.endswith("Apply a manifest with extra, or publish snapshots of the manifest's parts")


@pytest.fixture
def reverted(house, kit):
    """The revert of a publish that adds a part, after the loss of a region, keeps the part's replicas."""
    carried = serve(house, kit, BASE)
    apply(house, kit, MORE)
    change = publish(house, kit, 2, MORE)
    assert carried.placed(change, 2).feasible
    assert carried.planned(change, 2).waves
    assert not carried.walk(change, 2, [0])
    lose(house, "eu-west")
    assert not carried.walk(change, 2, [0], back=True, reason=Reason.ROLLED_BACK, message="stopped")
    carried.end(change, 2, ChangeState.ROLLED_BACK, Reason.ROLLED_BACK)
    assert "extra" in parts_running(house)
    return carried


def test_a_plan_that_follows_what_runs_has_no_part_that_the_generation_lacks(house, reverted):
    assert parts_placed(house) == (set(BASE), set(BASE))
    assert parts_planned(house) == set(BASE)


def test_a_rollback_waits_for_no_part_of_another_generation(house, reverted):
    change = rollback(house)
    assert reverted.planned(change, 1).refused is None
    with house.store.read() as unit:
        target = unit.transition(change.id).transition.to
    assert {row.part for row in target.replicas} == set(BASE)
    reverted.move(change, 1)
    with house.store.read() as unit:
        assert {d.key.part for d in unit.deployments("ranker") if d.key.region == "us-east"} == set(BASE)


def test_a_part_that_no_manifest_has_any_more_can_leave_by_way_of_a_region_that_it_was_never_in(house, kit, reverted):
    apply(house, kit, BASE)
    with house.store.read() as unit:
        facts = read_facts(unit, "ranker", 1, named=(2,))
    runs = next(found for found in facts.deployments.values() if found.key.part == "extra" and found.replicas)
    others = {key: found for key, found in facts.deployments.items() if key.region == runs.key.region}
    elsewhere = next(name for name in ("us-east", "eu-west") if name != runs.key.region)
    state = ModelWaveState({(("extra", elsewhere, "cpu"), 2): 3})
    (wanted,) = wanted_deployments(replace(facts, deployments=others), state)
    assert wanted.key == runs.key.model_copy(update={"region": elsewhere})
    assert (wanted.replicas, wanted.units, wanted.qps) == (3, runs.units, runs.qps)
    assert (wanted.settings, wanted.generations) == (runs.settings, (2,))


@pytest.mark.parametrize(("before", "after"), [(MORE, BASE), (BASE, MORE)], ids=["removes", "adds"])
def test_while_a_publish_waits_users_move_away_from_a_loss_with_the_parts_that_serve(house, kit, before, after):
    carried = serve(house, kit, before)
    apply(house, kit, after)
    waiting = publish(house, kit, 2, after)
    assert carried.placed(waiting, 2).feasible
    lose(house, "eu-west")
    assert carried.replan().total == 1
    with house.store.read() as unit:
        plan_id = unit.placement("ranker").plan_id
    carried.move(house.ask("ranker", ChangeKind.MOVE, f"{plan_id}.ranker", plan_id=plan_id), 1)
    with house.store.read() as unit:
        left = {d.key.part for d in unit.deployments("ranker") if d.key.region == "us-east" and d.replicas}
    assert left == set(before)
    assert {generation for shares in house.shares("ranker").values() for generation in shares} == {1}
    carried.move(waiting, 2)
    with house.store.read() as unit:
        left = {d.key.part for d in unit.deployments("ranker") if d.key.region == "us-east" and d.replicas}
    assert left == set(after)
    assert parts_placed(house) == (set(after), set(after)), "no supply is kept for the other ones"
    assert parts_planned(house) == set(after)


@pytest.fixture
def removing(house, kit):
    """A publish whose last wave has ended all replicas of the part that it removes; the wave's end is not stored."""
    carried = serve(house, kit, MORE)
    apply(house, kit, BASE)
    change = publish(house, kit, 2, BASE)
    assert carried.placed(change, 2).feasible
    last = carried.planned(change, 2).waves - 1
    assert not carried.walk(change, 2, range(last))
    wave = WaveInput(transition_id=change.id, model="ranker", generation=2, index=last, deadline_seconds=20)
    assert [carried.step(name, wave) for name in ("ensure_capacity", "shift_traffic", "check_gate")] == [""] * 3
    with house.store.read() as unit:
        ended = [found.key for found in unit.deployments("ranker") if found.key.part == "extra"]
    for key in ended:
        house.infrastructure.delete(key)
        with house.store.begin() as unit:
            unit.delete_deployment(key)
    assert parts_running(house) == set(BASE)
    return change


def test_a_revert_that_brings_back_the_last_replicas_of_a_removed_part_can_be_taken_over(house, removing):
    activities = TakeoverActivities(house.store, lambda _: False)
    queued = QueuedChange(id=removing.id, kind=removing.kind, sequence=removing.sequence, generation=2)
    asked = TakeOver(model="ranker", change=queued, reason=Reason.INTERNAL_ERROR, message="its run is gone")
    taken = ActivityEnvironment().run(activities.take_over, asked)
    assert taken.transition is not None
    assert taken.transition.revert is not None


def test_other_models_leave_the_supply_of_a_removed_part_until_no_revert_needs_it(house, removing):
    with house.store.read() as unit:
        used, most = units_in_use(unit, but="other"), peak(unit.transition(removing.id).transition, "ranker")
    assert {part for part, _, _ in most} == set(MORE)
    expected = Counter[tuple[str, str]]()
    for (_, region, hardware), count in most.items():
        expected[region, hardware] += count
    assert used == expected
