"""Figures, as people read them."""

import pytest

from ipnext.cli.output import number


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0, "0"),
        (1, "1"),
        (1234.5, "1,234.5"),
        (2.456, "2.46"),
        (0.25, "0.25"),
        (0.1, "0.1"),
        (0.09, "0.09"),
        (0.001, "0.001"),
        (0.000123, "0.00012"),
        (-0.004, "-0.004"),
        (0.000001, "0.000001"),
        (1e-13, "<0.000001"),
        (-1e-13, ">-0.000001"),
    ],
)
def test_no_figure_but_zero_is_shown_as_zero(value, shown):
    assert number(value) == shown
