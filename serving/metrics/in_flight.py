"""Counts what is under way while it lasts. A class, since every request has some: a generator's way takes a microsecond more."""

from types import TracebackType
from typing import Protocol


class HasInFlight(Protocol):
    """What has things under way."""

    in_flight: int


class InFlight:
    """One more of them is under way from entry to exit."""

    __slots__ = ("_one",)

    def __init__(self, one: HasInFlight) -> None:
        self._one = one

    def __enter__(self) -> None:
        self._one.in_flight += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._one.in_flight -= 1
