"""The reasons for a plan, the limits that prevent a better one, and the effect of a change: as data.

`planner.explain.explanation`, `planner.explain.conflict`, `planner.explain.what_if` and `planner.cli.charts` make these
values; the command prints them. Rules are named as in plans (docs/planner.md). Money is $/h, units are units of a
hardware kind.
"""

from typing import Literal

from pydantic import Field

from ipnext.model.planning.plan import PlanDiff, ReplicaCount
from ipnext.model.value import Value


class PlanFigures(Value):
    """A plan's cost and service. The objective is the sum of the four costs."""

    objective: float
    cost_per_hour: float
    """Hardware."""
    latency_per_hour: float
    moves_per_hour: float
    """Replicas started, at `move_cost` each."""
    unmet_per_hour: float
    replicas: int
    moves: int
    """Replicas started beyond the current placement."""
    demand_qps: float
    unmet_qps: float


class SupplyUse(Value):
    """One hardware kind in one region."""

    region: str
    hardware: str
    units: float
    used: float
    free: float
    """Below 0 if a plan takes more than the supply."""
    surge: float = 0.0
    """Units of a transition beyond the larger of its two states."""
    unit_cost: float
    price: float | None = None
    """The value of one more unit in $/h, on top of its cost; null if not computed."""
    saves: float | None = None
    """The saving of the best plan in $/h with one more unit; null if not proved."""


class LimitUse(Value):
    """A budget ($/h) or a limit of started replicas, named by its rule."""

    rule: str
    limit: float
    used: float
    free: float
    price: float | None = None
    """The value in $/h of one more (a $/h of budget, a started replica); null if not computed."""
    saves: float | None = None
    """The saving of the best plan in $/h with one more; null if not proved."""


class Binding(Value):
    """A rule and its meaning here."""

    rule: str
    message: str


class RunnerUp(Value):
    """Another plan of one model, with all other models unchanged.

    The best one found, or the best without one placement.
    """

    extra_per_hour: float
    """The difference of its objective and the plan's for this model. Below 0 the plan is not the best one."""
    extra_at_least: float
    """The proved lower bound: no such plan is cheaper."""
    cost_per_hour: float
    """Hardware of the whole model."""
    unmet_qps: float
    """Of the whole model."""
    replicas: tuple[ReplicaCount, ...]
    """Of the whole model."""


class PlacementExplanation(Value):
    """The reasons for the place and the number of a part's replicas."""

    model: str
    part: str
    region: str
    hardware: str
    count: int
    cost_per_hour: float
    """All of these replicas."""
    replica_cost: float
    """Hardware of one."""
    replica_price: float | None = None
    """The value of one replica's units to the fleet on top of their cost; null if prices were not computed."""
    count_rules: tuple[Binding, ...]
    """Rules that one replica less would break. Empty: no rule needs it."""
    place_rules: tuple[Binding, ...]
    """Rules that keep the replicas here rather than in a cheaper place."""
    runner_up: RunnerUp | None = None


class NeededLimit(Value):
    """A limit that would have to be larger."""

    rule: str
    limit: float
    needed: float


class UnmetExplanation(Value):
    """Demand that the plan leaves unserved, and the reasons."""

    model: str
    region: str
    qps: float
    unmet_per_hour: float
    rules: tuple[str, ...]


class ConflictMember(Value):
    """One limit of a conflicting set."""

    name: str
    """The rule with its subject, such as `supply us-east/l4`."""
    rule: str
    limit: float | None = None
    """In `unit`; null if the limit is no number."""
    unit: str = ""
    alone: bool | None = None
    """True if all would be served without this limit, with every other one in force; null if undecided."""


class LimitConflict(Value):
    """Limits that together leave no room to serve all demand of `models`; without any one of them there is room.

    With only these limits in force no plan serves everything; with one of them dropped as well, some plan does.
    """

    models: tuple[str, ...]
    beside: str
    """The assumption about the other models, in words."""
    members: tuple[ConflictMember, ...]
    minimal: bool
    """False if the solver reached its limits: the set conflicts, but a member may be unnecessary."""


class ModelExplanation(Value):
    """One model of a plan."""

    model: str
    figures: PlanFigures
    best: RunnerUp
    """The best plan found for this model on the supply that the others leave."""
    placements: tuple[PlacementExplanation, ...]
    unmet: tuple[UnmetExplanation, ...] = ()
    servable: bool | None = None
    """For a model with unmet demand: whether some plan serves all of it beside the others; null if undecided."""
    needs: tuple[NeededLimit, ...] = ()
    """The least growth of limits that serves everything; empty if nothing is unmet or no growth helps."""
    conflict: LimitConflict | None = None


class RuleUnmet(Value):
    """Unmet demand of one rule. One demand may have several rules."""

    rule: str
    demands: int
    qps: float
    unmet_per_hour: float


class ModelCost(Value):
    """One model's share of a plan, in short."""

    model: str
    cost_per_hour: float
    replicas: int
    unmet_qps: float


class Explanation(Value):
    """A plan explained. `covers` describes the computed parts in words; all others are empty."""

    covers: str
    prices_from: str
    """The source of the prices, in words; empty without prices."""
    broken: tuple[str, ...] = ()
    """Rules broken by the plan."""
    figures: PlanFigures
    supply: tuple[SupplyUse, ...]
    limits: tuple[LimitUse, ...]
    unmet_by_rule: tuple[RuleUnmet, ...] = ()
    dearest: tuple[ModelCost, ...] = ()
    models: tuple[ModelExplanation, ...] = ()


class ProblemChange(Value):
    """A change of a problem.

    The meaning of `target` depends on the kind (docs/planner.md); `figure` null removes a limit.
    """

    kind: Literal["supply", "demand", "budget", "drain", "objective", "limit"]
    target: str
    operation: Literal["set", "add", "multiply"] = "set"
    figure: float | None = None

    def __str__(self) -> str:
        sign = {"set": "=", "add": "=" if (self.figure or 0.0) < 0 else "=+", "multiply": "=*"}[self.operation]
        figure = "none" if self.figure is None else f"{self.figure:.9g}"
        return f"{self.kind} {self.target}" + ("" if self.kind == "drain" else f"{sign}{figure}")


class UnmetChange(Value):
    """Unmet QPS of one demand before and after."""

    model: str
    region: str
    before: float
    after: float
    rules: tuple[str, ...] = ()
    """Why it is unmet after."""


class WhatIf(Value):
    """The effect of a change. Before: the running state, with nothing started. After: a plan from there."""

    changes: tuple[ProblemChange, ...] = Field(min_length=1)
    before: PlanFigures
    after: PlanFigures
    status: str
    """Status of the plan after."""
    gap: float
    diff: PlanDiff
    unmet: tuple[UnmetChange, ...] = ()
    broken: tuple[str, ...] = ()
    """Rules that the running state would break after the change, if nothing moved."""
