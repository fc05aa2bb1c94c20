"""The end of a change that can't be recorded: it ends in words, instead of being tried for ever."""

from dataclasses import replace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment import activities as deployment
from activities.deployment.activities import LASTING_ATTEMPTS, DeploymentActivities
from ipnext.errors import Conflict, IPnextError
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.status import Reason

MODEL = "ranker"


@pytest.fixture
def finish(house, monkeypatch):
    """Finish a model's publish at some attempt, while another writer is always first."""

    def conflicts(*_given, **_more):
        msg = "another writer was first"
        raise Conflict(msg)

    monkeypatch.setattr(deployment, "end_change", conflicts)
    house.apply(MODEL)
    change = house.publish(MODEL, 1)

    def run(attempt, state=ChangeState.DONE):
        result = LifecycleResult(state=state, generation=1, reason=Reason.SUCCEEDED)
        record = RecordInput(
            model=MODEL, change_id=change.id, kind=ChangeKind.PUBLISH, generation=1, result=result, run_id="run"
        )
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, attempt=attempt)
        environment.run(DeploymentActivities(house.store, house.infrastructure).finish_change, record)
        return house.change(change.id)

    return run


def test_a_conflict_is_tried_again(finish):
    with pytest.raises(Conflict):
        finish(LASTING_ATTEMPTS - 1)


@pytest.mark.parametrize(
    ("meant", "ended"), [(ChangeState.DONE, ChangeState.ROLLED_BACK), (ChangeState.SUPERSEDED, ChangeState.SUPERSEDED)]
)
def test_a_conflict_that_lasts_ends_the_change_with_it_as_message(house, finish, meant, ended):
    change = finish(LASTING_ATTEMPTS, meant)
    assert change.state is ended
    assert change.message == f"it ended as {meant}, which can't be recorded: another writer was first"
    with house.store.read() as unit:
        assert unit.events(MODEL)[0].kind == "NotRecorded"
    assert finish(LASTING_ATTEMPTS) == change, "once"


def test_a_change_that_can_not_even_be_ended_fails_its_run(house, finish, monkeypatch):
    with house.store.begin(MODEL) as unit:
        refusing = type(unit)

    def conflicts(*_given, **_more):
        msg = "nor this one"
        raise Conflict(msg)

    monkeypatch.setattr(refusing, "update_change", conflicts)
    with pytest.raises(IPnextError, match="another writer was first; nor can its failure: nor this one") as caught:
        finish(LASTING_ATTEMPTS)
    assert not caught.value.retryable
    assert not isinstance(caught.value, Conflict), "it would be tried again"
