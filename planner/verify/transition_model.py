"""Figures for the check of a transition: units, throughput, load and latency of one model.

For `planner.verify.transition_checker`.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from ipnext.model.planning.plan import Problem
from planner.core.step_policy import StepPolicy

Held = dict[tuple[str, str, str, int], int]
"""Replicas by part, region, hardware, generation."""
Sent = dict[tuple[str, str, int], float]
"""Shares by region of the users, region that serves, generation."""
Row = tuple[str, str]
"""Region, hardware."""
Need = tuple[str, str, int | None]
"""Part, region, generation; None: all generations together, if they share processes."""


@dataclass(frozen=True)
class ReplayState:
    """One model's replicas and traffic; updated wave by wave."""

    held: Held
    sent: Sent


class ProblemFigures:
    """A problem's figures by name."""

    def __init__(self, problem: Problem, policies: Mapping[str, StepPolicy]) -> None:
        self.policies, self._default = policies, StepPolicy()
        self.supply: Mapping[Row, float] = {(item.region, item.hardware): item.units for item in problem.supply}
        self.units = {
            (m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options
        }
        self.qps = {(m.model, p.part, o.hardware): o.qps for m in problem.models for p in m.parts for o in p.options}
        self.parts = {m.model: tuple(p.part for p in m.parts) for m in problem.models}
        self.demand = {(m.model, d.region): d.qps for m in problem.models for d in m.demand}
        self.tolerance_ms = {m.model: m.latency_tolerance_ms for m in problem.models}
        places = [(s, r) for s in range(len(problem.regions)) for r in range(len(problem.regions))]
        self.rtt_ms = {(problem.regions[s], problem.regions[r]): problem.rtt_ms[s][r] for s, r in places}

    def policy(self, model: str) -> StepPolicy:
        """Return the model's policy, or the default one."""
        return self.policies.get(model, self._default)

    def beside(self, model: str) -> bool:
        """Check whether one process holds several generations."""
        return self.policy(model).refresh == "in_place"

    def swaps(self, model: str) -> bool:
        """Check whether a process may be hot swapped to another generation."""
        return self.policy(model).refresh == "swap"

    def late(self, model: str, origin: str, to: str) -> bool:
        """Check whether users of `origin` are too far from `to`."""
        return self.rtt_ms[origin, to] > self.tolerance_ms[model]

    def used(self, model: str, held: Held) -> dict[Row, float]:
        """Return units by row: a process that holds several generations counts once, else each generation counts."""
        total: dict[Row, float] = defaultdict(float)
        if self.beside(model):
            held = _processes(held)
        for (part, region, hardware, _), count in held.items():
            total[region, hardware] += count * self.units[model, part, hardware]
        return dict(total)

    def load(self, model: str, sent: Sent) -> dict[Need, float]:
        """Return the load of the traffic, QPS, if it is above zero."""
        load: dict[Need, float] = defaultdict(float)
        calls, parts, beside = self.policy(model).calls, self.parts[model], self.beside(model)
        for (origin, to, generation), fraction in sent.items():
            qps = fraction * self.demand.get((model, origin), 0.0)
            for part in calls.get(generation, parts):
                load[part, to, generation] += qps
                if beside:
                    load[part, to, None] += qps
        return {need: qps for need, qps in load.items() if qps > 0}

    def able(self, model: str, held: Held) -> dict[Need, float]:
        """Return the throughput of the replicas, QPS."""
        able: dict[Need, float] = defaultdict(float)
        for (part, region, hardware, generation), count in held.items():
            able[part, region, generation] += count * self.qps[model, part, hardware]
        if self.beside(model):
            for (part, region, hardware, _), count in _processes(held).items():
                able[part, region, None] += count * self.qps[model, part, hardware]
        return dict(able)

    def lacking(self, model: str, standing: ReplayState) -> dict[Need, float]:
        """Return QPS by which the throughput is below the load."""
        able = self.able(model, standing.held)
        load = self.load(model, standing.sent)
        return {need: qps - able.get(need, 0.0) for need, qps in load.items() if qps > able.get(need, 0.0)}


def _processes(held: Held) -> Held:
    """Return the most replicas of any generation, as generation 0."""
    most: Held = {}
    for (part, region, hardware, _), count in held.items():
        key = part, region, hardware, 0
        most[key] = max(most.get(key, 0), count)
    return most
