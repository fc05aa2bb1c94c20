"""Counts requests while they are in flight.

A class, since every request uses it: a generator takes a microsecond more.
"""

from types import TracebackType
from typing import Protocol


class HasInFlight(Protocol):
    """An object that counts its requests in flight."""

    in_flight: int


class InFlight:
    """Counts one more from entry to exit."""

    __slots__ = ("_one",)

    def __init__(self, one: HasInFlight) -> None:
        self._one = one

    def __enter__(self) -> None:
        self._one.in_flight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._one.in_flight -= 1
