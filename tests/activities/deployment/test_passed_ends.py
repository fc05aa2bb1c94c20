"""The end of a change while another one moves the model.

It leaves the other's hold, and the plan that the other follows.
"""

from datetime import UTC, datetime

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.planning.activities import PlanningActivities
from activities.planning.adoption import target_state
from activities.planning.solver import ThreadSolver
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput, StageInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.model.registry.registry import GenerationState
from ipnext.store.operations.change_end import block_reason
from ipnext.store.records import TransitionRecord

M = "m"
EAST = DeploymentKey(model=M, part="dense", region="us-east", hardware="cpu")
WAY = Transition.model_validate(
    {
        "from": {},
        "to": {
            "replicas": [
                {"model": M, "part": part, "generation": 1, "region": "us-east", "hardware": "cpu", "count": 6}
                for part in ("dense", "sparse")
            ],
            "traffic": [
                {"model": M, "from": region, "to": "us-east", "generation": 1, "fraction": 1.0}
                for region in ("us-east", "eu-west")
            ],
        },
        "waves": [{"gate": "final"}],
    }
)


@pytest.fixture
def two(house):
    """Generation 1 serves and is placed. A publish runs, and a repair that has passed it; one replica set is up."""
    house.apply(M)
    first = house.publish(M, 1)
    stage = StageInput(model=M, change_id=first.id, kind=ChangeKind.PUBLISH, generation=1)
    ActivityEnvironment().run(PlanningActivities(house.store, ThreadSolver()).place_model, stage)
    with house.store.begin(M) as unit:
        unit.update_change(first.id, state=ChangeState.DONE)
        unit.set_generation_state(M, 1, GenerationState.SERVING)
        unit.update_model(M, serving_generation=1)
    changes = {
        ChangeKind.PUBLISH: house.publish(M, 2),
        ChangeKind.REPAIR: house.ask(M, ChangeKind.REPAIR, "repair-m"),
    }
    held = AssignedSnapshot(part=None, snapshot=1, digest="d" * 64, uri="file:///d", generations=(1,), signers=None)
    with house.store.begin(M) as unit:
        for change in changes.values():
            unit.update_change(change.id, state=ChangeState.RUNNING)
        unit.put_deployment(
            Deployment(key=EAST, replicas=1, engine="torch", units=1, qps=100, memory_bytes=1, holds=(held,))
        )
    return changes


@pytest.fixture
def move(house, two):
    """Store the waves of one of the two."""

    def begin(kind):
        with house.store.begin(M) as unit:
            change_id = two[kind].id
            unit.save_transition(
                TransitionRecord(
                    id=change_id,
                    model=M,
                    change_id=change_id,
                    generation=1,
                    transition=WAY,
                    created_at=datetime.now(UTC),
                )
            )
            unit.advance_transition(change_id, state=TransitionState.RUNNING)

    return begin


@pytest.fixture
def end(house, two):
    def record(kind, state):
        generation = two[kind].generation or 1
        ended = RecordInput(
            model=M,
            change_id=two[kind].id,
            kind=kind,
            generation=generation,
            result=LifecycleResult(state=state, generation=generation, reason=Reason.TRANSITION_REFUSED),
            run_id="run",
        )
        ActivityEnvironment().run(DeploymentActivities(house.store, house.infrastructure).finish_change, ended)

    return record


def rows(house):
    with house.store.read() as unit:
        return unit.placement(M).state


def test_a_refused_publish_leaves_the_plan_that_a_repair_leads_to(house, move, end):
    move(ChangeKind.REPAIR)

    end(ChangeKind.PUBLISH, ChangeState.REFUSED)

    assert rows(house) == target_state(WAY)


def test_a_publish_that_fails_while_nothing_else_moves_sets_the_plan_to_what_runs(house, end):
    end(ChangeKind.PUBLISH, ChangeState.REFUSED)

    assert [(row.part, row.region, row.count) for row in rows(house).replicas] == [("dense", "us-east", 1)]


def test_the_end_of_a_repair_leaves_the_approval_that_a_publish_waits_for(house, move, end):
    move(ChangeKind.PUBLISH)
    with house.store.begin(M) as unit:
        unit.set_condition(M, ConditionType.PROGRESSING, "False", Reason.AWAITING_APPROVAL, "wave 1 waits")

    end(ChangeKind.REPAIR, ChangeState.REFUSED)

    with house.store.read() as unit:
        assert block_reason(unit, M) is Reason.AWAITING_APPROVAL


def test_the_end_of_the_change_that_moved_the_model_ends_its_hold(house, move, end):
    move(ChangeKind.PUBLISH)
    with house.store.begin(M) as unit:
        unit.set_condition(M, ConditionType.PROGRESSING, "False", Reason.AWAITING_APPROVAL, "wave 1 waits")

    end(ChangeKind.PUBLISH, ChangeState.ROLLED_BACK)

    with house.store.read() as unit:
        assert block_reason(unit, M) is None
