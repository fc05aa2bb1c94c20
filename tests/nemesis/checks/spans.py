"""Spans of time in a history: a model is frozen or paused, a region is drained. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.nemesis.history import Event

FOREVER = float("inf")


@dataclass(frozen=True)
class Span:
    """From the positive answer to what begins it until what ends it is first asked for: certainly so.

    Seconds since 1970.
    """

    model: str
    begin: float
    end: float

    def holds(self, wall: float) -> bool:
        return self.begin < wall < self.end


@dataclass(frozen=True)
class Drained:
    """One drain of a region. Monotonic seconds; what was not seen is FOREVER."""

    region: str
    disaster: bool
    wall: float
    """When it was asked for, in seconds since 1970."""
    asked: float
    routed: float
    """Its traffic goes elsewhere: the command has returned."""
    drained: float
    undrain: float
    """When it was asked back."""
    returned: float

    def lost(self, begin: float, end: float) -> bool:
        """Whether nothing was asked of the region's gateway at any moment of an interval.

        It answers with what it held.
        """
        return self.disaster and begin <= self.returned and end >= self.asked

    def routes_around(self, begin: float, end: float) -> bool:
        """Whether a disaster's traffic was not yet sent elsewhere at any moment of an interval."""
        return self.disaster and begin <= min(self.routed, self.returned) and end >= self.asked


def pauses(history: Iterable[Event]) -> list[Span]:
    """When models were paused."""
    return _spans(history, "pause", "resume", "model")


def freezes(history: Iterable[Event]) -> list[Span]:
    """When models were frozen."""
    return _spans(history, "freeze", "unfreeze", "freeze")


def _spans(history: Iterable[Event], begins: str, ends: str, joined_by: str) -> list[Span]:
    found: list[Span] = []
    begun: dict[str, Event] = {}
    for event in history:
        if event.f == begins and event.type == "ok":
            begun.setdefault(event.value[joined_by], event)
        elif event.f == ends and event.type == "invoke" and event.value[joined_by] in begun:
            begin = begun.pop(event.value[joined_by])
            found.append(Span(event.value["model"], begin.wall, event.wall))
    return found + [Span(event.value["model"], event.wall, FOREVER) for event in begun.values()]


def drains(history: Sequence[Event]) -> list[Drained]:
    """All drains that were asked for, one after the other."""
    told = [e for e in history if e.f in {"drain", "routed", "drained", "undrain", "returned"}]
    starts = [n for n, e in enumerate(told) if _begins(told, n, e)]
    ends = [*starts[1:], len(told)][: len(starts)]
    return [_drain(told[begin:end]) for begin, end in zip(starts, ends, strict=True)]


def _begins(told: Sequence[Event], number: int, event: Event) -> bool:
    """The first try of a drain begins it; one that is asked again because its answer was lost does not."""
    again = number > 0 and told[number - 1].f == "drain" and told[number - 1].type == "info"
    return event.f == "drain" and event.type == "invoke" and not again


def _drain(told: Sequence[Event]) -> Drained:
    first = told[0]

    def at(f: str) -> float:
        return next((event.at for event in told if event.f == f), FOREVER)

    refused = all(event.type in {"invoke", "fail"} for event in told)
    returned = first.at if refused else at("returned")
    disaster = bool(first.value.get("disaster"))
    return Drained(
        first.value["region"], disaster, first.wall, first.at, at("routed"), at("drained"), at("undrain"), returned
    )
