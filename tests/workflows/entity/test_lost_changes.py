"""A living entity forgets no open change: it looks again at what it gave up on, and at what the API misses."""

import asyncio
import logging

import pytest
from temporalio.exceptions import ApplicationError

from activities.deployment import activities as deployment
from ipnext import temporal
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.entity import ModelEntityInput, SupersededChange
from ipnext.model.lifecycle.changes.takeover import OpenChange, OpenChanges
from tests.workflows.activity_errors import failed_activity
from workflows import model as model_workflow
from workflows import policies
from workflows.entity import superseded_marks
from workflows.entity.superseded_marks import SupersededMarks
from workflows.model import ModelWorkflow


def change(sequence, kind=ChangeKind.PUBLISH):
    return QueuedChange(id=f"{kind}-{sequence}", kind=kind, sequence=sequence, generation=sequence)


def opened(item, *, begun=True, moves=False):
    return OpenChange(change=item, begun=begun, moves=moves)


def failed():
    return failed_activity(ApplicationError("no thread", type="InternalError"))


@pytest.fixture
def entity(monkeypatch):
    """An entity without its engine; `found` is what the store has open, and `broken` the steps that fail."""

    async def perform(step, *_):
        build.asked.append(step.name)
        if step in build.broken:
            raise failed()
        return OpenChanges(changes=build.found)

    async def sleep(pause, **_):
        build.slept.append(pause)

    def build(**carried):
        entity = ModelWorkflow(ModelEntityInput(model="m", rebuilt=True, **carried))
        monkeypatch.setattr(entity, "_show", lambda: None)
        return entity

    build.found, build.broken, build.asked, build.slept = (), (), [], []
    for module in (model_workflow, superseded_marks):
        monkeypatch.setattr(module, "perform", perform)
    monkeypatch.setattr(superseded_marks.workflow, "sleep", sleep)
    monkeypatch.setattr(superseded_marks.workflow, "logger", logging.getLogger(__name__))
    return build


def carried_on(entity):
    """The input of the entity that continues as new."""
    return entity._state.build_input(looks_again=entity._marks.will_look)


def test_a_change_that_the_entity_does_not_know_is_taken_up(entity):
    found, lost, waiting = entity(recent=("publish-1", "publish-2")), change(1), change(2)
    entity.found = (opened(lost), opened(waiting, begun=False))

    asyncio.run(found._look())

    assert (found._state.begun, found._state.queue) == ((lost,), (waiting,))
    assert not found._state.looks_again


def test_what_the_entity_works_on_is_left_as_it_is(entity):
    running, passed, begun, queued, gone = (change(n) for n in range(1, 6))
    marks = (SupersededChange(change_id=gone.id, by=queued.id),)
    found = entity(begun=(running, passed, begun), queue=(queued,), superseded=marks)
    found._state.running, found._state.passed = running, (passed,)
    entity.found = tuple(
        opened(each, begun=each in found._state.begun) for each in (running, passed, begun, queued, gone)
    )

    assert asyncio.run(found._look()) is None
    assert (found._state.begun, found._state.queue, found._state.superseded) == (
        (running, passed, begun),
        (queued,),
        marks,
    )


def test_only_a_lost_change_that_moves_the_model_goes_before_the_one_that_runs(entity):
    found, lost, mover = entity(), change(1), change(2)
    found._state.running = change(3)

    entity.found = (opened(lost),)
    assert asyncio.run(found._look()) is None
    entity.found = (opened(lost), opened(mover, moves=True))
    assert asyncio.run(found._look()) == mover


@pytest.mark.parametrize(
    ("kind", "stopped", "newer"), [(ChangeKind.ROLLBACK, ["publish-1"], None), (ChangeKind.PUBLISH, [], "publish-2")]
)
def test_a_lost_change_that_waits_acts_on_the_running_one_as_if_just_submitted(
    entity, monkeypatch, kind, stopped, newer
):
    found, running, lost = entity(), change(1), change(2, kind)
    found._state.running, stops = running, []
    found._state.reachable.add(running.id)
    monkeypatch.setattr(found._runs, "stop", lambda change, _why: stops.append(change.id))
    entity.found = (opened(lost, begun=False),)

    asyncio.run(found._look())

    assert (stops, found._state.newer and found._state.newer.id) == (stopped, newer)


def test_marks_that_could_not_be_written_are_written_at_the_next_look(entity):
    marks = (SupersededChange(change_id="publish-1", by="publish-2"),)
    found = entity(superseded=marks)
    entity.broken, entity.found = (policies.MARK_SUPERSEDED,), (opened(change(1), begun=False),)

    async def marked():
        await found._marks.record()
        await found._marks._pausing
        assert (found._state.superseded, carried_on(found).superseded, found._state.looks_again) == ((), marks, True)
        await found._look()

    asyncio.run(marked())

    assert entity.slept == [policies.LOOK_AGAIN]
    assert (found._state.queue, found._state.superseded, found._state.unmarked) == ((), marks, ())


def test_a_store_that_can_not_be_read_is_read_again(entity):
    found = entity()
    entity.broken = (policies.OPEN_CHANGES,)

    async def looked():
        await found._look()
        assert carried_on(found).looks_again
        await found._marks._pausing

    asyncio.run(looked())

    assert found._state.looks_again


def test_a_look_that_is_due_survives_continue_as_new(entity):
    found = entity()
    found.look_again()

    assert entity(**carried_on(found).model_dump(include={"looks_again"}))._state.looks_again


@pytest.fixture
def unrecordable(monkeypatch):
    """Ends of changes can't be recorded, by a bug, until it is mended."""
    real, broken = deployment.end_change, [True]

    def end(repository, record):
        if broken:
            msg = "can't start new thread"
            raise MemoryError(msg)
        real(repository, record)

    monkeypatch.setattr(deployment, "end_change", end)
    return broken


@pytest.fixture
def given_up(monkeypatch):
    """The changes that entities gave up on."""
    found, real = [], SupersededMarks.give_up

    def give_up(self):
        found.append(self._state.model)
        real(self)

    monkeypatch.setattr(SupersededMarks, "give_up", give_up)
    return found


@pytest.mark.usefixtures("workers")
async def test_a_change_whose_end_could_not_be_recorded_ends_while_the_next_one_waits_for_it(
    house, model, client, submit, ended, until, unrecordable, given_up
):
    house.apply(model)
    first = house.publish(model, 1)
    await submit(first)
    await until(lambda: given_up)
    second = house.publish(model, 2)
    await submit(second)
    await until(lambda: house.change(second.id).state is ChangeState.RUNNING)
    assert not house.change(first.id).state.final

    unrecordable.clear()
    await temporal.look_again(client, model)

    assert (await ended(first)).state is ChangeState.DONE
    assert (await ended(second)).state is ChangeState.DONE
    assert house.shares(model) == {"us-east": {2: 1.0}, "eu-west": {2: 1.0}}
