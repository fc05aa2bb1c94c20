"""Integer weights from fractions."""

from collections.abc import Sequence

WEIGHT_TOTAL = 10_000


def weights(fractions: Sequence[float], total: int) -> tuple[int, ...]:
    """Return positive integers in proportion to positive fractions, with the sum `total`.

    Fractions need not sum to one: only their ratios count. The largest remainders get the units that rounding leaves
    over; a fraction too small for one unit gets one from the largest. At most `total` fractions.
    """
    whole = sum(fractions)
    exact = [fraction / whole * total for fraction in fractions]
    counts = [max(1, int(value)) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for index in by_remainder[: max(0, total - sum(counts))]:
        counts[index] += 1
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return tuple(counts)
