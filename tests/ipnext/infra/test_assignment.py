"""How the holds of a host go from one set to another."""

import pytest

from ipnext.infra.assignment import (
    assign_processes,
    endpoints,
    engines_of,
    generations,
    host_holds,
    needs_swap,
    pieces,
    replica_sets,
    routable,
    with_both,
    without,
)
from ipnext.model.deployment.deployment import AssignedSnapshot
from ipnext.model.deployment.host_control import HeldGeneration, HostHolds


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


def shadowed(builder, wanted, shadow, **fields):
    """A replica set with processes of a shadow among its own."""
    return builder("m").deployment(wanted).model_copy(update={"shadow": shadow, **fields})


def sets_of(deployment):
    return [
        (found.replicas, {held.snapshot: held.generations for held in found.holds})
        for found in replica_sets(deployment)
    ]


def test_a_shadow_has_processes_that_hold_it_alone(builder):
    deployment = shadowed(builder, {1: (1, 2), 3: (3,)}, {3: 1}, replicas=4)
    assert sets_of(deployment) == [(3, {1: (1, 2)}), (1, {3: (3,)})]
    assert (deployment.replicas_of(2), deployment.replicas_of(3)) == (3, 1)
    apart = shadowed(builder, {1: (1,), 2: (2,), 3: (3,)}, {3: 1}, replicas=4, own={1: 1, 2: 2})
    assert sets_of(apart) == [(1, {1: (1,)}), (2, {2: (2,)}), (1, {3: (3,)})]


def test_no_process_of_a_shadow_is_taken_for_clients_and_none_of_theirs_for_it(builder):
    deployment = shadowed(builder, {1: (1,), 3: (3,)}, {3: 1}, replicas=3)
    clients, shadow = (found.digests for found in replica_sets(deployment))
    assert assign_processes(replica_sets(deployment), [("s", shadow), ("a", clients)]) == ([["a"], ["s"]], [])
    same = shadowed(builder, {1: (1, 3)}, {3: 1}, replicas=2)
    assert assign_processes(replica_sets(same), [("a", clients)]) == ([["a"], []], [])


@pytest.fixture
def segments(builder):
    """Holds of a part that is called in two stages: segment -> {snapshot: generations}."""
    deployment = builder("m").deployment({1: (1,)})

    def make(wanted):
        held = tuple(
            AssignedSnapshot(part=part, snapshot=number, digest="0" * 64, uri="file:///s", generations=generations)
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
    assert assign_processes(sets, staying) == ([["a"], ["c"]], ["b", "e"])


def test_a_set_that_holds_everything_takes_any_process_up_to_its_count(builder):
    sets = replica_sets(builder("m").deployment({1: (1,), 2: (2,)}, replicas=2))
    staying = [(name, frozenset()) for name in "abc"]
    assert assign_processes(sets, staying) == ([["a", "b"]], ["c"])


def test_generations_of_the_same_snapshots_share_their_processes(builder):
    (both, third) = apart(builder("m").deployment({1: (1, 2), 2: (3,)}), {1: 1, 2: 2, 3: 4})
    assert [(s.replicas, [h.generations for h in s.holds]) for s in (both, third)] == [(3, [(1, 2)]), (4, [(3,)])]


def test_a_segment_that_generations_share_does_not_bring_them_into_one_process(builder):
    deployment = builder("m").deployment({1: (1,)})
    holds = tuple(
        AssignedSnapshot(part=part, snapshot=number, digest=f"{part}{number}", uri="u", generations=generations)
        for part, number, generations in (("a-s1", 1, (1, 2)), ("a-s3", 1, (1,)), ("a-s3", 2, (2,)))
    )
    sets = apart(deployment.model_copy(update={"holds": holds}), {1: 1, 2: 1})
    assert [s.digests for s in sets] == [{"a-s11", "a-s31"}, {"a-s11", "a-s32"}]
    assert assign_processes(sets, [("x", sets[0].digests), ("y", sets[0].digests)]) == ([["x"], []], ["y"])


def test_the_engines_of_a_part_are_known_by_generation():
    found = [
        HeldGeneration(model="m", part=part, generation=generation, snapshot=1, url=url)
        for part, generation, url in (("llm", 1, "http://a"), ("llm", 2, "http://b"), ("llm", 3, None), ("x", 1, "c"))
    ]
    assert engines_of("llm", found) == {1: "http://a", 2: "http://b"}


def test_a_router_is_told_by_which_name_each_engine_answers(builder):
    holds = host_holds(builder("m").deployment({1: (1,), 2: (2,)}))
    ready = [
        HeldGeneration(model="m", part="dense", generation=n, snapshot=n, url=f"unix:///{n}", answers_as=f"m@{n}")
        for n in (1, 2)
    ]
    found = endpoints(holds, (1, 2), ready, host="http://host")
    assert {one.url: one.answers_as for one in found} == {"unix:///1": "m@1", "unix:///2": "m@2"}
    (plain,) = endpoints(holds, (1, 2), [], host="http://host")
    assert plain.answers_as is None


@pytest.fixture
def adapted(builder):
    """One base snapshot in processes of its own for each generation: 1 without adapters, 2 with one."""
    deployment = builder("m").deployment({1: (1,)})
    base = {"snapshot": 1, "digest": "a" * 64, "uri": "file:///s"}
    holds = (
        AssignedSnapshot(**base, generations=(1,)),
        AssignedSnapshot(**base, generations=(2,), adapters=1),
        AssignedSnapshot(part="style", snapshot=1, digest="b" * 64, uri="file:///t", generations=(2,), adapter=True),
    )
    return deployment.model_copy(update={"holds": holds})


def test_an_adapter_is_told_with_the_part_that_it_stands_on(adapted):
    told = [(held.part, held.generations, held.adapter_of, held.adapters) for held in host_holds(adapted).holds]
    assert told == [("dense", (1,), None, 0), ("dense", (2,), None, 1), ("style", (2,), "dense", 0)]


def test_a_process_with_room_for_adapters_is_not_taken_for_one_without(adapted):
    sets = replica_sets(adapted.model_copy(update={"replicas": 2, "own": {1: 1, 2: 1}}))
    with_room = next(found for found in sets if any(held.adapter for held in found.holds))
    members, rest = assign_processes(sets, [("with", with_room.digests)])
    assert [found for found, wanted in zip(members, sets, strict=True) if wanted is with_room] == [["with"]]
    assert rest == []
    assert sum(map(len, members)) == 1


def test_one_snapshot_with_and_without_adapters_is_held_twice_on_the_way(adapted):
    without_any, with_one, style = adapted.holds
    told, wanted = host_holds(adapted, (without_any,)), host_holds(adapted, (with_one, style))
    both = with_both(told, wanted)
    assert [(held.part, held.adapters, held.generations) for held in both.holds] == [
        ("dense", 0, (1,)),
        ("dense", 1, (2,)),
        ("style", 0, (2,)),
    ]


def swapped(deployment, own, staying):
    return assign_processes(apart(deployment, own), staying, swap=True)


def test_what_has_no_place_goes_over_to_a_set_that_lacks_some_and_the_rest_ends(builder):
    deployment = builder("m").deployment({1: (1,), 2: (2,)})
    three = [(name, frozenset({"d1"})) for name in "abc"]
    assert swapped(deployment, {1: 2, 2: 1}, three) == ([["a", "b"], ["c"]], [])
    assert swapped(deployment, {1: 1, 2: 1}, three) == ([["a"], ["b"]], ["c"])
    assert swapped(deployment, {1: 1, 2: 4}, three) == ([["a"], ["b", "c"]], [])
    assert swapped(deployment, {2: 3}, [("a", frozenset({"d1"})), ("b", frozenset({"d2"}))]) == ([["b", "a"]], [])


def test_who_is_told_another_snapshot_goes_over_and_who_is_told_other_generations_does_not(builder):
    one, renamed, two = (host_holds(builder("m").deployment(h)) for h in ({1: (1,)}, {1: (1, 3)}, {2: (2,)}))
    assert needs_swap(one, two)
    assert not needs_swap(one, renamed)
    assert not needs_swap(HostHolds(holds=()), two), "it holds nothing that could make room"
    assert not needs_swap(HostHolds(holds=(*one.holds, *two.holds)), two)
