"""Checks of single figures and names of a document: finite, not too large, printable in one line of text.

Called by `planner.io.problem` on every document. A fleet has millions of them, so they are checked by columns first;
only if something is wrong are they visited with their paths.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from operator import attrgetter
from typing import Any, Literal, NoReturn, get_args, get_origin

import numpy as np

from ipnext.errors import InvalidInput
from ipnext.model.value import LARGEST_FIGURE, Value
from planner.io.json_reader import Place, format_value, path_of

LONGEST_NAME = 256
"""Characters of a name at most."""

NAME_FIELDS = frozenset({"regions", "region", "hardware", "owner", "model", "part", "origin", "to"})
"""Fields whose texts are names; other texts are only for reading."""


def check_leaves(document: Value, *, negative_zero: bool = True) -> None:
    """Raise InvalidInput for a figure beyond 1e12 or NaN, and for a name that is empty, too long or not printable.

    `negative_zero` allows -0.0 as 0.
    """
    if all(_sound(column, negative_zero=negative_zero) for column in _columns([document])):
        return
    for place, leaf in _leaves(document, ()):
        _check_leaf(place, leaf, negative_zero=negative_zero)


def _columns(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yield the leaves below values of one kind, field by field."""
    if not values:
        return
    first = values[0]
    if isinstance(first, tuple):
        yield from _columns(list(chain.from_iterable(values)))
    elif isinstance(first, Value):
        for name, _ in _fields(type(first)):
            yield from _columns([item for item in map(attrgetter(name), values) if item is not None])
    else:
        yield values


def _sound(column: Sequence[Any], *, negative_zero: bool) -> bool:
    if isinstance(column[0], str):
        return all(map(_is_name, set(column)))
    try:
        figures = np.array(column, dtype=np.float64)
    except OverflowError:
        return False
    return bool((np.abs(figures) <= LARGEST_FIGURE).all()) and (negative_zero or not np.signbit(figures).any())


def _leaves(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    """Yield every figure and name below `value` with its location, in the order of the document."""
    if isinstance(value, Value):
        for name, written in _fields(type(value)):
            yield from _leaves(getattr(value, name), (*place, written))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, (*place, index))
    elif value is not None:
        yield place, value


def _check_leaf(place: Place, leaf: Any, *, negative_zero: bool) -> None:
    if isinstance(leaf, str):
        if not _is_name(leaf):
            said = f"{format_value(leaf)} is no name ({len(leaf)} characters)"
            _refuse(place, said, f"1 to {LONGEST_NAME} printable characters", leaf)
    elif not abs(leaf) <= LARGEST_FIGURE:
        _refuse(place, f"{format_value(leaf)} is too large or not finite", f"at most {LARGEST_FIGURE:g}", leaf)
    elif not negative_zero and leaf == 0 and np.signbit(leaf):
        _refuse(place, f"{leaf} is negative", "0 or more", leaf)


def _refuse(place: Place, said: str, allowed: str, value: object) -> NoReturn:
    field = path_of(place)
    msg = f"{field}: {said}; allowed: {allowed}"
    raise InvalidInput(msg, field=field, value=value, allowed=[allowed])


def _is_name(text: str) -> bool:
    return 0 < len(text) <= LONGEST_NAME and text.isprintable()


@cache
def _fields(kind: type[Value]) -> tuple[tuple[str, str], ...]:
    """Return fields that hold or lead to figures and names, with their names in the document."""
    return tuple(
        (name, info.alias or name)
        for name, info in kind.model_fields.items()
        if name in NAME_FIELDS or not _is_text(info.annotation)
    )


def _is_text(annotation: Any) -> bool:
    """Check whether a field holds text or texts."""
    if get_origin(annotation) is Literal or annotation is str:
        return True
    return any(_is_text(inner) for inner in get_args(annotation))
