"""Invariants that do not hold: the first one ends a history, a known weakness is counted."""

from typing import Any

SLACK = 1e-4


class Violated(Exception):
    """An invariant that does not hold."""

    def __init__(self, name: str, told: str) -> None:
        super().__init__(f"{name}: {told}")
        self.name, self.told = name, told


class Report:
    """Breaches of one history."""

    def __init__(self, world: Any) -> None:
        self.world, self.breaches = world, 0

    def breach(self, name: str, told: str) -> None:
        """One that does not hold ends the history; a known weakness is counted."""
        self.breaches += 1
        if name not in self.world.known:
            raise Violated(name, told)
        self.world.count(f"known: {name}")
        self.world.tell("known", f"{name}: {told}")
