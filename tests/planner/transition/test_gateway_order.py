"""Gateways follow one by one: in the order, and in as few pieces, that send the least beyond what is carried."""

from itertools import pairwise, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.transition import gateway_order as module
from planner.transition.gateway_order import PIECES, GatewayShift, order_gateways

A, B, C = (("p", region, 1) for region in "abc")
AMOUNTS = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0, 5.0, 10.0])


def swapping(qps=10.0, other=None):
    """Users of `u` go from a to b, those of `v` from b to a."""
    other = qps if other is None else other
    return {A: qps, B: other}, [GatewayShift("u", {A: -qps, B: qps}), GatewayShift("v", {B: -other, A: other})]


def order(found):
    return [step.gateway for step in found.steps]


def beyond(load, moves, able):
    """Requests/s beyond what places may be sent at the worst moment, the moves being made in this order."""
    end = {place: load.get(place, 0.0) + sum(m.change.get(place, 0.0) for m in moves) for place in (A, B, C)}
    at, worst = dict(load), 0.0
    for move in moves:
        at = {place: at.get(place, 0.0) + move.change.get(place, 0.0) for place in (A, B, C)}
        may = {place: max(able.get(place, 0.0), load.get(place, 0.0), end[place]) for place in (A, B, C)}
        worst = max(worst, sum(max(0.0, at[place] - may[place]) for place in (A, B, C)))
    return worst


def stepped(load, moves, found):
    """What the places are sent after each step."""
    change, done, at = {m.gateway: m.change for m in moves}, dict.fromkeys((m.gateway for m in moves), 0.0), dict(load)
    for gateway, now in found.steps:
        for place, qps in change[gateway].items():
            at[place] = at.get(place, 0.0) + qps * (now - done[gateway])
        done[gateway] = now
        yield dict(at)


@st.composite
def crossings(draw, most=5):
    """What gateways send to three places now and afterwards, and what these carry: often just the more of both."""
    load, moves = dict.fromkeys((A, B, C), 0.0), []
    for n in range(draw(st.integers(1, most))):
        now, then = ({place: draw(AMOUNTS) for place in (A, B, C)} for _ in range(2))
        moves.append(GatewayShift(f"g{n}", {place: then[place] - now[place] for place in (A, B, C)}))
        load = {place: load[place] + now[place] for place in (A, B, C)}
    end = {place: load[place] + sum(m.change[place] for m in moves) for place in (A, B, C)}
    able = {
        place: max(0.0, max(load[place], end[place]) + draw(st.sampled_from([-3, 0, 0, 1, 4]))) for place in (A, B, C)
    }
    return load, moves, able


def test_who_relieves_a_region_goes_before_who_loads_it():
    """`u` leaves b before `v` comes to it, though its name stands later."""
    load = {A: 10.0, B: 10.0}
    moves = [GatewayShift("a-comes", {A: -10.0, B: 10.0}), GatewayShift("z-leaves", {B: -10.0, C: 10.0})]
    found = order_gateways(load, moves, {A: 10.0, B: 10.0, C: 10.0})
    assert (order(found), found.overload, found.lacking) == (["z-leaves", "a-comes"], 0.0, {})


def test_what_nobody_crosses_keeps_the_order_that_was_given():
    moves = [
        GatewayShift("z", {A: -1.0, B: 1.0}),
        GatewayShift("y", {A: -1.0, C: 1.0}),
        GatewayShift("x", {A: -1.0, B: 1.0}),
    ]
    assert order(order_gateways({A: 3.0}, moves, {})) == ["z", "y", "x"]


def test_a_swap_goes_in_so_few_pieces_as_the_room_allows():
    load, moves = swapping()
    found = order_gateways(load, moves, {A: 12.5, B: 10.0})
    assert found.overload == 0.0
    assert [step.done for step in found.steps] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0]
    assert order(found) == ["v", "u"] * 4


def test_a_swap_without_any_room_lacks_the_least_piece():
    load, moves = swapping()
    found = order_gateways(load, moves, {A: 10.0, B: 10.0}, max_pieces=4)
    assert len(found.steps) == 8
    assert found.overload == pytest.approx(2.5)
    assert sum(found.lacking.values()) == pytest.approx(2.5)


def test_of_two_that_swap_the_one_comes_first_that_goes_where_there_is_more_room():
    load, moves = swapping(10.0, other=2.0)
    found = order_gateways(load, moves, {A: 11.0, B: 10.0}, max_pieces=1)
    assert (order(found), found.overload, found.lacking) == (["v", "u"], 1.0, {A: 1.0})


@pytest.mark.parametrize(("price", "first"), [({A: 3.0}, "u"), ({B: 3.0}, "v")])
def test_what_counts_more_where_it_is_beyond_is_spared(price, first):
    load, moves = swapping()
    found = order_gateways(load, moves, load, max_pieces=1, price=price)
    assert (order(found)[0], found.overload) == (first, 10.0)


def test_what_is_short_at_either_end_is_not_beyond():
    load, moves = swapping()
    assert order_gateways(load, moves, {A: 20.0, B: 3.0}).overload == 0.0


def test_nothing_is_cut_beyond_so_many_steps():
    load, moves = swapping()
    many = [
        GatewayShift(f"{move.gateway}{n}", {p: qps / 10 for p, qps in move.change.items()})
        for n in range(10)
        for move in moves
    ]
    assert len(order_gateways(load, many, load).steps) == len(many)


def test_no_move_is_no_step():
    assert order_gateways({A: 1.0}, [], {}).steps == ()


@given(crossings())
def test_no_order_of_five_gateways_sends_less_beyond(drawn):
    load, moves, able = drawn
    found = order_gateways(load, moves, able, max_pieces=1)
    assert sorted(order(found)) == [move.gateway for move in moves]
    least = min(beyond(load, others, able) for others in permutations(moves))
    in_order = beyond(load, [next(m for m in moves if m.gateway == name) for name in order(found)], able)
    assert found.overload == pytest.approx(least, abs=1e-6)
    assert in_order == pytest.approx(least, abs=1e-6)


@given(crossings(), st.sampled_from([1, *PIECES]))
def test_what_is_lacking_is_enough_for_every_moment(drawn, pieces):
    load, moves, able = drawn
    found = order_gateways(load, moves, able, max_pieces=pieces)
    *_, last = stepped(load, moves, found)
    for at in stepped(load, moves, found):
        for place, qps in at.items():
            assert qps <= max(able[place], load[place], last[place]) + found.lacking.get(place, 0.0) + 1e-6
    assert last == pytest.approx({p: load[p] + sum(m.change[p] for m in moves) for p in load}, abs=1e-6)


@given(crossings())
def test_more_pieces_never_send_more_beyond(drawn):
    found = [order_gateways(*drawn, max_pieces=pieces) for pieces in (1, *PIECES)]
    assert all(more.overload <= fewer.overload + 1e-9 for fewer, more in pairwise(found))


@given(crossings())
def test_with_what_was_lacking_nothing_lacks_any_more(drawn):
    load, moves, able = drawn
    lacking = order_gateways(load, moves, able, max_pieces=8).lacking
    may = {place: max(able[place], load[place], load[place] + sum(m.change[place] for m in moves)) for place in load}
    added = {place: may[place] + lacking.get(place, 0.0) for place in load}
    assert order_gateways(load, moves, added, max_pieces=8).overload == pytest.approx(0.0, abs=1e-6)


@settings(max_examples=20)
@given(crossings(most=8))
def test_a_search_that_is_cut_short_still_makes_every_move(drawn):
    load, moves, able = drawn
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "MAX_LOOKED", 3)
        found = order_gateways(load, moves, able, max_pieces=1)
    assert sorted(order(found)) == sorted(move.gateway for move in moves)
