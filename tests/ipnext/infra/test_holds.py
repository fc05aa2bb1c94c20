"""How the holds of a host go from one set to another."""

import pytest

from ipnext.infra.holds import generations, host_holds, routable, with_both, without
from ipnext.model.deployment import HeldGeneration


@pytest.fixture
def holds(builder):
    return lambda wanted: host_holds(builder("m").deployment(wanted))


def numbers(holds):
    return {held.snapshot: held.generations for held in holds.holds}


@pytest.mark.parametrize(
    ("told", "wanted", "both"),
    [
        ({1: (1,)}, {2: (2,)}, {1: (1,), 2: (2,)}),
        ({1: (1,)}, {1: (1, 2)}, {1: (1, 2)}),
        ({1: (1, 2)}, {1: (2,)}, {1: (1, 2)}),
        ({1: (1,)}, {1: (1,)}, {1: (1,)}),
        ({1: (1, 2)}, {3: (2,)}, {1: (1,), 3: (2,)}),
        ({1: (1,)}, {3: (1,)}, {3: (1,)}),
    ],
)
def test_old_and_new_are_held_side_by_side_with_one_snapshot_for_each_generation(holds, told, wanted, both):
    assert numbers(with_both(holds(told), holds(wanted))) == both


def test_what_is_ready_but_no_longer_wanted_gets_no_traffic(holds):
    ready = tuple(HeldGeneration(model="m", part="dense", generation=n, snapshot=n) for n in (3, 1, 2))
    assert routable(ready, holds({2: (2,), 3: (3,), 4: (4,)})) == (2, 3)


def test_snapshots_can_be_left_out(holds):
    assert generations(without(holds({1: (1,), 2: (2, 3)}), {1})) == {2, 3}
