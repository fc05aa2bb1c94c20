"""The problem of transitions of one fleet, in the form that the searches need. It knows nothing of them."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipnext.model.planning.plan import Problem
from planner.core.step_policy import StepPolicy
from planner.transition.model_state import ModelState, ReplicaKey, SupplyKey

Floats = npt.NDArray[np.float64]
SLACK = 1e-6
"""Units below which a shortage is rounding."""


@dataclass(frozen=True)
class Option:
    """A replica of a part on a hardware kind: its units and its QPS."""

    units: float
    qps: float


class TransitionInstance:
    """A fleet's figures: supply by R rows of (region, hardware), options, demand, policies, limits."""

    def __init__(self, problem: Problem, policies: Mapping[str, StepPolicy], origin: Mapping[str, ModelState]) -> None:
        self.regions, self.rtt_ms = problem.regions, problem.rtt_ms
        self.rows: list[SupplyKey] = [(region, kind) for region in problem.regions for kind in problem.hardware]
        self.row_of = {row: number for number, row in enumerate(self.rows)}
        self.policies = {m.model: policies.get(m.model, StepPolicy()) for m in problem.models}
        self.parts = {m.model: tuple(p.part for p in m.parts) for m in problem.models}
        self.demand = {m.model: {d.region: d.qps for d in m.demand} for m in problem.models}
        self.tolerance_ms = {m.model: m.latency_tolerance_ms for m in problem.models}
        self.options: Mapping[str, Mapping[tuple[str, str], Option]] = {
            m.model: {(p.part, o.hardware): Option(o.units, o.qps) for p in m.parts for o in p.options}
            for m in problem.models
        }
        supply = {(item.region, item.hardware): item.units for item in problem.supply}
        stated = np.array([supply.get(row, 0.0) for row in self.rows])
        self.limits: Floats = np.maximum(stated, self.total_units(origin))
        """(R,) the supply, or the units in use at the start if supply was withdrawn."""

    def policy_of(self, model: str) -> StepPolicy:
        """Return the model's policy, or the default one."""
        return self.policies[model]

    def separates_generations(self, model: str) -> bool:
        """Return whether generations run in separate processes. Their resource units then add up."""
        return self.policies[model].refresh != "in_place"

    def is_divisible(self, model: str, *states: ModelState) -> bool:
        """Return whether the replicas of each generation count alone: no process of these states holds several."""
        return self.separates_generations(model) or len({key[3] for state in states for key in state.counts}) <= 1

    def used_units(self, model: str, counts: Mapping[ReplicaKey, int]) -> Floats:
        """Return (R,) units of one model."""
        groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for (part, region, hardware, _), count in counts.items():
            groups[part, region, hardware].append(count)
        combine = sum if self.separates_generations(model) else max
        units = np.zeros(len(self.rows))
        for (part, region, hardware), of_generations in groups.items():
            units_here = combine(of_generations) * self.options[model][part, hardware].units
            units[self.row_of[region, hardware]] += units_here
        return units

    def total_units(self, states: Mapping[str, ModelState]) -> Floats:
        """Return (R,) units of all models."""
        units = np.zeros(len(self.rows))
        for model in sorted(states):
            units += self.used_units(model, states[model].counts)
        return units

    def is_near(self, model: str, origin: str, to: str) -> bool:
        """Return whether users of `origin` may be served in `to`."""
        ms = self.rtt_ms[self.regions.index(origin)][self.regions.index(to)]
        return ms <= self.tolerance_ms[model]
