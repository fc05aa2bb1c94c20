"""Checks of plain JSON values by their form, and their error. Used by ipnext.artifacts.programs.schema."""

import re
from collections.abc import Callable, Mapping
from reprlib import Repr
from typing import Any, Final, NoReturn, TypeAlias

LARGEST: Final = 2**63 - 1

Check: TypeAlias = Callable[[Any], None]
"""Returns if a value is allowed, else raises UnsafeProgram."""


class UnsafeProgram(ValueError):
    """A program document with values that the exporter does not write.

    The text names place, value and allowed values.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self._steps: list[str] = []

    def within(self, step: str) -> None:
        """Add one step of the place, from the innermost outwards."""
        self._steps.append(step)

    def __str__(self) -> str:
        place = "".join(reversed(self._steps)).removeprefix(".")
        return f"{place}: {self.problem}" if place else self.problem


def _short_repr() -> Repr:
    """Return what shows values without going deep into them: they are a stranger's."""
    made = Repr()
    made.maxlevel = 4
    made.maxlist = made.maxtuple = made.maxdict = 20
    made.maxstring = made.maxlong = made.maxother = 100
    return made


_SHORT = _short_repr()


def format_value(value: Any) -> str:
    """Return a value for an error message, cut short."""
    text = _SHORT.repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def refuse(kind: str, value: Any) -> NoReturn:
    """Raise UnsafeProgram for a value that is not of a kind."""
    msg = f"must be {kind}, got {format_value(value)}"
    raise UnsafeProgram(msg)


def record(needed: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """Check for an object of exactly these fields."""
    known = {**needed, **(optional or {})}

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            refuse("an object", value)
        for name in needed:
            if name not in value:
                msg = f"the field {name!r} is missing"
                raise UnsafeProgram(msg)
        for name in value.keys() - known.keys():
            msg = f"the field {format_value(name)} is unknown; allowed: {', '.join(known)}"
            raise UnsafeProgram(msg)
        for name, item in known.items():
            if name in value:
                try:
                    item(value[name])
                except UnsafeProgram as problem:
                    problem.within(f".{name}")
                    raise

    return check


def union(forms: Mapping[str, Check]) -> Check:
    """Check for an object of one field, which names its form."""

    def check(value: Any) -> None:
        if not isinstance(value, dict) or len(value) != 1:
            refuse("an object of one field", value)
        [(form, item)] = value.items()
        if form not in forms:
            msg = f"the form {format_value(form)} is not allowed; allowed: {', '.join(forms)}"
            raise UnsafeProgram(msg)
        try:
            forms[form](item)
        except UnsafeProgram as problem:
            problem.within(f".{form}")
            raise

    return check


def list_of(item: Check) -> Check:
    """Check for a list."""

    def check(value: Any) -> None:
        if not isinstance(value, list):
            refuse("a list", value)
        for number, one in enumerate(value):
            try:
                item(one)
            except UnsafeProgram as problem:
                problem.within(f"[{number}]")
                raise

    return check


def map_of(name: Check, item: Check) -> Check:
    """Check for an object of any fields whose names pass `name`."""

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            refuse("an object", value)
        for key, one in value.items():
            try:
                name(key)
                item(one)
            except UnsafeProgram as problem:
                problem.within(f"[{format_value(key)}]")
                raise

    return check


def nullable(item: Check) -> Check:
    """Check for null, or a value that passes `item`."""

    def check(value: Any) -> None:
        if value is not None:
            item(value)

    return check


def exactly(*allowed: Any) -> Check:
    """Check for one of a few values."""

    def check(value: Any) -> None:
        if not any(type(value) is type(one) and value == one for one in allowed):
            refuse(" or ".join(map(repr, allowed)), value)

    return check


def whole(least: int = -LARGEST - 1, most: int = LARGEST) -> Check:
    """Check for a whole number."""

    def check(value: Any) -> None:
        if type(value) is not int or not least <= value <= most:
            refuse(f"a whole number from {least} to {most}", value)

    return check


def matching(pattern: re.Pattern[str], kind: str) -> Check:
    """Check for a text of a form."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or pattern.fullmatch(value) is None:
            refuse(kind, value)

    return check
