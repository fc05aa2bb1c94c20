"""What an entity finds in the store and the engine, and how a transition is taken over whose run has gone."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.planning.activities import PlanningActivities
from activities.planning.solver import ThreadSolver
from activities.transition.activities import TransitionActivities
from activities.transition.takeover import TakeoverActivities
from ipnext import names
from ipnext.errors import FenceLost
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.changes.takeover import ChangeAsked, ModelAsked, OpenChanges, TakenOver, TakeOver
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import FleetState, Transition, TransitionState, Wave
from ipnext.store.records import TransitionRecord

M = "ranker"
PUBLISH = QueuedChange(id="one", kind=ChangeKind.PUBLISH, sequence=1, generation=1)
GONE = TakeOver(model=M, change=PUBLISH, reason=Reason.INTERNAL_ERROR, message="its run has gone")


@pytest.fixture
def engine() -> set[str]:
    """Workflows that run."""
    return set()


@pytest.fixture
def asked(house, engine):
    """Ask an activity. The change `one` runs and has a transition of three waves, of which one is done; `two` waits."""
    activities = TakeoverActivities(house.store, engine.__contains__)
    house.apply(M)
    for number, name in ((1, "one"), (2, "two")):
        house.publish(M, number, change_id=name)
    document = {"from": FleetState(), "to": FleetState(), "waves": (Wave(),) * 3}
    record = TransitionRecord(
        id="one",
        model=M,
        change_id="one",
        generation=1,
        transition=Transition.model_validate(document),
        created_at=datetime.now(UTC),
        revision=7,
    )
    with house.store.begin(M) as repository:
        repository.update_change("one", state=ChangeState.RUNNING)
        repository.update_change("two", state=ChangeState.QUEUED)
        repository.save_transition(record)
        repository.advance_transition("one", waves_done=1, state=TransitionState.RUNNING)
    return lambda name, value: ActivityEnvironment().run(getattr(activities, name), value)


def set_state(house, state: TransitionState) -> None:
    with house.store.begin(M) as repository:
        repository.advance_transition("one", state=state)


def test_a_transition_whose_run_is_open_is_waited_for(house, engine, asked):
    engine.add(names.transition_workflow_id("one"))

    assert asked("take_over", GONE) == TakenOver(waits=True)
    with house.store.read() as repository:
        assert repository.transition("one").fence == 0


def test_a_transition_whose_run_has_gone_is_reverted_from_the_wave_that_was_under_way(house, asked):
    taken = asked("take_over", GONE)

    assert (taken.moved, taken.done, taken.generation, taken.revision) == (True, False, 1, 7)
    revert = taken.transition
    assert revert is not None
    assert (revert.transition_id, revert.waves, revert.fence) == ("one", 3, 1)
    assert (revert.revert.index, revert.revert.reason, revert.revert.message) == (1, GONE.reason, GONE.message)
    with house.store.read() as repository, pytest.raises(FenceLost):
        repository.check_fence("one", 0)


def test_each_takeover_has_a_token_of_its_own(asked):
    assert [asked("take_over", GONE).transition.fence for _ in range(3)] == [1, 2, 3]


def test_a_transition_that_moved_nothing_is_closed(house, asked):
    set_state(house, TransitionState.PLANNED)

    assert asked("take_over", GONE) == TakenOver()
    with house.store.read() as repository:
        assert repository.transition("one").state is TransitionState.ROLLED_BACK


@pytest.mark.parametrize("state", [TransitionState.DONE, TransitionState.ROLLED_BACK])
def test_a_transition_that_has_ended_says_how(house, asked, state):
    set_state(house, state)

    taken = asked("take_over", GONE)

    assert (taken.transition, taken.moved, taken.done) == (None, True, state is TransitionState.DONE)


def test_a_change_without_a_transition_leaves_nothing_to_do(asked):
    assert (
        asked("take_over", GONE.model_copy(update={"change": PUBLISH.model_copy(update={"id": "two"})})) == TakenOver()
    )


def test_an_entity_that_begins_finds_changes_pause_and_what_serves(house, engine, asked):
    with house.store.begin(M) as repository:
        repository.put_pause(M, ControlAsked(by="ann"))
        repository.update_model(M, serving_generation=2)

    found = asked("open_changes", ModelAsked(model=M))

    assert [(item.change.id, item.begun) for item in found.changes] == [("one", True), ("two", False)]
    assert (found.held, found.serving_generation) == (ControlAsked(by="ann"), 2)
    engine.add(names.lifecycle_workflow_id(M, "two"))
    begun = [item.begun for item in asked("open_changes", ModelAsked(model=M)).changes]
    assert begun == [True, True], "its run is open, though it has not said so yet"


@pytest.mark.parametrize("state", list(TransitionState))
def test_a_change_moves_its_model_until_its_end_is_recorded(house, asked, state):
    """Another one that began first would wait for that end, which only the entity can record if the run has gone."""
    set_state(house, state)

    found = asked("open_changes", ModelAsked(model=M))

    assert [item.moves for item in found.changes] == [state is not TransitionState.REFUSED, False]


@pytest.mark.parametrize("lost", [True, False])
def test_an_entity_that_begins_finds_the_move_that_goes_on_in_a_pause(house, asked, lost):
    """Only one that has begun: whether one that waits may pass is asked for it."""
    stage = StageInput(model=M, change_id="one", kind=ChangeKind.PUBLISH, generation=1)
    ActivityEnvironment().run(PlanningActivities(house.store, ThreadSolver()).place_model, stage)
    with house.store.begin() as repository:
        plan_id = repository.placement(M).plan_id
        replan = repository.add_replan("away", "drain" if lost else "manual")
        repository.queue_replans([replan.id])
        repository.claim_replans(plan_id, run_id="run")
        if lost:
            repository.add_drain("eu-west", disaster=True)
    for name in ("begun", "waits"):
        house.ask(M, ChangeKind.MOVE, name, plan_id=plan_id)
    with house.store.begin(M) as repository:
        repository.update_change("begun", state=ChangeState.RUNNING)
        repository.update_change("waits", state=ChangeState.QUEUED)

    found = asked("open_changes", ModelAsked(model=M)).changes

    assert {item.change.id: item.passes for item in found} == {
        "one": False,
        "two": False,
        "begun": lost,
        "waits": False,
    }


def test_the_open_changes_say_whether_the_model_is_retired(house, asked):
    assert not asked("open_changes", ModelAsked(model=M)).retired
    with house.store.begin(M) as repository:
        repository.update_model(M, retired=True)
    assert asked("open_changes", ModelAsked(model=M)).retired


def test_of_a_model_that_was_never_applied_nothing_is_open(asked):
    assert asked("open_changes", ModelAsked(model="unknown")) == OpenChanges()


def test_a_change_stands_as_the_store_says_and_runs_as_the_engine_says(engine, asked):
    look = ChangeAsked(model=M, change_id="one")
    assert (asked("look_at_change", look).state, asked("look_at_change", look).runs) == (ChangeState.RUNNING, False)
    engine.add(names.lifecycle_workflow_id(M, "one"))
    assert asked("look_at_change", look).runs


def test_a_transition_that_moved_nothing_yet_is_closed_and_its_run_may_begin_nothing_more(house, asked):
    with house.store.begin(M) as repository:
        repository.advance_transition("one", waves_done=0, state=TransitionState.PLANNED)

    assert asked("take_over", GONE) == TakenOver()
    with house.store.read() as repository, pytest.raises(FenceLost, match="was taken over"):
        repository.check_fence("one", 0)


@pytest.mark.parametrize(("undone", "next_one"), [(2, 1), (1, 0)])
def test_a_revert_that_takes_over_from_another_one_goes_on_from_the_wave_before(house, asked, undone, next_one):
    with house.store.begin(M) as repository:
        record = repository.advance_transition("one", waves_done=2)
    wave = WaveInput(
        transition_id="one", model=M, generation=1, index=undone, deadline_seconds=9, back=True, by_waves=True
    )
    facts = SimpleNamespace(lost=frozenset())
    step = SimpleNamespace(wave=wave, record=record, is_last=False, facts=facts)
    ActivityEnvironment().run(TransitionActivities(house.store, house.infrastructure)._write_progress, step)

    assert asked("take_over", GONE).transition.revert.index == next_one


def test_a_revert_that_takes_over_within_the_first_step_of_another_one_begins_with_the_same_wave(house, asked):
    with house.store.begin(M) as repository:
        repository.advance_transition("one", waves_done=2)
    wave = WaveInput(transition_id="one", model=M, generation=1, index=1, deadline_seconds=9, back=True, by_waves=True)
    ActivityEnvironment().run(TransitionActivities(house.store, house.infrastructure).ensure_capacity, wave)

    assert asked("take_over", GONE).transition.revert.index == 1
