"""Drains as they are asked for, made more of, asked back and ended; on both engines."""

import pytest

from ipnext.errors import InvalidInput, NotFound
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.replans.moves import MoveTrouble, ReplanProgress
from ipnext.model.lifecycle.status import Reason


def test_a_drain_under_way_is_answered_and_the_next_one_is_another(store):
    with store.begin() as repository:
        first = repository.add_drain("eu", reason="racks")
        assert repository.add_drain("eu", reason="again") == first
        repository.update_drain(first.id, state=DrainState.REFUSED, cause=Reason.NO_CAPACITY, message="no room")
        assert repository.drains() == ()
        second = repository.add_drain("eu")
    assert (first.id, second.id) == ("drain-eu-1", "drain-eu-2")
    with store.read() as repository:
        assert repository.drain("eu") == second
        assert repository.drain("us") is None
        assert [drain.region for drain in repository.drains()] == ["eu"]


@pytest.mark.parametrize("more", [{"disaster": True}, {"force": True}])
def test_more_of_a_drain_begins_it_anew_and_it_has_to_be_told(store, more):
    with store.begin() as repository:
        drain = repository.add_drain("eu", reason="racks")
        repository.mark_submitted([drain])
        repository.update_drain(drain.id, state=DrainState.DRAINED)
        assert repository.unsubmitted_drains() == ()
        again = repository.add_drain("eu", **more)
        assert (again.id, again.state, again.reason, again.finished_at) == (
            drain.id,
            DrainState.RECORDED,
            "racks",
            None,
        )
        assert repository.unsubmitted_drains() == (again,)
        assert repository.add_drain("eu") == again


@pytest.mark.parametrize("more", [{}, {"disaster": True}])
def test_the_same_drain_asked_again_is_told_again_until_it_is_drained(store, more):
    with store.begin() as repository:
        drain = repository.add_drain("eu", **more)
        repository.mark_submitted([drain])
        assert repository.claimed_drains() == (drain,)
        assert repository.add_drain("eu", **more) == drain
        assert repository.unsubmitted_drains() == (drain,)
        assert repository.claimed_drains() == ()
        repository.mark_submitted([drain])
        drained = repository.update_drain(drain.id, state=DrainState.DRAINED)
        assert repository.add_drain("eu", **more) == drained
        assert repository.unsubmitted_drains() == repository.claimed_drains() == ()
        back = repository.ask_return("eu")
        repository.mark_submitted([back])
        assert repository.ask_return("eu") == back
        assert repository.unsubmitted_drains() == (back,)


def test_what_was_asked_after_the_engine_was_told_is_still_to_be_told(store):
    with store.begin() as repository:
        seen = repository.add_drain("eu")
    with store.begin() as repository:
        repository.ask_return("eu")
        repository.mark_submitted([seen])
        assert [drain.state for drain in repository.unsubmitted_drains()] == [DrainState.RETURNING]


def test_a_region_that_is_not_drained_is_not_asked_back_and_twice_is_once(store):
    with store.begin() as repository:
        with pytest.raises(NotFound, match="'eu' is not drained"):
            repository.ask_return("eu")
        drain = repository.add_drain("eu", disaster=True)
        back = repository.ask_return("eu", reason="dry")
        assert repository.ask_return("eu", reason="dry again") == back
        assert (back.state, back.lost, back.message) == (DrainState.RETURNING, True, "asked back: dry")
        ended = repository.update_drain(drain.id, state=DrainState.RETURNED)
        assert ended.finished_at is not None
        with pytest.raises(NotFound):
            repository.ask_return("eu")


def test_a_drain_on_the_way_back_begins_anew(store):
    with store.begin() as repository:
        repository.add_drain("eu")
        repository.ask_return("eu")
        assert repository.add_drain("eu").state is DrainState.RECORDED


@pytest.fixture
def change(applied):
    """A change that was recorded before all that a test does, by its id."""
    with applied.begin() as repository:
        return repository.add_change("ctr", ChangeKind.APPLY, change_id="before").id


def lost_since(store, change, regions=("eu",)):
    with store.read() as repository:
        return repository.was_lost_since(change, regions)


def drain(store, *, disaster=False):
    with store.begin() as repository:
        return repository.add_drain("eu", disaster=disaster).id


def bring_back(store, drain_id):
    with store.begin() as repository:
        repository.ask_return("eu")
        repository.update_drain(drain_id, state=DrainState.RETURNED)


def later_change(store, change_id):
    with store.begin() as repository:
        return repository.add_change("ctr", ChangeKind.APPLY, change_id=change_id).id


def test_a_loss_is_since_the_changes_before_it_and_none_after(applied, change):
    assert not lost_since(applied, change)
    drain(applied, disaster=True)

    later = later_change(applied, "later")

    assert (lost_since(applied, change), lost_since(applied, later)) == (True, False)
    assert (lost_since(applied, change, ["us", "eu"]), lost_since(applied, change, ["us"])) == (True, False)
    assert not lost_since(applied, change, [])


def test_a_planned_drain_is_no_loss_until_it_becomes_one(applied, change):
    drain(applied)
    assert not lost_since(applied, change)

    later = later_change(applied, "later")
    drain(applied, disaster=True)

    assert lost_since(applied, change)
    assert lost_since(applied, later)


def test_what_is_asked_again_of_a_lost_region_is_no_other_loss_and_its_return_changes_it(applied, change):
    drain_id = drain(applied, disaster=True)
    later = later_change(applied, "later")
    drain(applied, disaster=True)
    with applied.begin() as repository:
        repository.add_drain("eu", disaster=True, force=True)
    assert not lost_since(applied, later)

    bring_back(applied, drain_id)

    assert lost_since(applied, later)


def test_a_loss_is_seen_through_any_number_of_later_drains(applied, change):
    bring_back(applied, drain(applied, disaster=True))
    later = later_change(applied, "later")
    bring_back(applied, drain(applied))
    drain(applied)

    assert (lost_since(applied, change), lost_since(applied, later)) == (True, False)


def test_a_region_that_is_lost_on_its_way_back_is_lost_again(applied):
    drain(applied, disaster=True)
    with applied.begin() as repository:
        repository.ask_return("eu")
    later = later_change(applied, "later")
    drain(applied, disaster=True)

    assert lost_since(applied, later)


def test_a_change_that_is_not_known_saw_no_loss(applied):
    drain(applied, disaster=True)
    assert not lost_since(applied, "nothing")


def test_a_reason_has_a_length_and_an_unknown_drain_is_not_found(store):
    with store.begin() as repository:
        with pytest.raises(InvalidInput, match="reason: at most 500"):
            repository.add_drain("eu", reason="x" * 501)
        with pytest.raises(NotFound, match="'nothing'"):
            repository.update_drain("nothing", message="")


def test_how_far_a_replan_is_is_kept_for_all_that_share_its_plan(store):
    progress = ReplanProgress(
        total=3,
        moved=1,
        moving=1,
        moving_models=("a",),
        waiting=0,
        failed=1,
        troubles=(MoveTrouble(model="b", message="no"),),
    )
    with store.begin() as repository:
        for replan in ("r1", "r2"):
            repository.add_replan(replan, "manual")
        repository.claim_replans("plan", run_id="run")
        repository.note_progress("plan", progress)
        assert [replan.progress for replan in repository.replans()] == [progress] * 2
    assert round(progress.percent) == 67
