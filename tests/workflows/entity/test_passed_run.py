"""Controls of a model whose running change passes another one, which waits.

They reach both, also of an entity that continued as new.
"""

import asyncio
from types import SimpleNamespace

import pytest
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError

from ipnext import names
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.changes.entity import ModelEntityInput, ToldHold
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
from ipnext.model.lifecycle.changes.takeover import ChangeSeen, TakenOver
from ipnext.model.lifecycle.status import Reason
from workflows import model, policies
from workflows.entity.state import EntityState
from workflows.errors import describe_preemption, make_stopped, name_preempting
from workflows.model import ModelWorkflow
from workflows.stages import change_ends

ASKED = ControlAsked(by="anna")


class Run:
    """A run as its entity sees it: what it was told."""

    def __init__(self):
        self.signals, self.cancelled = [], []

    async def signal(self, name, argument=None):
        self.signals.append(name if argument is None else (name, argument.held))

    def cancel(self, why):
        self.cancelled.append(why)


def change(kind, sequence):
    return QueuedChange(id=f"{kind}-{sequence}", kind=kind, sequence=sequence, generation=1, plan_id="p")


@pytest.fixture
def entity(monkeypatch):
    """An entity whose repair passes a run of some kind, with the two runs."""

    def build(passed=ChangeKind.PUBLISH):
        found = acting(monkeypatch)
        state = found._state
        state.passed, state.running = (change(passed, 1),), change(ChangeKind.REPAIR, 2)
        runs = {each.id: Run() for each in (*state.passed, state.running)}
        found._runs._children.update(runs)
        state.reachable.update(runs)
        return found, runs[state.passed[0].id], runs[state.running.id]

    return build


def acting(monkeypatch, **carried):
    """An entity that acts outside of Temporal."""
    monkeypatch.setattr(model.workflow, "wait_condition", noted)
    monkeypatch.setattr(ModelWorkflow, "_long", False)
    monkeypatch.setattr(ModelWorkflow, "_show", lambda _: None)
    monkeypatch.setattr(ModelWorkflow, "_note", noted)
    return ModelWorkflow(ModelEntityInput(model="m", rebuilt=True, **carried))


@pytest.fixture
def state():
    """An entity's state: a repair passes a run of some kind; both can be reached."""

    def build(passed=ChangeKind.PUBLISH):
        found = EntityState(ModelEntityInput(model="m", rebuilt=True))
        found.passed, found.running = (change(passed, 1),), change(ChangeKind.REPAIR, 2)
        found.reachable.update(each.id for each in (*found.passed, found.running))
        return found

    return build


async def noted(*_):
    """Take as done what only a workflow can do."""


def test_a_pause_and_its_end_reach_the_run_that_is_passed(entity):
    found, passed, running = entity()

    asyncio.run(found.pause_changes(ASKED))
    asyncio.run(found.resume_changes(ASKED))

    assert passed.signals == [(names.HOLD_CHANGES, True), (names.HOLD_CHANGES, False)]
    assert running.signals == [], "a repair passes pauses"


def test_an_abort_stops_the_run_that_is_passed_and_not_the_repair(entity):
    found, passed, running = entity()

    answer = asyncio.run(found.abort_run(ASKED))

    assert answer.change_id == "publish-1"
    assert (len(passed.cancelled), running.cancelled) == (1, [])


def test_an_abort_beside_a_passed_retirement_stops_the_repair(entity):
    """A retirement always completes."""
    found, passed, running = entity(ChangeKind.RETIRE)

    asyncio.run(found.abort_run(ASKED))

    assert (passed.cancelled, len(running.cancelled)) == ([], 1)


def test_nothing_running_can_not_be_aborted(entity):
    found, *_ = entity()
    found._state.passed, found._state.running = (), None

    with pytest.raises(ApplicationError, match="nothing of m runs"):
        found._state.check_running(ASKED)


@pytest.mark.parametrize("passes", [True, False])
def test_an_abort_stops_a_retirement_that_waits_for_a_freeze(entity, passes):
    found, passed, running = entity(ChangeKind.RETIRE)
    if not passes:
        found._state.passed, found._state.running = (), found._state.passed[0]

    answer = asyncio.run(found.abort_run(ASKED.model_copy(update={"waiting": "retire-1"})))

    assert answer.change_id == "retire-1"
    assert (len(passed.cancelled), running.cancelled) == (1, [])


def test_a_retirement_that_waits_for_nothing_can_not_be_aborted(entity):
    found, *_ = entity(ChangeKind.RETIRE)
    found._state.passed, found._state.running = (), found._state.passed[0]

    with pytest.raises(ApplicationError, match="a retire of m runs"):
        found._state.check_running(ASKED)


def test_a_rollback_stops_both(entity):
    found, passed, running = entity()

    found._runs.stop_for(change(ChangeKind.ROLLBACK, 3))

    assert (len(passed.cancelled), len(running.cancelled)) == (1, 1)


def test_each_run_that_a_rollback_stops_keeps_its_reason(entity):
    found, passed, running = entity()

    found._runs.stop_for(change(ChangeKind.ROLLBACK, 3))
    found._runs.stop_for(change(ChangeKind.RETIRE, 4))

    assert found._state.stop_reasons == {
        each.id: "rollback rollback-3 was asked" for each in (found._state.running, *found._state.passed)
    }
    assert passed.cancelled[0] == running.cancelled[0] == "rollback rollback-3 was asked"


@pytest.mark.parametrize(
    ("why", "by"),
    [
        (describe_preemption(ChangeKind.ROLLBACK, "m-back 1"), "m-back 1"),
        (describe_preemption(ChangeKind.RETIRE, "m-retire"), "m-retire"),
        (f"{names.ABORTED}by rollback m-back was asked", None),
        ("by hand", None),
        (None, None),
    ],
)
def test_the_change_that_stops_a_run_is_part_of_its_result(why, by):
    stopped = make_stopped(1, why, moving=True)

    assert name_preempting(stopped, why).stopped_by == by
    done = LifecycleResult(state=ChangeState.DONE)
    assert name_preempting(done, why) == done


@pytest.fixture
def gone(monkeypatch):
    """An entity that follows two runs which are gone without a record, with the ends that it records.

    `state` of them in the store.
    """

    def build(state, **carried):
        async def perform(step, given, _):
            if step is policies.FINISH_CHANGE:
                ends[given.change_id] = given.result
            return ChangeSeen(state=state)

        async def taken(asked):
            return TakenOver(moved=state is ChangeState.RUNNING)

        ends = {}
        monkeypatch.setattr(change_ends, "perform", perform)
        monkeypatch.setattr(change_ends, "wait_reverted", taken)
        monkeypatch.setattr(model.workflow, "start_child_workflow", already_started)
        monkeypatch.setattr(model.workflow, "info", lambda: SimpleNamespace(task_timeout=None))
        monkeypatch.setattr(ModelWorkflow, "_show", lambda _: None)
        return ModelWorkflow(ModelEntityInput(model="m", rebuilt=True, **carried)), ends

    return build


async def already_started(*_, id, **__):  # noqa: A002 - as the SDK names it
    raise WorkflowAlreadyStartedError(id, names.LIFECYCLE_WORKFLOW)


@pytest.mark.parametrize(
    ("state", "ended"),
    [(ChangeState.QUEUED, ChangeState.SUPERSEDED), (ChangeState.RUNNING, ChangeState.ROLLED_BACK)],
)
def test_runs_that_are_gone_after_a_rollback_stopped_them_name_it(gone, state, ended):
    """They had not begun, or could not record their end; the entity continued as new meanwhile."""
    move, publish = change(ChangeKind.MOVE, 2), change(ChangeKind.PUBLISH, 1)
    former, _ = gone(state)
    for each in (publish, move):
        former._state.stop_reasons[each.id] = describe_preemption(ChangeKind.ROLLBACK, "back")
    found, ends = gone(state, stops=former._state.build_input(looks_again=False).stops)

    for each in (move, publish):
        found._note_end(each, asyncio.run(found._carry_out(each, begun=True)))

    assert {(end.state, end.stopped_by) for end in ends.values()} == {(ended, "back")}
    assert ends.keys() == {move.id, publish.id}
    assert found._state.stop_reasons == {}


def test_a_change_that_passes_leaves_the_count_of_superseded_runs(gone):
    publish, repair = change(ChangeKind.PUBLISH, 1), change(ChangeKind.REPAIR, 2)
    found, _ = gone(ChangeState.DONE, turned=2, begun=(repair, publish), passed_ids=(publish.id,))

    found._note_end(repair, LifecycleResult(state=ChangeState.DONE))
    assert found._state.turned == 2

    found._state.passed = ()
    found._note_end(publish, LifecycleResult(state=ChangeState.SUPERSEDED, reason=Reason.SUPERSEDED))
    assert found._state.turned == 3
    found._note_end(publish, LifecycleResult(state=ChangeState.DONE))
    assert found._state.turned == 0


def test_a_move_that_may_pass_is_forgotten_once_it_is_superseded(gone):
    """The entity continues as new without it, and with those that it still works on."""
    begun = change(ChangeKind.MOVE, 1)
    found, _ = gone(ChangeState.QUEUED, begun=(begun,), passing=(begun.id,))
    for sequence in range(2, 6):
        found._state.enqueue(waiting := change(ChangeKind.MOVE, sequence))
        found._state.passing = (*found._state.passing, waiting.id)
    found._state.superseded = ()

    assert set(found._state.build_input(looks_again=False).passing) == {begun.id, waiting.id}


def weighed(found, move):
    """The entity has asked about the move, which waits behind the passed run."""
    found._state.queue, found._state.running, found._state.passed = (move,), found._state.passed[0], ()
    found._state.weighed = {(move.id, found._state.running.id)}
    assert found._state.unweighed is None


def test_a_move_that_is_submitted_again_is_weighed_again(entity):
    """A region may have been lost since."""
    (found, *_), move = entity(), change(ChangeKind.MOVE, 3)
    weighed(found, move)

    found.submit_change(move)

    assert found._state.unweighed == move


def test_a_move_whose_run_waits_for_a_freeze_is_woken(entity):
    found, passed, _ = entity(ChangeKind.MOVE)
    found._state.begun = found._state.passed
    woken = []
    passed.signal = lambda name, *_: noted(woken.append(name))

    async def submitted_again():
        found.submit_change(found._state.passed[0])
        await found._runs._waking

    asyncio.run(submitted_again())

    assert woken == [names.FREEZE_CHANGED]


@pytest.fixture
def renewed(monkeypatch):
    """An entity that has just continued as new while a run goes on, with that run; a second one is passed by it."""

    def build(kind=ChangeKind.PUBLISH, *, passed=None, **carried):
        begun = (change(kind, 2), *(() if passed is None else (change(passed, 1),)))
        found = acting(monkeypatch, begun=begun, passed_ids=tuple(each.id for each in begun[1:]), **carried)
        runs = {each.id: Run() for each in begun}
        monkeypatch.setattr(found._runs, "_run_of", lambda each: runs[each.id])
        found._state.running = begun[0]
        return found, *runs.values()

    return build


PAUSED, RESUMED = (names.HOLD_CHANGES, True), (names.HOLD_CHANGES, False)
KNOWS_NO_PAUSE = (ToldHold(change_id="publish-2"),)
KNOWS_THE_PAUSE = (ToldHold(change_id="publish-2", held=ASKED),)


def test_a_pause_that_comes_before_the_run_is_followed_reaches_it(renewed):
    found, run = renewed(told_hold=KNOWS_NO_PAUSE)

    asyncio.run(found.pause_changes(ASKED))
    asyncio.run(found._runs.follow(found._state.running))

    assert run.signals == [names.REPORT_END, PAUSED]


def test_the_end_of_a_pause_that_comes_before_the_run_is_followed_reaches_it(renewed):
    found, run = renewed(told_hold=KNOWS_THE_PAUSE, held=ASKED)

    asyncio.run(found.resume_changes(ASKED))
    asyncio.run(found._runs.follow(found._state.running))

    assert run.signals == [names.REPORT_END, RESUMED]


@pytest.mark.parametrize(("told", "held"), [(KNOWS_NO_PAUSE, None), (KNOWS_THE_PAUSE, ASKED)])
def test_a_run_is_not_told_what_it_knows(renewed, told, held):
    found, run = renewed(told_hold=told, held=held)

    asyncio.run(found._runs.follow(found._state.running))

    assert run.signals == [names.REPORT_END]


@pytest.mark.parametrize(("held", "heard"), [(None, RESUMED), (ASKED, PAUSED)])
def test_a_run_of_which_is_not_known_what_it_knows_is_told(renewed, held, heard):
    """The entity before may have ended between the run and the store: the store counts."""
    found, run = renewed(held=held)

    asyncio.run(found._runs.follow(found._state.running))

    assert run.signals == [names.REPORT_END, heard]


def test_controls_reach_a_run_that_is_passed_though_the_entity_continued_as_new(renewed):
    told = (ToldHold(change_id="publish-1"),)
    found, repair, publish = renewed(ChangeKind.REPAIR, passed=ChangeKind.PUBLISH, told_hold=told)

    asyncio.run(found._runs.follow(found._state.passed[0]))
    asyncio.run(found.pause_changes(ASKED))

    assert publish.signals == [names.REPORT_END, PAUSED]
    assert (repair.signals, found._state.meant(ASKED).id) == ([], "publish-1")


def test_a_move_may_pass_a_repair_and_a_rollback_also_if_those_pass_another_run(state):
    found, move = state(), change(ChangeKind.MOVE, 3)
    found.queue = (move,)
    assert found.unweighed == move

    rollback = change(ChangeKind.ROLLBACK, 4)
    found.running = rollback
    found.reachable.add(rollback.id)
    assert found.unweighed == move


def test_a_repair_passes_neither_a_repair_nor_a_rollback(state):
    found = state()
    found.queue = (change(ChangeKind.REPAIR, 3),)
    assert found.unweighed is None

    rollback = change(ChangeKind.ROLLBACK, 4)
    found.running = rollback
    found.reachable.add(rollback.id)
    assert found.unweighed is None


def test_nothing_passes_that_a_waiting_rollback_would_stop_at_once(state):
    found = state(ChangeKind.RETIRE)
    found.queue, found.running, found.passed = (change(ChangeKind.MOVE, 3),), found.passed[0], ()
    assert found.unweighed == found.queue[0]

    found.queue += (change(ChangeKind.ROLLBACK, 4),)

    assert found.unweighed == found.queue[1], "it passes a retirement that waits for a freeze"
    found.weighed.add((found.queue[1].id, found.running.id))
    assert found.unweighed is None


def test_a_move_passes_a_rollback_before_a_second_one_only_if_it_is_newer_than_both(state):
    found = state()
    first, second = change(ChangeKind.ROLLBACK, 3), change(ChangeKind.ROLLBACK, 5)
    found.running, found.passed = first, ()
    found.reachable.add(first.id)

    found.queue = (change(ChangeKind.MOVE, 4), second)
    assert found.unweighed is None, "the second one would stop it"

    found.queue = (second, change(ChangeKind.MOVE, 6))
    assert found.unweighed == found.queue[1]


def test_a_move_is_weighed_before_a_repair_runs(state):
    found, move = state(), change(ChangeKind.MOVE, 3)
    found.running, found.passed = None, ()
    found.queue = (move,)
    assert found.unweighed is None, "it runs next anyway"

    found.queue = (change(ChangeKind.REPAIR, 2), move)

    assert found.unweighed == move


def test_all_passed_runs_are_taken_over_in_their_order():
    passed = (change(ChangeKind.PUBLISH, 1), change(ChangeKind.REPAIR, 2))
    begun = (change(ChangeKind.MOVE, 3), *passed[::-1])

    found = EntityState(
        ModelEntityInput(model="m", rebuilt=True, begun=begun, passed_ids=tuple(each.id for each in passed))
    )

    assert found.passed == passed
