"""How the holds of a host go from one set to another."""

import pytest

from ipnext.infra.holds import (
    assigned,
    generations,
    host_holds,
    pieces,
    replica_sets,
    routable,
    with_both,
    without,
)
from ipnext.model.deployment import HeldGeneration, HeldSnapshot


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
    assert generations(without(holds({1: (1,), 2: (2, 3)}), {("dense", 1)})) == {2, 3}


@pytest.fixture
def segments(builder):
    """Holds of a part that is called in two stages: segment -> {snapshot: generations}."""
    deployment = builder("m").deployment({1: (1,)})

    def make(wanted):
        held = tuple(
            HeldSnapshot(part=part, snapshot=number, digest="0" * 64, uri="file:///s", generations=generations)
            for part, snapshots in wanted.items()
            for number, generations in snapshots.items()
        )
        return host_holds(deployment.model_copy(update={"holds": held}))

    return make


def ready(*found):
    return tuple(HeldGeneration(model="m", part=part, generation=g, snapshot=1) for part, g in found)


def test_each_segment_is_held_under_its_own_name(segments):
    held = segments({"dense-s1": {1: (1,)}, "dense-s3": {1: (1,)}})
    assert [(h.part, h.snapshot) for h in held.holds] == [("dense-s1", 1), ("dense-s3", 1)]


def test_a_generation_gets_traffic_only_once_all_its_segments_are_ready(segments):
    wanted = segments({"dense-s1": {1: (1, 2)}, "dense-s3": {1: (1,), 2: (2,)}})
    assert routable(ready(("dense-s1", 1), ("dense-s1", 2), ("dense-s3", 2)), wanted) == (2,)


def test_a_graph_may_call_each_segment_for_the_generations_that_have_it(segments):
    wanted = segments({"dense": {4: (3,)}, "dense-s1": {1: (1, 2)}, "dense-s3": {1: (1,), 2: (2,)}})
    assert pieces(wanted, (1, 3)) == {"dense": (3,), "dense-s1": (1,), "dense-s3": (1,)}


def test_another_layout_of_a_part_loads_beside_the_former_one(segments):
    former, wanted = segments({"dense-s1": {1: (1,)}, "dense-s3": {1: (1,)}}), segments({"dense": {1: (2,)}})
    both = with_both(former, wanted)
    assert [(h.part, h.snapshot, h.generations) for h in both.holds] == [
        ("dense", 1, (2,)),
        ("dense-s1", 1, (1,)),
        ("dense-s3", 1, (1,)),
    ]


def test_a_segment_that_failed_is_left_out_alone(segments):
    held = segments({"dense-s1": {1: (1,)}, "dense-s3": {1: (1,)}})
    assert [h.part for h in without(held, {("dense-s3", 1)}).holds] == ["dense-s1"]


def apart(deployment, own):
    return replica_sets(deployment.model_copy(update={"own": own, "replicas": sum(own.values())}))


def test_processes_that_hold_a_snapshot_stay_with_it_and_the_rest_has_no_place(builder):
    sets = apart(builder("m").deployment({1: (1,), 2: (2,)}), {1: 1, 2: 2})
    staying = [("a", frozenset({"d1"})), ("b", frozenset({"d1"})), ("c", frozenset({"d1", "d2"})), ("e", frozenset())]
    assert assigned(sets, staying) == ([["a"], ["c"]], ["b", "e"])


def test_a_set_that_holds_everything_takes_any_process_up_to_its_count(builder):
    sets = replica_sets(builder("m").deployment({1: (1,), 2: (2,)}, replicas=2))
    staying = [(name, frozenset()) for name in "abc"]
    assert assigned(sets, staying) == ([["a", "b"]], ["c"])


def test_generations_of_the_same_snapshots_share_their_processes(builder):
    (both, third) = apart(builder("m").deployment({1: (1, 2), 2: (3,)}), {1: 1, 2: 2, 3: 4})
    assert [(s.replicas, [h.generations for h in s.holds]) for s in (both, third)] == [(3, [(1, 2)]), (4, [(3,)])]


def test_a_segment_that_generations_share_does_not_bring_them_into_one_process(builder):
    deployment = builder("m").deployment({1: (1,)})
    holds = tuple(
        HeldSnapshot(part=part, snapshot=number, digest=f"{part}{number}", uri="u", generations=generations)
        for part, number, generations in (("a-s1", 1, (1, 2)), ("a-s3", 1, (1,)), ("a-s3", 2, (2,)))
    )
    sets = apart(deployment.model_copy(update={"holds": holds}), {1: 1, 2: 1})
    assert [s.digests for s in sets] == [{"a-s11", "a-s31"}, {"a-s11", "a-s32"}]
    assert assigned(sets, [("x", sets[0].digests), ("y", sets[0].digests)]) == ([["x"], []], ["y"])
