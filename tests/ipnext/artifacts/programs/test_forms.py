"""Messages about a stranger's values."""

import pytest

from ipnext.artifacts.programs.forms import UnsafeProgram, format_value, refuse

pytestmark = pytest.mark.trust


def nested(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


LARGE = {
    "a deep list": lambda: nested(100_000),
    "a deep list in a dictionary": lambda: {"a": nested(100_000)},
    "a long text": lambda: "x" * 10**6,
    "a long list": lambda: list(range(10**6)),
    "a long number": lambda: 10**4000,
}
"""Made by the test: as parameters they would be made, and kept, by each process that collects tests."""


@pytest.mark.parametrize("made", LARGE.values(), ids=LARGE)
def test_a_message_is_short_whatever_the_value_is(made):
    value = made()
    assert len(format_value(value)) <= 80
    with pytest.raises(UnsafeProgram, match="must be a name, got"):
        refuse("a name", value)


def test_a_small_value_is_shown_whole():
    assert format_value({"b": [1, "x"], "a": None}) == "{'a': None, 'b': [1, 'x']}"
