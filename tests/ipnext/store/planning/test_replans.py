"""Replans as they are asked for, put off, taken together and ended; on both engines."""

from datetime import UTC, datetime, timedelta

import pytest

from ipnext.errors import Conflict, InvalidInput, NotFound
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import Reason

START = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def after(self, seconds: float) -> None:
        self.now = START + timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def begin(store, clock):
    """A unit of work that goes by the test's clock."""

    def unit():
        context = store.begin()
        repository = context.__enter__()
        repository._now = clock
        units.append(context)
        return repository

    units = []
    yield unit
    for context in units:
        context.__exit__(None, None, None)


def test_the_same_id_is_one_replan(begin):
    repository = begin()
    first = repository.add_replan("r1", "manual", dry_run=True, max_moves=3)
    assert repository.add_replan("r1", "manual", dry_run=True, max_moves=3) == first == repository.replan("r1")
    assert (first.state, first.dry_run, first.max_moves) == (ReplanState.RECORDED, True, 3)
    with pytest.raises(Conflict, match="other options"):
        repository.add_replan("r1", "manual")
    with pytest.raises(InvalidInput, match="replanId"):
        repository.add_replan("", "manual")
    with pytest.raises(NotFound, match="'r2'"):
        repository.replan("r2")


def test_changes_of_the_fleet_within_the_delay_are_one_replan_that_is_not_put_off_for_ever(begin, clock):
    repository = begin()
    first = repository.add_supply_replan(2, delay_seconds=5)
    assert (first.id, first.trigger, first.not_before) == ("supply-2", "supply", START + timedelta(seconds=5))
    for version, seconds in enumerate((4, 8, 12, 16, 20, 24, 28), start=3):
        clock.after(seconds)
        assert repository.add_supply_replan(version, delay_seconds=5).id == "supply-2"
    clock.after(29.9)
    assert repository.due_replans() == ()
    clock.after(30)
    assert [replan.id for replan in repository.due_replans()] == ["supply-2"], "six delays at most"
    repository.queue_replans(["supply-2"])
    assert repository.add_supply_replan(9, delay_seconds=5).id == "supply-9", "the engine knows of the first one"


def test_what_is_open_with_the_same_options_is_taken_together_in_order(begin, clock):
    repository = begin()
    repository.add_replan("schedule", "schedule")
    repository.add_replan("dry", "manual", dry_run=True)
    repository.add_supply_replan(2, delay_seconds=60)
    repository.queue_replans(["schedule"])
    assert repository.waiting_replans() == 2, "the supply's time has not come"

    taken = repository.claim_replans("plan-1", run_id="run")

    assert [replan.id for replan in taken] == ["schedule", "supply-2"], "it joins before its time"
    assert {(r.state, r.plan_id, r.run_id) for r in taken} == {(ReplanState.PLANNING, "plan-1", "run")}
    assert repository.claim_replans("plan-1", run_id="run") == taken, "the same plan again"
    assert [replan.id for replan in repository.claim_replans("plan-1", run_id="run")] == ["schedule", "supply-2"]
    assert repository.waiting_replans() == 1
    repository.update_replans("plan-1", state=ReplanState.KEPT)
    assert [replan.id for replan in repository.claim_replans("plan-2", run_id="run-2")] == ["dry"]
    repository.update_replans("plan-2", state=ReplanState.DRY_RUN)
    assert repository.claim_replans("plan-3", run_id="run-3") == ()


def test_a_replan_whose_run_was_ended_by_hand_is_taken_by_the_next(begin):
    repository = begin()
    repository.add_replan("r1", "manual")
    repository.claim_replans("plan-1", run_id="run-1")

    assert [replan.id for replan in repository.claim_replans("plan-2", run_id="run-2")] == ["r1"]
    assert repository.replan("r1").plan_id == "plan-2"


def test_an_end_stays_and_is_counted_by_who_asked(begin, clock):
    repository = begin()
    for name, trigger in (("r1", "schedule"), ("r2", "manual")):
        repository.add_replan(name, trigger)
    repository.claim_replans("plan-1", run_id="run")
    clock.after(7)
    repository.list_moves("plan-1", ("a", "b"))
    repository.update_replans("plan-1", state=ReplanState.MOVING, moves=4)
    assert repository.replan("r1").finished_at is None
    ended = repository.update_replans("plan-1", state=ReplanState.ADOPTED, moves=4, message="done")
    assert {(r.id, r.models, r.moves, r.finished_at) for r in ended} == {
        ("r1", ("a", "b"), 4, clock.now),
        ("r2", ("a", "b"), 4, clock.now),
    }
    failed = repository.update_replans("plan-1", state=ReplanState.FAILED, reason=Reason.PLANNER_FAILED)
    assert failed == ()
    assert repository.replan("r1").state is ReplanState.ADOPTED
    assert repository.replan_counts() == {("schedule", "adopted"): 1, ("manual", "adopted"): 1}
    assert repository.replica_moves() == 4, "both share one plan"
