"""Events of several processes that meet.

Two APIs, a store that is away, a worker that stood still, clocks that differ.
"""

import contextlib
from datetime import timedelta

import pytest

from ipnext import names
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.temporal import TemporalLifecycle
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAction, ControlAsked
from ipnext.model.planning.transition import TransitionState
from ipnext.store.repository import Repository
from ipnext.store.unit_of_work import UnitOfWork, utc_now
from ipnext.temporal import control

pytestmark = pytest.mark.usefixtures("workers")

OPEN = {TransitionState.PLANNED, TransitionState.RUNNING}
QUICK = {"canary": 1.0, "maxStep": 1.0, "deadlineSeconds": 180}


@pytest.fixture
def api(house, temporal_address, monkeypatch):
    """What an API does in the background: another call is another replica of it."""
    monkeypatch.setenv("TEMPORAL_ADDRESS", temporal_address)
    return lambda: Outbox(house.store, TemporalLifecycle(ui_url="http://127.0.0.1"), interval_seconds=0.2).running()


def serving(house, model):
    with house.store.read() as repository:
        return repository.model(model).serving_generation


async def test_two_apis_that_submit_the_same_changes_have_each_carried_out_once(house, model, client, api, ended):
    async with api(), api():
        house.apply(model, rollout=QUICK)
        asked = [house.publish(model, seed) for seed in (1, 2, 3)]
        back = house.ask(model, ChangeKind.ROLLBACK, f"{model}-back", generation=1)
        asked += [back, house.publish(model, 4)]
        found = [await ended(change) for change in asked]

    states = [change.state for change in found]
    assert set(states[:3]) <= {ChangeState.DONE, ChangeState.SUPERSEDED, ChangeState.ROLLED_BACK, ChangeState.REFUSED}
    assert states[-1] is ChangeState.DONE
    assert serving(house, model) == asked[-1].generation
    runs = [run async for run in client.list_workflows(f"IPnextModel = '{model}'")]
    begun = [run.id for run in runs if run.workflow_type == names.LIFECYCLE_WORKFLOW]
    assert len(begun) == len(set(begun)), "a change has one run"
    with house.store.read() as repository:
        assert len(repository.changes(model)) == len(asked)
        assert {found.state for found in repository.transitions(model)}.isdisjoint(OPEN)


async def test_a_store_that_is_away_while_a_change_ends_holds_up_its_end_and_keeps_a_pause(
    house, model, client, carried_out, submit, ended, until, monkeypatch
):
    house.apply(model, rollout=QUICK)
    await carried_out(house.publish(model, 1))
    write, away = Repository.update_change, []

    def lost(self, change_id, **more):
        if more.get("state") is ChangeState.DONE and not away_no_more:
            away.append(change_id)
            raise Unavailable("the store is away")
        return write(self, change_id, **more)

    away_no_more = []
    monkeypatch.setattr(Repository, "update_change", lost)
    second = house.publish(model, 2)
    await submit(second)
    await until(lambda: len(away) > 1)
    answer = await control(client, model, ControlAction.PAUSE, ControlAsked(by="ann", reason="odd"))
    assert answer.message
    third = house.publish(model, 3)
    await submit(third)
    away_no_more.append(True)

    assert (await ended(second)).state is ChangeState.DONE
    assert not house.change(third.id).state.final
    await control(client, model, ControlAction.RESUME, ControlAsked(by="ann"))
    assert (await ended(third)).state is ChangeState.DONE


@pytest.mark.usefixtures("reconciler")
async def test_what_a_worker_that_stood_still_does_too_late_is_undone(house, model, carried_out, until):
    """Between the check of its lease and the call a worker may stand still for as long as it likes."""
    house.apply(model, rollout=QUICK)
    await carried_out(house.publish(model, 1))
    with house.store.read() as repository:
        late = repository.deployments(model)
        table = repository.route(model, "eu-west")
    await carried_out(house.publish(model, 2))
    with house.store.read() as repository:
        stored = {deployment.key: deployment for deployment in repository.deployments(model)}
    assert {found.key: found for found in late} != stored

    for deployment in late:
        house.infrastructure.apply(deployment)
    with pytest.raises(Exception, match="revision"):
        house.infrastructure.route(table)

    await until(lambda: all(house.infrastructure.deployment(key) == wanted for key, wanted in stored.items()))
    assert serving(house, model) == 2


@pytest.mark.parametrize("minutes", [5, -5], ids=["ahead", "behind"])
async def test_an_api_whose_clock_differs_by_minutes_delays_and_loses_nothing(
    house, model, carried_out, submit, ended, until, monkeypatch, minutes
):
    @contextlib.contextmanager
    def of_the_api():
        with monkeypatch.context() as patch:
            patch.setitem(UnitOfWork.__init__.__kwdefaults__, "clock", lambda: utc_now() + timedelta(minutes=minutes))
            yield

    with of_the_api():
        house.apply(model, rollout=QUICK)
        first = house.publish(model, 1)
    assert abs(first.created_at - utc_now()) > timedelta(minutes=4), "it has the other clock"
    assert (await carried_out(first)).state is ChangeState.DONE
    with of_the_api():
        second = house.publish(model, 2)
    third = house.publish(model, 3)
    for change in (second, third):
        await submit(change)
    assert (await ended(third)).state is ChangeState.DONE
    assert (await ended(second)).state in {ChangeState.DONE, ChangeState.SUPERSEDED}
    assert serving(house, model) == third.generation
