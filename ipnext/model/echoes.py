"""A client's text and values as errors repeat them: cut, at a cost that their size doesn't change."""

import reprlib
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

MESSAGE_CHARACTERS: Final = 4_000
"""Of an error's message."""
PLACE_CHARACTERS: Final = 200
"""Of the place of a field in a document."""
VALUE_CHARACTERS: Final = 80
_CUT: Final = "..."
_LEVELS: Final = 4
_ITEMS: Final = 16


def cut_text(text: str, most: int = MESSAGE_CHARACTERS) -> str:
    """Return a text of at most `most` characters."""
    return text if len(text) <= most else text[: most - len(_CUT)] + _CUT


def show_value(value: object) -> str:
    """Return a value of JSON in Python's form, cut. Of a large one only the first members are read."""
    return cut_text(_SHOWN.repr(value), VALUE_CHARACTERS)


def join_steps(steps: Iterable[str | int]) -> str:
    """Return the place of a field, by the names and numbers that lead to it."""
    return cut_text(".".join(str(step)[:PLACE_CHARACTERS] for step in steps), PLACE_CHARACTERS)


class _Shown(reprlib.Repr):
    """Values cut by level, members and characters."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = _LEVELS
        self.maxlist = self.maxdict = _ITEMS
        self.maxlong = self.maxother = VALUE_CHARACTERS

    def repr_str(self, x: str, level: int) -> str:
        """Return a text in quotes; `level` is how many levels may still be shown."""
        del level
        return repr(x if len(x) <= VALUE_CHARACTERS else x[:VALUE_CHARACTERS])

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Return an object with its first members, in their order: the base class sorts all of them."""
        if level <= 0 and x:
            return f"{{{_CUT}}}"
        shown = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), self.maxdict)]
        return f"{{{', '.join([*shown, _CUT] if len(x) > self.maxdict else shown)}}}"


_SHOWN: Final = _Shown()
