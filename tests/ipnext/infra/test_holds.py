"""How the holds of a host go from one set to another."""

import pytest

from ipnext.infra.holds import assigned, generations, host_holds, replica_sets, routable, with_both, without
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


def own(deployment, **replicas):
    holds = tuple(held.model_copy(update={"replicas": replicas[f"s{held.snapshot}"]}) for held in deployment.holds)
    return replica_sets(deployment.model_copy(update={"holds": holds}))


def test_processes_that_hold_a_snapshot_stay_with_it_and_the_rest_has_no_place(builder):
    sets = own(builder("m").deployment({1: (1,), 2: (2,)}), s1=1, s2=2)
    staying = [("a", frozenset({"d1"})), ("b", frozenset({"d1"})), ("c", frozenset({"d1", "d2"})), ("e", frozenset())]
    assert assigned(sets, staying) == ([["a"], ["c"]], ["b", "e"])


def test_a_set_that_holds_everything_takes_any_process_up_to_its_count(builder):
    sets = replica_sets(builder("m").deployment({1: (1,), 2: (2,)}, replicas=2))
    staying = [(name, frozenset()) for name in "abc"]
    assert assigned(sets, staying) == ([["a", "b"]], ["c"])
