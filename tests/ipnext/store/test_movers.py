"""One mover for each model in the store: the fence, its token, and pauses."""

from datetime import UTC, datetime

import pytest

from ipnext.errors import FenceLost, Unavailable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.planning.transition import FleetState, Transition, TransitionState, Wave
from ipnext.model.registry.registry import PartGraph
from ipnext.store.records import StateBefore, TransitionRecord

GRAPH = PartGraph.model_validate(
    {
        "nodes": [{"name": "dense", "part": "dense", "inputs": {"x": "request.x"}}],
        "outputs": {"score": "dense.score"},
    }
)


def planned(change_id: str, **more: object) -> TransitionRecord:
    return TransitionRecord(
        id=change_id,
        model="ctr",
        change_id=change_id,
        generation=1,
        transition=Transition.model_validate({"from": FleetState(), "to": FleetState(), "waves": (Wave(),)}),
        created_at=datetime.now(UTC),
        **more,
    )


@pytest.fixture
def two(applied, publish):
    """Two changes; the first one has a transition."""
    publish("c1", dense="d1", sparse="s1")
    publish("c2", dense="d2", sparse="s2")
    with applied.begin("ctr") as repository:
        repository.save_transition(planned("c1"))
    return applied


@pytest.mark.parametrize("state", list(TransitionState))
def test_a_model_is_moved_by_one_change_until_its_end_is_recorded(two, state):
    with two.begin("ctr") as repository:
        repository.advance_transition("c1", state=state)
        repository.check_only_mover("ctr", "c1")
        if state is TransitionState.REFUSED:
            repository.check_only_mover("ctr", "c2")
            return
        with pytest.raises(Unavailable, match="'c1' still moves model 'ctr'"):
            repository.check_only_mover("ctr", "c2")
        repository.close_transition("c1", done=True)
        repository.update_change("c1", state=ChangeState.DONE)
        repository.check_only_mover("ctr", "c2")


def test_a_retirement_moves_its_model_while_it_runs(two):
    with two.begin("ctr") as repository:
        repository.close_transition("c1", done=True)
        repository.update_change("c1", state=ChangeState.DONE)
        repository.add_change("ctr", ChangeKind.RETIRE, change_id="r")
        repository.check_only_mover("ctr", "c2")
        repository.update_change("r", state=ChangeState.RUNNING)
        with pytest.raises(Unavailable, match="'r' still moves"):
            repository.check_only_mover("ctr", "c2")
        repository.update_change("r", state=ChangeState.DONE)
        repository.check_only_mover("ctr", "c2")


def test_a_run_that_was_taken_over_has_lost_the_fence(two):
    with two.begin("ctr") as repository:
        repository.check_fence("c1", 0)
        assert repository.take_over_transition("c1", fence=0).fence == 1
        with pytest.raises(FenceLost, match="taken over"):
            repository.check_fence("c1", 0)
        repository.check_fence("c1", 1)
        with pytest.raises(Unavailable, match="took it over meanwhile"):
            repository.take_over_transition("c1", fence=0)


def test_a_change_that_has_ended_writes_nothing_more(two):
    with two.begin("ctr") as repository:
        repository.update_change("c1", state=ChangeState.ROLLED_BACK)
        with pytest.raises(FenceLost, match="has ended as rolled_back"):
            repository.check_fence("c1", 0)


def test_closing_ends_what_is_open_and_nothing_else(two):
    with two.begin("ctr") as repository:
        repository.close_transition("c2", done=True)
        repository.close_transition("c1", done=False, message="why")
        repository.close_transition("c1", done=True)
        found = repository.transition("c1")
        assert (found.state, found.message, found.is_open) == (TransitionState.ROLLED_BACK, "why", False)
        assert repository.find_transition("c2") is None


@pytest.mark.parametrize("state", [TransitionState.RUNNING, TransitionState.DONE, TransitionState.ROLLED_BACK])
def test_the_state_before_a_transition_is_kept_until_it_is_closed(two, state):
    with two.begin("ctr") as repository:
        before = StateBefore(served=(ServedGeneration(generation=1, graph=GRAPH, snapshots={"dense": 1}),))
        repository.save_transition(planned("c2"), before=before)
        repository.advance_transition("c2", state=state)
        assert (repository.state_before("c2"), repository.state_before("c1")) == (before, None)
        repository.close_transition("c2", done=False)
        assert repository.state_before("c2") is None


def test_open_changes_are_those_that_the_engine_has_taken(two):
    with two.begin("ctr") as repository:
        assert repository.open_changes("ctr") == ()
        repository.update_change("c2", state=ChangeState.QUEUED)
        repository.update_change("c1", state=ChangeState.RUNNING)
        assert [change.id for change in repository.open_changes("ctr")] == ["c1", "c2"]
        assert [change.id for change in repository.long_open_changes(seconds=0)] == ["c1"]
        assert repository.long_open_changes(seconds=3600) == ()
        repository.update_change("c1", state=ChangeState.DONE)
        assert [change.id for change in repository.long_open_changes(seconds=0)] == ["c2"]


def test_a_pause_is_kept_until_it_ends(applied):
    asked = ControlAsked(by="ann", reason="odd")
    with applied.begin("ctr") as repository:
        assert repository.pause("ctr") is None
        repository.put_pause("ctr", asked.model_copy(update={"reason": "first"}))
        repository.put_pause("ctr", asked)
    with applied.begin("ctr") as repository:
        assert repository.pause("ctr") == asked
        repository.delete_pause("ctr")
        repository.delete_pause("ctr")
        assert repository.pause("ctr") is None
