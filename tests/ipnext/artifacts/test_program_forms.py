"""Messages about a stranger's values."""

import pytest

from ipnext.artifacts.program_forms import UnsafeProgram, refuse, shown


def nested(levels):
    found = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize("value", [nested(100_000), {"a": nested(100_000)}, "x" * 10**6, list(range(10**6)), 10**4000])
def test_a_message_is_short_whatever_the_value_is(value):
    assert len(shown(value)) <= 80
    with pytest.raises(UnsafeProgram, match="must be a name, got"):
        refuse("a name", value)


def test_a_small_value_is_shown_whole():
    assert shown({"b": [1, "x"], "a": None}) == "{'a': None, 'b': [1, 'x']}"
