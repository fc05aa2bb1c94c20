"""What may be missing of a model, and why, until a later step ends the excuse."""

from dataclasses import dataclass, field
from typing import Any

Place = tuple[str, str, int | None]
"""Region, part, generation; None: all of the processes, where one holds several generations."""


@dataclass
class Excuses:
    """All of them, by model."""

    demand: dict[str, dict[str, float]] = field(default_factory=dict)
    """Model -> region -> requests/s that its transition was planned for."""
    lacking: dict[str, dict[Place, float]] = field(default_factory=dict)
    """Model -> place -> requests/s that were missing when its transition was planned."""
    dips: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    """Model -> (region, part) -> fraction of the traffic that its transition may miss."""
    going_along: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    """Model -> (region, part) -> requests/s that all its generations together lacked when its rollback was
    planned."""
    passing: dict[str, frozenset[str]] = field(default_factory=dict)
    """Model -> regions that its transition only passes through: what lacks goes along to them with the users."""
    left_behind: set[str] = field(default_factory=set)
    """Models whose revert was left incomplete, until the next one is through."""
    abandoned: dict[str, dict[tuple[str, str], float]] = field(default_factory=dict)
    """Model -> (region, part) -> requests/s that may be missing since a revert was given up as processes went
    over."""
    strained: set[str] = field(default_factory=set)
    """Models that lack what a lost region took, until their next transition is planned."""
    halfway: dict[str, set[tuple[Any, ...]]] = field(default_factory=dict)
    """Model -> what was more than is carried while its gateways followed one by one: it stays so while one can't be
    reached."""
    crossing: set[str] = field(default_factory=set)
    """Models whose gateways get tables that send a region too much: no order sends less, or one of them stays as it is
    for now."""
    unanswered: set[tuple[str, str]] = field(default_factory=set)
    """(Users' region, model) of users whom only a lost region answered, until the wave at hand has moved its
    traffic."""

    def is_excused(self, model: str) -> bool:
        """Whether what a model lacks is not looked at now."""
        return model in self.left_behind or model in self.strained

    def settle(self, model: str) -> None:
        """All gateways of a model follow."""
        self.halfway.pop(model, None)
        self.crossing.discard(model)

    def leave(self, model: str) -> None:
        """A step of a revert could not be done: what is short for it may stay so until a transition is through."""
        self.left_behind.add(model)
