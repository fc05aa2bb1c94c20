"""A manifest is in force only while its change is carried out or has succeeded."""

from datetime import UTC, datetime

import pytest

from activities.planning.problem import fleet_problem
from activities.planning.replan import fleet_snapshot
from activities.state.desired import read_facts
from activities.state.routes.served_generations import served_generation
from ipnext.errors import Conflict
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import Limits, Objective, Plan, SolverInfo
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import PlanRecord
from planner.core.diff import diff
from tests.activities.carried_out import CarriedOut
from tests.fleets import two_regions

HARDWARE = {"kind": "cpu", "units": 1, "qps": 100}
DEMAND = [{"region": "us-east", "qps": 150}]
SLOWLY = {"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 180}


def parts(*names, rows=8, units=1):
    part = {
        "engine": "torch",
        "hardware": [{**HARDWARE, "units": units}],
        "settings": {"batching": {"maxRows": rows}},
    }
    return [{"name": name, **part} for name in names]


FIRST = {"demand": DEMAND, "parts": parts("sparse", "dense")}


def graph_of(kit, *, output="score", extra=False):
    nodes = list(kit.GRAPH["nodes"])
    outputs = {output: "dense.score"}
    if extra:
        nodes.append({"name": "extra", "part": "extra", "inputs": {"x": "sparse.embeddings"}})
        outputs["more"] = "extra.score"
    return {"nodes": nodes, "outputs": outputs}


@pytest.fixture
def carried(house):
    """Generation 1 serves by revision 1."""
    found = CarriedOut(house)
    house.apply("ranker", **FIRST)
    found.carry_out(house.publish("ranker", 1), 1)
    return found


def another_apply(carried, kit):
    """More demand, other settings and another name of the output."""
    changed = {"demand": [{"region": "us-east", "qps": 600}], "parts": parts("sparse", "dense", rows=512)}
    carried.house.apply("ranker", **changed, graph=graph_of(kit, output="click"), rollout={**SLOWLY, "keepWarm": 3})
    return carried.house.ask("ranker", ChangeKind.APPLY, "apply-2"), 1


def publish_with_another_part(carried, kit):
    carried.house.apply(
        "ranker", demand=DEMAND, parts=parts("sparse", "dense", "extra", rows=512), graph=graph_of(kit, extra=True)
    )
    extra = carried.house.source(kit.DENSE, kit.weights(7))
    return carried.house.publish("ranker", 2, extra=extra), 2


def publish_with_less_demand(carried, kit):
    carried.house.apply("ranker", demand=[{"region": "us-east", "qps": 20}], parts=parts("sparse", "dense", rows=4))
    return carried.house.publish("ranker", 2), 2


CHANGES = [another_apply, publish_with_another_part, publish_with_less_demand]


def refused_when_placed(carried, change, generation):
    assert carried.placed(change, generation).feasible
    carried.end(change, generation, ChangeState.REFUSED, Reason.ABORTED)


def superseded_when_placed(carried, change, generation):
    assert carried.placed(change, generation).feasible
    carried.end(change, generation, ChangeState.SUPERSEDED, Reason.SUPERSEDED)


def refused_when_planned(carried, change, generation):
    assert carried.placed(change, generation).feasible
    assert carried.planned(change, generation).waves
    carried.end(change, generation, ChangeState.REFUSED, Reason.ABORTED)


def reverted_at_once(carried, change, generation):
    assert carried.placed(change, generation).feasible
    assert carried.planned(change, generation).waves
    assert not carried.walk(change, generation, [0])
    assert not carried.walk(change, generation, [0], back=True, reason=Reason.GATE_FAILED, message="bad")
    carried.end(change, generation, ChangeState.ROLLED_BACK, Reason.GATE_FAILED)


def reverted_by_waves(carried, change, generation):
    assert carried.placed(change, generation).feasible
    waves = carried.planned(change, generation).waves
    most = max(waves - 1, 1)
    assert not carried.walk(change, generation, range(most))
    back = {"back": True, "by_waves": True, "reason": Reason.GATE_FAILED, "message": "bad"}
    assert not carried.walk(change, generation, reversed(range(most)), **back)
    carried.end(change, generation, ChangeState.ROLLED_BACK, Reason.GATE_FAILED)


def reverted_before_traffic(carried, change, generation):
    assert carried.placed(change, generation).feasible
    assert carried.planned(change, generation).waves
    wave = {"back": True, "reason": Reason.LOAD_FAILED, "message": "no memory"}
    assert not carried.walk(change, generation, [0], **wave)
    carried.end(change, generation, ChangeState.ROLLED_BACK, Reason.LOAD_FAILED)


ENDS = [
    refused_when_placed,
    superseded_when_placed,
    refused_when_planned,
    reverted_at_once,
    reverted_by_waves,
    reverted_before_traffic,
]


def planned_state(house):
    """What a plan of the fleet, and a move of the serving generation, would go by."""
    with house.store.read() as unit:
        record, placed = unit.model("ranker"), unit.placement("ranker")
        (wishes,) = fleet_snapshot(unit, Objective(), Limits()).problem.models
        facts = read_facts(unit, "ranker", record.serving_generation)
    return {
        "manifest": record.in_force.spec,
        "problem": wishes,
        "wishes": placed.wishes,
        "replicas": placed.replicas,
        "traffic": placed.traffic,
        "graph": served_generation(facts, record.serving_generation).graph,
    }


def running_state(house):
    """What replica sets and gateways are wanted to hold."""
    with house.store.read() as unit:
        serving = unit.model("ranker").serving_generation
        sets = {
            str(d.key): (d.replicas, d.engine, d.units, d.qps, d.memory_bytes, d.settings, serving in d.generations)
            for d in unit.deployments("ranker")
        }
        tables = unit.routes("ranker")
        graphs = {t.region: [s.graph for s in t.served if s.generation == serving] for t in tables}
    return {"sets": sets, "shares": house.shares("ranker"), "graphs": graphs}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("begin", CHANGES)
def test_after_every_end_but_done_the_model_is_planned_as_before(house, kit, carried, begin, end):
    before, running = planned_state(house), running_state(house)
    change, generation = begin(carried, kit)
    end(carried, change, generation)
    assert planned_state(house) == before
    assert running_state(house) == running
    assert carried.replan().total == 0


def test_a_change_that_succeeded_leaves_its_manifest_in_force(house, kit, carried):
    change, generation = another_apply(carried, kit)
    carried.carry_out(change, generation)
    found = planned_state(house)
    assert found["manifest"].rollout.keep_warm == 3
    assert (found["problem"], [item.qps for item in found["wishes"].demand]) == (found["wishes"], [600])
    assert list(found["graph"].outputs) == ["click"]
    with house.store.read() as unit:
        assert unit.model("ranker").former is None


def test_a_manifest_that_nothing_can_be_placed_by_moves_nothing(house, kit, carried):
    before, shares = planned_state(house), house.shares("ranker")
    house.apply("ranker", demand=DEMAND, parts=parts("sparse", "dense", units=1000))
    change = house.ask("ranker", ChangeKind.APPLY, "apply-2")
    planned = carried.placed(change, 1)
    assert (planned.feasible, planned.reason) == (False, Reason.NO_CAPACITY)
    assert planned_state(house) == before, "before its end"
    carried.end(change, 1, ChangeState.REFUSED, Reason.NO_CAPACITY)
    assert planned_state(house) == before
    assert carried.replan().total == 0
    assert house.shares("ranker") == shares


def test_an_end_that_cannot_be_recorded_restores_what_was_in_force(house, kit, carried, monkeypatch):
    before = planned_state(house)
    change, generation = another_apply(carried, kit)
    assert carried.placed(change, generation).feasible

    def refuse(*_, **__):
        msg = "it can't be written"
        raise Conflict(msg)

    monkeypatch.setattr("activities.deployment.activities.end_change", refuse)
    monkeypatch.setattr("activities.deployment.activities.LASTING_ATTEMPTS", 1)
    carried.end(change, generation, ChangeState.REFUSED, Reason.ABORTED)
    assert planned_state(house)["manifest"] == before["manifest"]


def test_a_generation_leaves_a_drained_region_after_a_rollout_that_added_a_part_failed(house, kit, carried):
    change, generation = publish_with_another_part(carried, kit)
    reverted_at_once(carried, change, generation)
    house.apply_fleet(two_regions(0, 40))
    assert carried.replan().total == 1
    with house.store.read() as unit:
        plan_id = unit.placement("ranker").plan_id
    move = house.ask("ranker", ChangeKind.MOVE, f"{plan_id}.ranker", plan_id=plan_id)
    carried.move(move, 1)
    assert house.shares("ranker") == {"us-east": {1: 1.0}, "eu-west": {1: 1.0}}
    with house.store.read() as unit:
        assert {found.key.region for found in unit.deployments("ranker")} == {"eu-west"}


def test_a_rollback_past_a_part_that_was_added_serves_by_the_graph_from_before(house, kit, carried):
    before = running_state(house)
    change, generation = publish_with_another_part(carried, kit)
    carried.carry_out(change, generation)
    assert house.shares("ranker") == {"us-east": {2: 1.0}}
    carried.carry_out(house.ask("ranker", ChangeKind.ROLLBACK, "back", generation=1), 1)
    found = running_state(house)
    assert (found["shares"], found["graphs"]) == (before["shares"], before["graphs"])
    assert found["sets"].keys() == before["sets"].keys()
    house.apply_fleet(two_regions(0, 40))
    assert carried.replan().total == 1
    with house.store.read() as unit:
        plan_id = unit.placement("ranker").plan_id
    carried.move(house.ask("ranker", ChangeKind.MOVE, f"{plan_id}.ranker", plan_id=plan_id), 1)
    assert {region for region, shares in house.shares("ranker").items() if shares} == {"us-east", "eu-west"}
    with house.store.read() as unit:
        assert {found.key.region for found in unit.deployments("ranker")} == {"eu-west"}


def drop(house):
    """Adopt a plan that has nothing of the model, and record the move to it."""
    with house.store.begin() as unit:
        placed, in_force = unit.placement("ranker"), unit.lock_plan_in_force()
        problem = fleet_problem(unit.fleet().spec, [placed.wishes])
        nothing = Plan(
            status="feasible",
            objective=0.0,
            bound=0.0,
            gap=0.0,
            bound_covers="nothing",
            cost_per_hour=0.0,
            replicas=(),
            traffic=(),
            solver=SolverInfo(method="none", seconds=0.0),
        )
        record = PlanRecord(
            id="plan-1",
            trigger="manual",
            input_digest="",
            problem=problem,
            plan=nothing,
            diff=diff(placed.state, nothing),
            created_at=datetime.now(UTC),
        )
        unit.adopt_plan(PreparedPlan.of(record), expected=in_force)
    return house.ask("ranker", ChangeKind.MOVE, "plan-1.ranker", plan_id="plan-1")


def test_a_move_that_drops_users_is_refused_while_nothing_took_their_replicas(house, carried):
    refused = carried.planned(drop(house), 1).refused
    assert refused.startswith("users of us-east would have no answer, though us-east still has the supply")


def take_supply(house):
    house.apply_fleet(two_regions(1, 40))


def drain(house):
    with house.store.begin() as unit:
        asked = unit.add_drain("us-east", reason="maintenance")
        unit.update_drain(asked.id, state=DrainState.DRAINING)


@pytest.mark.parametrize("took", [take_supply, drain])
def test_a_move_may_drop_users_whose_replicas_were_taken(house, carried, took):
    move = drop(house)
    took(house)
    assert carried.planned(move, 1).refused is None
