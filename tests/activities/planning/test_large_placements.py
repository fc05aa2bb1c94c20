"""A large model is placed in a process, within its owner's share; a small one at once, in the activity's thread."""

from dataclasses import replace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.planning import activities
from activities.planning.activities import PlanningActivities, SearchDied
from activities.planning.policy import PlanningPolicy
from activities.planning.solver import GRACE_SECONDS, SEARCHES, ProcessSolver, SolveFailed, ThreadSolver
from activities.runtime.owner_turns import OwnerShares, ShareTaken
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from workflows.policies import PLACEMENT_LIMIT

OWNER = "default"


class Told(ThreadSolver):
    """Solves as a thread does, and tells for which model; ends by this error instead, if there is one."""

    def __init__(self, error=None, *, shares=None):
        self.asked = []
        self._error = error
        self._shares = shares

    def solve(self, problem, *, beat, model=None):
        self.asked.append(model)
        if self._shares is not None:
            assert self._shares._held, "the owner's slot is counted"
        if self._error is not None:
            raise self._error
        return super().solve(problem, beat=beat, model=model)


@pytest.fixture
def place(house):
    """Place generation 1 of the model."""
    house.apply("ranker")
    change = house.publish("ranker", 1)
    stage = StageInput(model="ranker", change_id=change.id, kind=ChangeKind.PUBLISH, generation=1)

    def run(solver, **options):
        return ActivityEnvironment().run(PlanningActivities(house.store, solver, **options).place_model, stage)

    return run


@pytest.fixture
def large(monkeypatch):
    """Let every model be a large one."""
    monkeypatch.setattr(activities, "SMALL_CELLS", 0)


def test_a_small_model_needs_no_solver(place):
    solver = Told()
    assert place(solver).feasible
    assert solver.asked == []


@pytest.mark.usefixtures("large")
def test_a_large_model_is_placed_by_the_solver_as_a_small_one_would_be(place, house):
    solver = Told()
    assert place(solver).feasible
    assert solver.asked == ["ranker"]
    with house.store.read() as unit:
        assert unit.placement("ranker").replicas


@pytest.mark.usefixtures("large", "subprocesses")
def test_a_process_places_a_large_model(place):
    assert place(ProcessSolver()).feasible


@pytest.mark.usefixtures("large")
def test_a_search_that_its_limit_ends_refuses_the_change(place):
    found = place(Told(SolveFailed("the planner took longer than 140 s and was ended")))
    assert (found.feasible, found.reason) == (False, Reason.PLANNER_FAILED)
    assert found.message == "the planner took longer than 140 s and was ended"


@pytest.mark.usefixtures("large")
def test_a_search_that_died_is_an_unforeseen_error_of_which_few_are_tried_again(place):
    with pytest.raises(SearchDied, match="was killed"):
        place(Told(SolveFailed("the planner was killed", died=True)))


@pytest.mark.usefixtures("large")
def test_a_search_takes_a_slot_of_its_owners_share(place):
    queue = ActivityEnvironment().info.task_queue
    shares = OwnerShares({queue: 4})
    assert place(Told(shares=shares), shares=shares).feasible
    assert not shares._held


@pytest.mark.parametrize("cells", [0, activities.SMALL_CELLS])
def test_beyond_its_owners_share_no_model_is_placed(place, monkeypatch, cells):
    monkeypatch.setattr(activities, "SMALL_CELLS", cells)
    queue = ActivityEnvironment().info.task_queue
    shares = OwnerShares({queue: 4})

    def fill():
        with shares.hold(OWNER):
            place(ThreadSolver(), shares=shares)

    environment = ActivityEnvironment()
    environment.info = replace(environment.info, task_queue=queue)
    with pytest.raises(ShareTaken):
        environment.run(fill)


def test_an_attempt_has_time_for_two_searches_that_end_at_their_hard_limit():
    """The second one is without budgets: it says what would suffice. Else each attempt would end before it."""
    search = PlanningPolicy().place_limits.time_seconds * SEARCHES + GRACE_SECONDS
    assert 2 * search < PLACEMENT_LIMIT.total_seconds()
