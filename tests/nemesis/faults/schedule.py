"""Which faults strike, in which order: drawn from a seed, so that a run can be had again."""

import random
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tests.nemesis.models import REGIONS
from workflows.policies import STEPS

Kind = Literal["kill", "stop", "partition", "boundary", "terminate", "away", "build", "limit"]
KINDS: tuple[Kind, ...] = ("kill", "stop", "partition", "boundary", "terminate", "away", "build", "limit")
LONGEST_STOP_SECONDS = 8.0
LONGEST_CUT_SECONDS = 6.0
SHORT_SECONDS = 2.0
AWAY_SECONDS = 75.0
"""How long a region is away: longer than the deadline of the rollouts (tests/nemesis/models.py)."""
LIMIT_SECONDS = 20.0
"""How long the server allows only short histories."""
REACH_SECONDS = 15.0
"""How long a worker may take to come to the place where it is to kill itself: somebody has to ask for something
meanwhile."""
ROUND_SECONDS = 240.0
"""How long it may take to come to any of the places that are left of a round of all."""

PLACES = tuple(f"{step.name}:{point}" for step in STEPS for point in ("before", "after"))
"""Before and after each activity of the platform."""

CONTROL = ("worker", "workers", "api", "temporal")
"""One of the workers, and all of them at once."""
REGIONAL = ("agent", "supervisor", "envoy", "router", "host")
WORKFLOWS = ("model", "lifecycle", "transition", "replan", "drain", "reconcile")
"""Kinds of workflows of which a run is terminated."""
BUILDS = ("worker", "api")
"""Roles of which a process is ended and started as the other one of two builds."""
CONTROL_LINKS = ("api", "temporal")
REGIONAL_LINKS = ("agent", "router", "hosts")
WHOLE = frozenset({"boundary", "terminate", "away", "build", "limit"})
"""Kinds that are not cut short."""
_WHOLE_SECONDS = {"boundary": REACH_SECONDS, "terminate": REACH_SECONDS, "away": AWAY_SECONDS, "limit": LIMIT_SECONDS}
_TOUCH = {
    "kill": frozenset({"supervisor", "envoy", "router", "host"}),
    "stop": frozenset({"envoy", "router", "host"}),
    "partition": frozenset({"router", "hosts"}),
    "boundary": frozenset(),
    "terminate": frozenset(),
    "away": frozenset(),
    "build": frozenset(),
    "limit": frozenset(),
}
"""Kind -> roles whose fault may fail requests. An agent that is killed costs none; a supervisor takes its region's
processes along."""


@dataclass(frozen=True)
class Fault:
    """One fault. `role` is a process, a link, a kind of workflow, or for a boundary the place, as ACTIVITY:POINT."""

    kind: Kind
    role: str
    region: str | None = None
    seconds: float = 0.0
    """How long a process stands still, or a link is cut; how long a boundary is waited for, at most."""
    cut: Literal["both", "answers"] | None = None
    draw: int = 0
    """Chooses among several processes of a role."""

    @property
    def touches_data(self) -> bool:
        """Whether requests of its region may fail until it is healed."""
        return self.role in _TOUCH[self.kind]

    def document(self) -> dict[str, Any]:
        """As it stands in the history."""
        return asdict(self) | {"touches_data": self.touches_data}


def schedule(seed: int, kinds: Collection[str] = KINDS) -> Iterator[Fault]:
    """Faults without end: all of the chosen kinds in a drawn order, then all of them in another one."""
    draw = random.Random(seed)
    deck = [fault for kind in KINDS if kind in kinds for fault in _all_of(kind)]
    while deck:
        draw.shuffle(deck)
        for kind, role, regional in deck:
            region = draw.choice(REGIONS) if regional else None
            longest = {"stop": LONGEST_STOP_SECONDS, "partition": LONGEST_CUT_SECONDS}.get(kind, 0.0)
            seconds = round(draw.uniform(1.0, longest), 1) if longest else 0.0
            seconds = _WHOLE_SECONDS.get(kind, seconds)
            cut = draw.choice(("both", "answers")) if kind == "partition" else None
            yield Fault(kind, role, region, seconds, cut, draw.randrange(1000))


def few(seed: int, kinds: Collection[str], each: int) -> list[Fault]:
    """The first faults of the schedule, so many of each kind, cut to a short time."""
    found: list[Fault] = []
    for fault in schedule(seed, kinds):
        if len(found) == each * len(set(kinds)):
            break
        if sum(other.kind == fault.kind for other in found) < each:
            short = fault.seconds if fault.kind in WHOLE else min(fault.seconds, SHORT_SECONDS)
            found.append(replace(fault, seconds=short))
    return found


def _all_of(kind: Kind) -> list[tuple[Kind, str, bool]]:
    if kind == "boundary":
        return [(kind, place, False) for place in PLACES[::11]]
    if kind == "terminate":
        return [(kind, workflow, False) for workflow in WORKFLOWS]
    if kind == "away":
        return [(kind, "agent", True)]
    if kind == "limit":
        return [(kind, "temporal", False)]
    if kind == "build":
        return [(kind, role, False) for role in BUILDS]
    one, many = (CONTROL_LINKS, REGIONAL_LINKS) if kind == "partition" else (CONTROL, REGIONAL)
    return [(kind, role, False) for role in one] + [(kind, role, True) for role in many]
