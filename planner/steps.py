"""The steps of one model from one state to another: how many replicas of each generation at each share of the traffic.

The rule (docs/planner.md): to move the share x, bring what grows up to the ceiling of its part, move the traffic, then
release down to the floor. Every count stays at or above the straight line between the two states, and the traffic is on
that line, so no generation is ever short where the two states are not. Called by `planner.transition`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from ipnext.model.value import Value

Copy = tuple[str, str, str, int]
"""Part, region, hardware, generation."""
Flow = tuple[str, str, int]
"""Region of the users, region that serves, generation."""
ONE_BY_ONE = 0
"""The finest steps: no part is ever more than one replica ahead of its share."""
MOST_STEPS = 1000
Gate = Literal["canary", "step", "final"]


class StepPolicy(Value):
    """How fast one model's traffic may move, in fractions of it.

    `refresh` says how a new generation comes to a placement: `in_place` loads it beside the old one in the same process
    (units count once, for the most replicas of any generation); `replace` starts processes of its own (units add up).
    """

    canary: float = Field(default=0.1, gt=0, le=1)
    max_step: float = Field(default=0.5, gt=0, le=1)
    hold_seconds: float = Field(default=0.0, ge=0)
    refresh: Literal["in_place", "replace"] = "in_place"
    calls: Mapping[int, tuple[str, ...]] = Field(default_factory=dict)
    """Generation -> the parts that its requests call; one that is not named calls all of the model's."""


@dataclass(frozen=True)
class Standing:
    """One model's replicas and traffic, without zeros."""

    counts: Mapping[Copy, int] = field(default_factory=dict)
    shares: Mapping[Flow, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """`up` is ready before the traffic becomes `shares`; then what is left is `down`."""

    up: Mapping[Copy, int]
    shares: Mapping[Flow, float]
    down: Mapping[Copy, int]
    gate: Gate


def steps(origin: Standing, to: Standing, policy: StepPolicy, *, finer: int = 1) -> list[Step]:
    """The steps of one model, none where nothing changes. `finer` makes them smaller, as in `fractions`."""
    if origin == to:
        return []
    counts, walk = origin.counts, list[Step]()
    shares = fractions(origin, to, policy, finer=finer)
    for x in shares:
        after = to.counts if x == 1 else _counts_at(x, origin, to, policy)
        up = {copy: max(counts.get(copy, 0), after.get(copy, 0)) for copy in sorted(counts.keys() | after.keys())}
        gate: Gate = "final" if x == 1 else "canary" if not walk and _fresh(origin, to) else "step"
        walk.append(Step(up, to.shares if x == 1 else _shares_at(x, origin, to), after, gate))
        counts = after
    return walk


def fractions(origin: Standing, to: Standing, policy: StepPolicy, *, finer: int = 1) -> Sequence[float]:
    """How much of the way is gone after each step: the canary first for a new generation, then `max_step` at a time.

    One step for all where the traffic stays, where none is served yet and where none is served any more. With `finer`
    steps are that many times smaller; ONE_BY_ONE also stops at every share at which a whole replica is done.
    """
    if origin.shares == to.shares or not origin.shares or not to.shares:
        return [1.0]
    step = policy.max_step / max(1, finer)
    x = min(policy.canary, step) if _fresh(origin, to) else step
    way = list[float]()
    while x < 1 - 1e-9:
        way.append(x)
        x = round(x + step, 12)
    if finer == ONE_BY_ONE:
        way = sorted({round(x, 12) for x in [*way, *_whole_replicas(origin, to)]})
    return [*way, 1.0]


def _whole_replicas(origin: Standing, to: Standing) -> set[float]:
    """Every share at which some count of the straight line is whole; none where they are too many."""
    copies = origin.counts.keys() | to.counts.keys()
    changes = {abs(to.counts.get(copy, 0) - origin.counts.get(copy, 0)) for copy in copies}
    return {k / n for n in changes for k in range(1, n)} if sum(changes) <= MOST_STEPS else set()


def _fresh(origin: Standing, to: Standing) -> bool:
    """True where a generation gets its first traffic beside another one's."""
    served = {generation for _, _, generation in origin.shares}
    return bool(served) and any(generation not in served for _, _, generation in to.shares)


def _shares_at(x: float, origin: Standing, to: Standing) -> dict[Flow, float]:
    """The traffic on the straight line between the two states."""
    flows = sorted(origin.shares.keys() | to.shares.keys())
    line = {f: round((1 - x) * origin.shares.get(f, 0.0) + x * to.shares.get(f, 0.0), 12) for f in flows}
    return {flow: fraction for flow, fraction in line.items() if fraction > 0}


def _counts_at(x: float, origin: Standing, to: Standing, policy: StepPolicy) -> dict[Copy, int]:
    copies = sorted(origin.counts.keys() | to.counts.keys())
    pairs = {copy: (origin.counts.get(copy, 0), to.counts.get(copy, 0)) for copy in copies}
    if policy.refresh == "replace":
        line = {copy: between(x, old, new) for copy, (old, new) in pairs.items()}
    else:
        line = _side_by_side(x, pairs)
    return {copy: count for copy, count in line.items() if count}


def between(x: float, old: int, new: int) -> int:
    """Replicas at the share x: the ceiling of what grows, and of what is left where it shrinks."""
    if new >= old:
        return old + math.ceil(x * (new - old) - 1e-9)
    return old - math.floor(x * (old - new) + 1e-9)


def _side_by_side(x: float, pairs: Mapping[Copy, tuple[int, int]]) -> dict[Copy, int]:
    """Counts where one process holds several generations.

    The processes of a placement are its most replicas of any generation; they must hold all its traffic, so a generation
    that leaves stays on every process until the end, and one that comes grows with its share.
    """
    groups: dict[tuple[str, str, str], list[Copy]] = defaultdict(list)
    for copy in pairs:
        groups[copy[:3]].append(copy)
    counts: dict[Copy, int] = {}
    for copies in groups.values():
        processes = between(x, max(pairs[c][0] for c in copies), max(pairs[c][1] for c in copies))
        for copy in copies:
            old, new = pairs[copy]
            counts[copy] = between(x, old, new) if new > old else old if new == old else min(old, processes)
        if max(counts[copy] for copy in copies) < processes:
            for copy in copies:
                counts[copy] = max(counts[copy], min(pairs[copy][1], processes))
    return counts
