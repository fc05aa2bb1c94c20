"""The order of route tables: no replicas are sent more meanwhile than they carry, as far as there is such an order."""

from typing import Any

import pytest

from activities.transition.route_updates import between, follow_routes
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare

PARTS = {1: ("p",), 2: ("p",)}


def share(to: str, generation: int = 1, fraction: float = 1.0) -> RouteShare:
    return RouteShare(to=to, generation=generation, fraction=fraction)


def held(region: str, replicas: int, *generations: int, part: str = "p", own: dict[int, int] | None = None) -> Any:
    """Replicas of 10 requests/s each."""
    key = DeploymentKey(model="m", part=part, region=region, hardware="cpu")
    holds = tuple(AssignedSnapshot(snapshot=g, digest="d", uri="u", generations=(g,)) for g in generations or (1,))
    return Deployment(key=key, replicas=replicas, engine="torch", units=1.0, qps=10.0, holds=holds, own=own or {})


def sent(now, then, deployments, demand=None, parts=PARTS):
    """What each region's generations are sent after each table, in requests/s."""
    demand, at, told = demand or {"a": 10.0, "b": 10.0, "c": 10.0}, dict(now), []
    for region, shares in follow_routes(now, then, deployments, demand=demand, parts=parts).tables:
        at[region] = shares
        load: dict[tuple[str, int], float] = {}
        for origin, found in at.items():
            for one in found:
                load[one.to, one.generation] = load.get((one.to, one.generation), 0.0) + one.fraction * demand[origin]
        told.append((region, load))
    assert at == {**now, **then}
    return told


def test_who_leaves_a_region_goes_before_who_comes_to_it():
    now = {"a": (share("a"),), "b": (share("b"),)}
    then = {"a": (share("b"),), "b": (share("c"),)}

    told = sent(now, then, [held(region, 1) for region in "abc"])

    assert [region for region, _ in told] == ["b", "a"]
    assert all(qps <= 10.0 for _, load in told for qps in load.values())


def test_each_that_leaves_makes_room_for_one_that_comes():
    now = {**dict.fromkeys("ab", (share("a"),)), **dict.fromkeys("cd", (share("b"),))}
    then = {**dict.fromkeys("ab", (share("b"),)), **dict.fromkeys("cd", (share("c"),))}

    told = sent(now, then, [held(region, 2) for region in "abc"], dict.fromkeys("abcd", 10.0))

    assert len(told) == 4
    assert all(qps <= 20.0 for _, load in told for qps in load.values())


def test_two_that_swap_go_in_pieces_as_large_as_the_room():
    now, then = {"a": (share("a"),), "b": (share("b"),)}, {"a": (share("b"),), "b": (share("a"),)}

    told = sent(now, then, [held("a", 1), held("b", 2)], {"a": 10.0, "b": 15.0})

    assert all(load.get((region, 1), 0.0) <= qps for _, load in told for region, qps in (("a", 15.0), ("b", 20.0)))
    assert [region for region, _ in told] == ["a", "b"] * 2


def test_two_that_swap_without_any_room_go_in_small_pieces():
    now, then = {"a": (share("a"),), "b": (share("b"),)}, {"a": (share("b"),), "b": (share("a"),)}

    told = sent(now, then, [held("a", 1), held("b", 1)])

    assert len(told) == 32
    assert max(max(load.values()) for _, load in told) == pytest.approx(10.0 + 10.0 / 16)
    demand = {"a": 10.0, "b": 10.0}
    beyond = follow_routes(now, then, [held("a", 1), held("b", 1)], demand=demand, parts=PARTS).beyond
    assert beyond == pytest.approx(2 * 10.0 / 16)  # of the generation, and of the processes that hold it


def test_gateways_that_stay_are_counted():
    """Users of `c` are answered in a, too, so no whole gateway fits there before the other one has left."""
    now = {"a": (share("a"),), "b": (share("b"),), "c": (share("a"),)}
    then = {"a": (share("b"),), "b": (share("a"),)}

    told = sent(now, then, [held("a", 2), held("b", 1)])
    roomy = sent(now, then, [held("a", 3), held("b", 1)])

    assert len(told) == 32
    assert [region for region, _ in roomy] == ["b", "a"]


def test_processes_that_hold_two_generations_carry_them_together():
    """The generation that comes has room for itself, but the processes have none for both regions' users."""
    now = {"a": (share("a", 1),), "b": (share("b", 1),)}
    then = {"a": (share("b", 2),), "b": (share("a", 2),)}
    beside = [held("a", 1, 1, 2), held("b", 1, 1, 2)]
    apart = [held("a", 2, 1, 2, own={1: 1, 2: 1}), held("b", 2, 1, 2, own={1: 1, 2: 1})]

    assert len(sent(now, then, beside)) == 32
    assert len(sent(now, then, apart)) == 2


def test_a_part_that_a_generation_does_not_call_carries_nothing_of_it():
    now, then = {"a": (share("a"),), "b": (share("b"),)}, {"a": (share("b"),), "b": (share("a"),)}
    other = [held(region, 1, part="q") for region in "ab"]

    assert len(sent(now, then, [held("a", 2), held("b", 2), *other])) == 2


def test_one_gateway_that_moves_needs_no_order():
    now = {"a": (share("a"),), "b": (share("b"),)}
    assert sent(now, {"a": (share("b"),), "b": (share("b"),)}, []) == [("a", {("b", 1): 20.0})]


def test_a_gateway_without_demand_stands_in_nobodys_way():
    now, then = {"a": (share("a"),), "b": (share("b"),)}, {"a": (share("b"),), "b": (share("a"),)}
    assert [region for region, _ in sent(now, then, [held("a", 1), held("b", 1)], {"a": 10.0, "b": 0.0})] == ["a", "b"]


def test_a_piece_lies_on_the_straight_line_and_ends_exactly():
    now, then = (share("a", 1, 0.9), share("a", 2, 0.1)), (share("b", 2),)
    assert between(now, then, 0.25) == (share("a", 1, 0.675), share("a", 2, 0.075), share("b", 2, 0.25))
    assert between(now, then, 1.0) is then
