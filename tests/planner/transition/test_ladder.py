"""The ladder of searches: which one helps, in which order, and what a rung returns."""

from dataclasses import dataclass, field

import pytest

from planner.transition.effort import Effort
from planner.transition.instance import TransitionInstance
from planner.transition.model_state import group_by_model
from planner.transition.planner import StepPolicy, build_ladder, climb_ladder
from planner.transition.searches.search import Rung
from planner.transition.trajectory import Trajectory

REPLACE = StepPolicy(refresh="replace")
DIPS = {"x": 0.3, "y": 0.3}


def begin(stated, origin, to):
    """The start, and the goal."""
    states = group_by_model(origin)
    instance = TransitionInstance(stated, {model.model: REPLACE for model in stated.models}, states)
    return Trajectory.begin(instance, states), group_by_model(to)


def in_regions(state, regions, replicas=10):
    counts = {f"{model}/p/{region}/h/1": replicas for model, region in regions.items()}
    return state(counts, {f"{model}/a/{region}/1": 1.0 for model, region in regions.items()})


def circle(problem, model, state, supply, demand=1000.0):
    """Two models of ten replicas change places."""
    stated = problem(
        *(model(name, {"a": demand}) for name in "xy"), supply=supply, regions=sorted(key[0] for key in supply)
    )
    return begin(stated, in_regions(state, {"x": "a", "y": "b"}), in_regions(state, {"x": "b", "y": "a"}))


@pytest.fixture
def one_after_another(problem, model, state):
    """x needs the units on which y would start its new generation, so y has to go first."""
    stated = problem(
        model("x", {"a": 100.0}, parts={"p": {"h": (0.5, 20.0)}}),
        model("y", {"a": 1.0}, parts={"p": {"h": (2.0, 1.0)}}),
        supply={"a/h": 10.5},
    )
    shares = {"x/a/a/1": 1.0}
    origin = state({"x/p/a/h/1": 5, "y/p/a/h/1": 1}, shares | {"y/a/a/1": 1.0})
    to = state({"x/p/a/h/1": 7, "y/p/a/h/2": 3}, shares | {"y/a/a/2": 1.0})
    return begin(stated, origin, to)


@pytest.fixture
def region_by_region(problem, model, state):
    """y waits for units of x in a, and x, as a whole, for units of y in b; c has room for a part of x."""
    stated = problem(
        model("x", {"a": 100.0, "b": 100.0}),
        model("y", {"b": 100.0}),
        supply={"a/h": 1.0, "b/h": 1.0, "c/h": 2.0},
        regions=["a", "b", "c"],
    )
    origin = state({"x/p/a/h/1": 1, "x/p/c/h/1": 1, "y/p/b/h/1": 1}, {"x/a/a/1": 1.0, "x/b/c/1": 1.0, "y/b/b/1": 1.0})
    to = state({"x/p/b/h/1": 1, "x/p/c/h/1": 1, "y/p/a/h/1": 1}, {"x/a/c/1": 1.0, "x/b/b/1": 1.0, "y/b/a/1": 1.0})
    return begin(stated, origin, to)


@pytest.fixture
def spare_capacity(problem, model, state):
    return circle(problem, model, state, {"a/h": 10.0, "b/h": 10.0}, demand=800.0)


@pytest.fixture
def third_region(problem, model, state):
    return circle(problem, model, state, {"a/h": 10.0, "b/h": 10.0, "c/h": 10.0})


@pytest.fixture
def full(problem, model, state):
    return circle(problem, model, state, {"a/h": 10.0, "b/h": 10.0})


def first_that_helps(start, goal):
    """Name of the first search that reaches the goal from the start, each by itself."""
    rungs = [Rung((search,), rung.effort) for rung in build_ladder(DIPS) for search in rung.searches]
    return next(type(rung.searches[0]).__name__ for rung in rungs if rung.climb([start], goal) is not None)


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("one_after_another", "OrderSearch"),
        ("spare_capacity", "TightEndSearch"),
        ("region_by_region", "SplitMoveSearch"),
        ("third_region", "DetourSearch"),
        ("full", "DipSearch"),
    ],
)
def test_every_search_helps_in_a_case_in_which_no_earlier_one_does(request, case, name):
    start, goal = request.getfixturevalue(case)
    assert start.advance(goal).pending_models(goal) != [], "blocked without it"
    assert first_that_helps(start, goal) == name


def test_without_an_allowed_dip_no_search_helps_in_full_regions(full):
    start, goal = full
    assert climb_ladder(start, start.advance(goal), goal) is None


def test_models_that_are_not_blocked_take_the_straight_paths(roomy):
    start, goal = roomy
    straight = start.advance(goal)
    assert climb_ladder(start, straight, goal) is straight


@pytest.fixture
def roomy(problem, model, state):
    return circle(problem, model, state, {"a/h": 20.0, "b/h": 20.0})


@dataclass
class Found:
    """A search with this result, and the trajectories that it was asked to improve."""

    result: Trajectory | None
    asked: list[Trajectory] = field(default_factory=list)

    def improve(self, trajectory, _goal):
        trajectory.effort.spend(1)
        self.asked.append(trajectory)
        return self.result


def test_a_rung_tries_all_searches_from_one_beginning_before_the_next_one(roomy):
    start, goal = roomy
    blocked = start.with_dips({("x", "p", "a"): 0.0})
    order = []

    class Noted(Found):
        def improve(self, trajectory, _goal):
            order.append((self.result, trajectory.dips == blocked.dips))

    assert Rung((Noted("first"), Noted("second")), 10.0).climb([blocked, start], goal) is None
    assert order == [("first", True), ("second", True), ("first", False), ("second", False)]


def test_a_rung_ends_with_the_first_trajectory_to_the_goal(roomy):
    start, goal = roomy
    early, right, late = Found(start), Found(start.advance(goal)), Found(None)
    assert Rung((early, right, late), 10.0).climb([start, start], goal) is right.result
    assert (len(early.asked), len(right.asked), late.asked) == (1, 1, [])


def test_what_a_search_found_that_ends_before_the_goal_is_dropped(roomy):
    start, goal = roomy
    partial = Found(start.advance({**start.states, "x": goal["x"]}))
    assert partial.result.pending_models(goal) == ["y"]
    assert Rung((partial, partial), 10.0).climb([start], goal) is None
    assert [trajectory.states for trajectory in partial.asked] == [start.states] * 2


def test_of_two_dips_the_smaller_one_is_taken_and_none_at_all_before_any(roomy):
    start, goal = roomy
    arrived, place = start.advance(goal), ("x", "p", "a")
    large, small = Found(arrived.with_dips({place: 0.4})), Found(arrived.with_dips({place: 0.2}))
    assert Rung((large, small), 10.0).climb([start], goal) is small.result
    assert Rung((small, large), 10.0).climb([start], goal) is small.result
    assert Rung((small, Found(arrived)), 10.0).climb([start], goal) is arrived


def test_searches_of_a_rung_share_its_effort_and_a_climb_begins_with_all_of_it(roomy):
    start, goal = roomy
    first, second = Found(None), Found(None)
    rung = Rung((first, second), 3.0)
    rung.climb([start, start], goal)
    assert len({id(trajectory.effort) for trajectory in first.asked + second.asked}) == 1
    assert second.asked[-1].effort.is_spent
    rung.climb([start], goal)
    assert not second.asked[-1].effort.is_spent


def test_a_trajectory_without_effort_stays(roomy):
    start, goal = roomy
    assert start.with_effort(Effort(0.0)).advance(goal).schedules == ()
