"""A move that a rollback stopped.

The fleet is planned again at the end of the rollback, whatever was recorded meanwhile.
"""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.status import Reason
from ipnext.names import shortage_replan_id
from tests.activities.planning.test_parts import BASE, serve

M = "ranker"
STOPPED = LifecycleResult(state=ChangeState.SUPERSEDED, reason=Reason.SUPERSEDED, message="stopped")
DONE = LifecycleResult(state=ChangeState.DONE)
MANY = 12


@pytest.fixture
def served(house, kit):
    """Generation 1 serves by a plan."""
    serve(house, kit, BASE)


@pytest.fixture
def end(house):
    def record(change, result):
        ended = RecordInput(
            model=M,
            change_id=change.id,
            kind=change.kind,
            generation=1,
            result=result.model_copy(update={"generation": 1}),
            run_id="run",
        )
        ActivityEnvironment().run(DeploymentActivities(house.store, house.infrastructure).finish_change, ended)

    return record


@pytest.fixture
def ask(house, served):
    def record(kind, change_id):
        with house.store.read() as unit:
            plan_id = unit.plan_in_force_id() if kind is ChangeKind.MOVE else None
        generation = 1 if kind is ChangeKind.ROLLBACK else None
        return house.ask(M, kind, change_id, generation=generation, plan_id=plan_id)

    return record


def replans(house):
    with house.store.read() as unit:
        return [replan.id for replan in unit.replans()]


def test_the_newest_move_is_found_behind_any_number_of_newer_changes(house, ask, end):
    move, rollback = ask(ChangeKind.MOVE, "move"), ask(ChangeKind.ROLLBACK, "back")
    for number in range(MANY):
        ask(ChangeKind.APPLY, f"apply-{number}")
    end(move, STOPPED.model_copy(update={"stopped_by": rollback.id}))
    assert replans(house) == [], "the rollback has yet to move the model"

    end(rollback, DONE)

    assert replans(house) == [shortage_replan_id(M, move.sequence)]


@pytest.mark.parametrize("state", [ChangeState.SUPERSEDED, ChangeState.ROLLED_BACK, ChangeState.REFUSED])
def test_what_stopped_a_move_counts_and_not_its_message(house, ask, end, state):
    move, first, second = ask(ChangeKind.MOVE, "move"), ask(ChangeKind.ROLLBACK, "b1"), ask(ChangeKind.ROLLBACK, "b2")
    end(move, STOPPED.model_copy(update={"state": state, "stopped_by": first.id, "message": "any"}))

    end(second, DONE)

    assert replans(house) == [shortage_replan_id(M, move.sequence)], "the first one was superseded by the second"


@pytest.mark.parametrize("by", [None, "unknown", "retire"])
def test_a_move_that_no_rollback_stopped_is_not_planned_again(house, ask, end, by):
    move, rollback = ask(ChangeKind.MOVE, "move"), ask(ChangeKind.ROLLBACK, "back")
    ask(ChangeKind.RETIRE, "retire")
    message = "stopped: rollback back was asked"
    end(move, STOPPED.model_copy(update={"stopped_by": by, "message": message}))

    end(rollback, DONE)

    assert replans(house) == []


def test_a_newer_move_counts_instead(house, ask, end):
    move, rollback = ask(ChangeKind.MOVE, "move"), ask(ChangeKind.ROLLBACK, "back")
    ask(ChangeKind.MOVE, "newer")
    end(move, STOPPED.model_copy(update={"stopped_by": rollback.id}))

    end(rollback, DONE)

    assert replans(house) == []
