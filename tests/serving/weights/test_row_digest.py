"""The row digest follows every change of rows, and nothing that happens to rows by accident leaves it as it was."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.weights.row_changes import Rows, changed_rows, digest_after, write_rows
from serving.weights.row_digest import ZERO, add_digests, as_text, digest_of_rows, from_text, subtract_digests

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
SHAPES = [(), (1,), (7,), (5, 1), (6, 3), (4, 2, 5), (3, 8), (0, 4), (4, 0), (1000, 33)]


def drawn(shape, dtype, seed=0):
    random = np.random.default_rng(seed)
    return torch.from_numpy(np.asarray(random.integers(0, 100, shape))).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_changed_rows_written_and_followed_give_the_new_tensor_and_its_digest(shape, dtype):
    before, after = drawn(shape, dtype, 1), drawn(shape, dtype, 2)
    rows = changed_rows(before, after)
    written = before.clone()
    write_rows(written, rows)
    assert torch.equal(written, after)
    assert digest_after(digest_of_rows(before), before, rows) == digest_of_rows(after)


@given(st.sets(st.integers(0, 199)), st.integers(0, 2**32 - 1))
def test_any_set_of_changed_rows_is_found_and_followed(indices, seed):
    before = torch.from_numpy(np.random.default_rng(seed).standard_normal((200, 5)))
    after = before.clone()
    chosen = torch.tensor(sorted(indices), dtype=torch.int64)
    after[chosen] = torch.nextafter(after[chosen], torch.tensor(9.0, dtype=torch.float64))
    rows = changed_rows(before, after)
    assert rows.indices.tolist() == sorted(indices)
    assert digest_after(digest_of_rows(before), before, rows) == digest_of_rows(after)


def test_rows_may_be_added_in_any_parts_and_order():
    table = drawn((5000, 33), torch.float32)
    order = torch.from_numpy(np.random.default_rng(3).permutation(5000))
    total = ZERO
    for part in order.split(700):
        total = add_digests(total, digest_of_rows(table[part], part))
    assert total == digest_of_rows(table)
    assert subtract_digests(total, digest_of_rows(table)) == ZERO


def test_nan_and_negative_zero_are_told_apart_by_their_bits():
    before = torch.tensor([[0.0], [float("nan")], [1.0]])
    after = torch.tensor([[-0.0], [float("nan")], [1.0]])
    assert changed_rows(before, after).indices.tolist() == [0]
    assert digest_of_rows(before) != digest_of_rows(after)


def swapped(table):
    table[[3, 4]] = table[[4, 3]]


def signs_of_a_row(table):
    table[5] *= -1


def signs_of_two_words(table):
    table[5, 1] *= -1
    table[5, 3] *= -1


def columns(table):
    table[5, [0, 2]] = table[5, [2, 0]]


def doubled(table):
    table[6] = table[7]


def shifted(table):
    table[:] = table.roll(1, 0)


def zeroed(table):
    table[8] = 0


def one_bit(table):
    table.view(torch.int32)[9, 9] ^= 1


@pytest.mark.parametrize(
    "accident", [swapped, signs_of_a_row, signs_of_two_words, columns, doubled, shifted, zeroed, one_bit]
)
@pytest.mark.parametrize("width", [16, 17])
def test_an_accident_to_rows_changes_both_lanes(accident, width):
    table = torch.from_numpy(np.random.default_rng(4).standard_normal((50, width)).astype(np.float32))
    before = digest_of_rows(table)
    accident(table)
    after = digest_of_rows(table)
    assert all(left != right for left, right in zip(before, after, strict=True))


def test_single_bits_of_rows_and_places_spread_over_the_digest():
    """Flips of any one bit give digests that differ in about half of their bits, and never in a few only."""
    table = torch.zeros(1, 4, dtype=torch.int64)
    plain = digest_of_rows(table)
    distances = []
    for word in range(4):
        for bit in range(63):
            flipped = table.clone()
            flipped[0, word] = 1 << bit
            other = digest_of_rows(flipped)
            distances += [(a ^ b).bit_count() for a, b in zip(plain, other, strict=True)]
    assert 30 < np.mean(distances) < 34
    assert min(distances) > 10


def test_equal_rows_at_other_places_have_other_hashes():
    row = torch.ones(1, 4)
    digests = {digest_of_rows(row, torch.tensor([place])) for place in range(10_000)}
    assert len(digests) == 10_000


def test_a_digest_is_32_digits_and_comes_back():
    digest = (1, 2**64 - 1)
    assert as_text(digest) == "0000000000000001ffffffffffffffff"
    assert from_text(as_text(digest)) == digest


def test_no_rows_change_nothing():
    table = drawn((4, 3), torch.float32)
    rows = Rows(torch.empty(0, dtype=torch.int64), table[:0])
    assert digest_after(digest_of_rows(table), table, rows) == digest_of_rows(table)
