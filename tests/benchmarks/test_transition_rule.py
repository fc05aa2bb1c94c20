import pytest

from benchmarks.transition import fleet
from benchmarks.transition.rule import ours, rolling


def test_the_planner_keeps_all_locked_capacity_with_four_replicas_of_surge():
    walk = ours([4, 10, 40], 20)
    assert (walk.steps, walk.surge <= 4, min(walk.locked()) >= 1 - 1e-9) == (20, True, True)


@pytest.mark.parametrize(
    ("way", "sizes", "least"),
    [("sequential", [4, 10, 40], 0.0), ("lag-first", [4, 10, 40], 0.75), ("lag-first", [2, 6, 24], 0.5)],
)
def test_the_baselines_lose_locked_capacity(way, sizes, least):
    assert min(rolling(way, sizes).locked()) == pytest.approx(least)


def test_a_small_fleet_is_measured():
    cells = dict(zip(fleet.HEADS, fleet.row(20, 0.8, 0, 0.3), strict=True))
    assert int(cells["waves"]) <= int(cells["one after another"])
