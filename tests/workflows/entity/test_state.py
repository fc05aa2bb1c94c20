"""An entity's own account of its changes, without a server."""

import pytest

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.changes.entity import ModelEntityInput, SupersededChange
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult
from ipnext.model.lifecycle.changes.takeover import OpenChange, OpenChanges
from ipnext.model.lifecycle.status import Reason
from workflows.entity.state import EntityState

DONE = LifecycleResult(state=ChangeState.DONE, generation=2)
SUPERSEDED = LifecycleResult(state=ChangeState.SUPERSEDED, reason=Reason.SUPERSEDED)


def change(kind, sequence):
    return QueuedChange(
        id=f"{kind}-{sequence}", kind=ChangeKind(kind), sequence=sequence, generation=sequence, plan_id="p"
    )


PUBLISH, OTHER = change("publish", 1), change("move", 2)


def entity(*, running=None, reachable=True, **carried):
    found = EntityState(ModelEntityInput(model="m", **{"rebuilt": True, **carried}))
    if running is not None:
        found.begin(running)
        found.reachable.update({running.id} if reachable else ())
    return found


# what is left to do


@pytest.mark.parametrize(
    "left",
    [
        {"queue": (PUBLISH,)},
        {"begun": (PUBLISH,)},
        {"superseded": (SupersededChange(change_id="c1", by="c2"),)},
        {"retired": False},
    ],
)
def test_an_entity_ends_once_nothing_is_left_of_a_retired_model(left):
    assert entity(**{"retired": True, **left}).is_open
    assert not entity(retired=True).is_open


def test_only_a_retirement_that_is_done_retires_a_model():
    retire = change("retire", 3)
    found = entity(running=retire)
    found.end(retire, SUPERSEDED)
    assert not found.retired
    found.end(retire, DONE)
    assert found.retired
    found.end(PUBLISH, DONE)
    assert not found.retired


def test_an_entity_ends_after_a_change_that_came_too_late_for_its_retired_model_unless_another_one_waits():
    late = LifecycleResult(state=ChangeState.SUPERSEDED, retired=True)
    for waiting in ((), (OTHER,)):
        found = entity(running=PUBLISH, queue=waiting)
        found.end(PUBLISH, late)
        assert (found.is_open, found.retired) == (bool(waiting), not waiting), "the other one may bring the model back"
    found = entity(running=PUBLISH)
    found.end(PUBLISH, SUPERSEDED)
    assert found.is_open


@pytest.mark.parametrize("reads", ["rebuild", "recover"])
def test_an_entity_that_finds_its_model_retired_and_nothing_open_ends(reads):
    for retired, waiting, is_open in ((True, (), False), (True, (OTHER,), True), (False, (), True)):
        found = entity(queue=waiting)
        read = found.rebuild if reads == "rebuild" else lambda answer, state=found: state.recover(answer, frozenset())
        read(OpenChanges(retired=retired))
        assert (found.is_open, found.retired) == (is_open, not is_open)


@pytest.mark.parametrize("pause", [None, ControlAsked(by="bob", reason="again")])
def test_a_pause_ends_with_the_retirement_and_the_store_has_whether_there_is_a_new_one(pause):
    state = entity(running=change(ChangeKind.RETIRE, 2), held=ControlAsked(by="ann", reason="audit"))
    publish = change(ChangeKind.PUBLISH, 3)
    state.enqueue(publish)
    state.retired = False  # the store has the end, and the model was applied and published again
    state.end(state.running, LifecycleResult(state=ChangeState.DONE))
    assert (state.is_open, state.held, state.is_look_due) == (True, None, True)
    state.recover(OpenChanges(held=pause), frozenset())
    assert state.next() == (publish if pause is None else None)


def test_the_running_change_comes_before_those_that_have_begun():
    found = entity(running=OTHER, begun=(PUBLISH, OTHER))
    assert found.at_work == (OTHER, PUBLISH)
    assert entity(begun=(PUBLISH,)).at_work == (PUBLISH,)


def test_a_run_of_an_earlier_entity_is_taken_up_once():
    assert entity(rebuilt=False).takes_up
    assert not entity().takes_up
    assert entity(running=PUBLISH, reachable=False, begun=(PUBLISH,)).takes_up
    assert not entity(running=PUBLISH, begun=(PUBLISH,)).takes_up
    settled = entity(begun=(OTHER, PUBLISH))
    settled.end(OTHER, DONE)
    assert not settled.takes_up


@pytest.mark.parametrize(("asked", "passed", "due"), [(True, (), True), (True, (OTHER,), False), (False, (), False)])
def test_a_look_at_the_store_waits_for_a_run_that_passes_another(asked, passed, due):
    found = entity(looks_again=asked)
    found.passed = passed
    assert found.is_look_due is due


# submissions


def test_a_change_is_known_from_its_submission_to_after_its_end():
    found = entity()
    assert not found.knows(PUBLISH)
    found.enqueue(PUBLISH)
    assert (found.knows(PUBLISH), found.is_queued(PUBLISH)) == (True, True)
    assert (found.knows(OTHER), found.is_queued(OTHER)) == (False, False)
    found.begin(found.next())
    assert (found.knows(PUBLISH), found.is_queued(PUBLISH)) == (True, False)
    found.end(PUBLISH, DONE)
    assert found.knows(PUBLISH)
    assert entity(begun=(PUBLISH,)).knows(PUBLISH), "it began in an earlier entity"


def test_while_paused_only_what_passes_the_pause_runs_next():
    repair = change("repair", 4)
    assert entity(queue=(PUBLISH,)).next() == PUBLISH
    assert entity(queue=(PUBLISH,), held=ControlAsked(by="anna")).next() is None
    assert entity(queue=(PUBLISH, repair), held=ControlAsked(by="anna")).next() == repair
    assert entity(queue=(PUBLISH, OTHER), held=ControlAsked(by="anna"), passing=(OTHER.id,)).next() == OTHER


@pytest.mark.parametrize(
    ("running", "submitted", "noted"),
    [
        (change("publish", 5), change("publish", 6), True),
        (change("apply", 5), change("publish", 6), True),
        (change("publish", 5), change("publish", 4), False),
        (change("publish", 5), change("publish", 5), False),
        (change("publish", 5), change("apply", 6), False),
        (change("move", 5), change("publish", 6), False),
        (change("publish", 5), change("rollback", 6), False),
    ],
)
def test_a_rollout_learns_of_a_newer_one_that_supersedes_it(running, submitted, noted):
    found = entity(running=running)
    found.note_newer(submitted)
    assert found.newer == (submitted if noted else None)


def test_a_run_learns_of_one_newer_rollout_and_only_if_it_can_be_reached():
    found = entity(running=PUBLISH, reachable=False)
    found.note_newer(change("publish", 6))
    assert found.newer is None
    told = entity(running=PUBLISH, told_newer=True)
    told.note_newer(change("publish", 6))
    assert told.newer is None


def test_runs_that_newer_ones_superseded_are_counted_until_one_was_not():
    found = entity()
    for turned in (1, 2):
        found.end(PUBLISH, SUPERSEDED)
        assert found.turned == turned
    found.end(OTHER, SUPERSEDED)
    assert found.turned == 0, "a move supersedes moves, which is no rollout given up"


# changes that pass


def test_nothing_passes_a_run_that_can_not_be_reached():
    assert entity(running=PUBLISH, queue=(OTHER,)).unweighed == OTHER
    assert entity(running=PUBLISH, queue=(OTHER,), reachable=False).unweighed is None


@pytest.mark.parametrize("more", [{"held": ControlAsked(by="anna")}, {"queue": (change("repair", 1), OTHER)}])
def test_a_move_may_pass_a_pause_and_a_repair_that_would_run_first(more):
    assert entity(**{"queue": (OTHER,), **more}).unweighed == OTHER
    assert entity(queue=(OTHER,)).unweighed is None


# the store


def test_of_changes_that_have_begun_the_one_that_moves_the_model_comes_first_then_those_that_pass():
    publish, apply, move = change("publish", 1), change("apply", 2), change("move", 3)
    found = entity(rebuilt=False)
    found.rebuild(
        OpenChanges(
            changes=(
                OpenChange(change=publish, begun=True),
                OpenChange(change=move, begun=True),
                OpenChange(change=apply, begun=True, moves=True),
            )
        )
    )
    assert found.begun == (apply, move, publish)
