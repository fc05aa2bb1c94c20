"""Hot swaps for the check of a transition: the replicas that swap in a wave, and the stated figures.

For `planner.verify.transition_checker`. A slot is a part in a region on a hardware kind. If its count of one generation
falls in a scale_up, that many replicas swap.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ipnext.model.planning.transition import Swap
from planner.verify.plan_checker import TOLERANCE, Violation
from planner.verify.transition_model import Held, Need

Slot = tuple[str, str, str]


@dataclass(frozen=True)
class ModelSwaps:
    """Replicas of one model that swap in one wave."""

    before: Held = field(default_factory=dict)
    after: Held = field(default_factory=dict)

    @property
    def leaving(self) -> Held:
        """Replicas of each generation that swap to another one."""
        after = self.after
        return {key: n - after.get(key, 0) for key, n in self.before.items() if n > after.get(key, 0)}

    @property
    def fallen(self) -> list[Slot]:
        """Slots that have fewer replicas than before: these would not swap, but end."""
        before, after = _totals(self.before), _totals(self.after)
        return sorted({key[:3] for key in self.leaving if after.get(key[:3], 0) < before[key[:3]]})

    def least(self, region: str) -> float:
        """Return the fraction of a region's old replicas that swaps, if no smaller one could; else 0."""
        leaving = {key: n for key, n in self.leaving.items() if key[1] == region}
        if math.gcd(*leaving.values()) != 1:
            return 0.0
        return max(n / self.before[key] for key, n in leaving.items())


def _totals(held: Held) -> dict[Slot, int]:
    total: dict[Slot, int] = defaultdict(int)
    for key, count in held.items():
        total[key[:3]] += count
    return total


@dataclass
class SwapCount:
    """Swaps so far, against the stated ones of the transition."""

    stated: Iterable[Swap]
    replicas: dict[tuple[str, str, str], int] = field(default_factory=lambda: defaultdict(int))
    missing: dict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))

    def note(self, model: str, leaving: Held, short: Mapping[Need, float], load: Mapping[Need, float]) -> None:
        """Record replicas that swap in a wave; `short` is the missing part of the `load` because of them, QPS."""
        for (part, region, _, _), count in leaving.items():
            self.replicas[model, part, region] += count
        whole: dict[tuple[str, str], float] = defaultdict(float)
        missing: dict[tuple[str, str], float] = defaultdict(float)
        for need, qps in load.items():
            whole[need[:2]] += qps
            missing[need[:2]] += short.get(need, 0.0)
        for place, qps in missing.items():
            key = model, *place
            self.missing[key] = max(self.missing[key], qps / whole[place])

    def violations(self) -> Iterator[Violation]:
        """Yield places with more swaps, or more missing capacity, than stated."""
        stated = {(swap.model, swap.part, swap.region): swap for swap in self.stated}
        for key, count in sorted(self.replicas.items()):
            swap, subject = stated.get(key), f"{key[0]}/{key[1]} in {key[2]}"
            if count > (swap.replicas if swap else 0):
                message = f"{count} replicas go over, {swap.replicas if swap else 0} stated"
                yield Violation(rule="swap", subject=subject, message=message)
            elif swap and self.missing[key] > swap.fraction + TOLERANCE:
                message = f"{self.missing[key]:.9g} of the traffic is missing meanwhile, {swap.fraction:.9g} stated"
                yield Violation(rule="swap", subject=subject, message=message)
