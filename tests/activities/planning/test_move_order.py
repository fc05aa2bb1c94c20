"""In which order models move: what one frees another takes after it, and nothing is overbooked on the way."""

from hypothesis import given
from hypothesis import strategies as st

from activities.planning.move_order import SupplyMove, fits, move_order

CELLS = (("a", "cpu"), ("b", "cpu"), ("c", "gpu"))

units = st.dictionaries(st.sampled_from(CELLS), st.integers(1, 9).map(float), max_size=2)


@st.composite
def fleets(draw):
    moves = [SupplyMove(f"m{number:02}", draw(units), draw(units)) for number in range(draw(st.integers(0, 12)))]
    return moves, draw(st.dictionaries(st.sampled_from(CELLS), st.integers(0, 15).map(float)))


@given(fleets())
def test_every_model_moves_once(found):
    moves, free = found
    order = move_order(moves, free)
    assert sorted(order) == sorted(move.model for move in moves)
    assert move_order(list(reversed(moves)), free) == order


@given(fleets())
def test_one_after_the_other_in_this_order_each_fits_as_far_as_any_order_goes_on(found):
    moves, free = found
    by_name = {move.model: move for move in moves}
    left = dict(free)
    order = list(move_order(moves, free))
    while order and fits(by_name[order[0]], left):
        move = by_name[order.pop(0)]
        for cell, amount in move.grows.items():
            left[cell] = left.get(cell, 0.0) - amount
        for cell, amount in move.shrinks.items():
            left[cell] = left.get(cell, 0.0) + amount
    assert not any(fits(by_name[model], left) for model in order), "the rest fits in no order"


def test_a_chain_through_full_cells_is_walked_from_its_free_end():
    chain = [SupplyMove(f"m{i}", {(f"r{i + 1}", "cpu"): 10.0}, {(f"r{i}", "cpu"): 10.0}) for i in range(50)]
    assert move_order(chain, {("r50", "cpu"): 10.0}) == tuple(f"m{i}" for i in reversed(range(50)))


def test_who_frees_most_goes_first():
    takes, gives = SupplyMove("a", {CELLS[0]: 1.0}, {}), SupplyMove("b", {}, {CELLS[0]: 5.0})
    assert move_order([takes, gives], {CELLS[0]: 9.0}) == ("b", "a")


def test_a_circle_without_spare_supply_comes_last_and_whole():
    circle = [SupplyMove("a", {CELLS[0]: 5.0}, {CELLS[1]: 5.0}), SupplyMove("b", {CELLS[1]: 5.0}, {CELLS[0]: 5.0})]
    free = SupplyMove("c", {CELLS[2]: 1.0}, {})
    assert move_order([*circle, free], {CELLS[2]: 1.0}) == ("c", "a", "b")
    assert move_order([*circle, free], {CELLS[2]: 1.0, CELLS[0]: 5.0}) == ("a", "c", "b")
