"""Why a plan is as it is, what stands in the way of more, and what a change would do: as data.

`planner.explain.explanation`, `planner.explain.conflict`, `planner.explain.what_if` and `planner.cli.charts` make these values; the command writes
them. Rules are named as in plans (docs/planner.md). Money is $/h, units are units of a hardware kind.
"""

from typing import Literal

from pydantic import Field

from ipnext.model.plan import PlanDiff, ReplicaCount
from ipnext.model.value import Value


class Figures(Value):
    """What a plan costs and serves. The objective is the sum of the four costs."""

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
    """Below 0 where a plan takes more than there is."""
    surge: float = 0.0
    """Units that a transition takes beyond the larger of its two states."""
    unit_cost: float
    price: float | None = None
    """$/h that one more unit is worth, on top of its own cost; null where it was not asked for."""
    saves: float | None = None
    """$/h that the best plan costs less with one more unit; null where that is not proved."""


class LimitUse(Value):
    """A budget ($/h) or the replicas that may be started, named by its rule."""

    rule: str
    limit: float
    used: float
    free: float
    price: float | None = None
    """$/h that one more (a $/h of budget, a replica started) is worth; null where it was not asked for."""
    saves: float | None = None
    """$/h that the best plan costs less with one more; null where that is not proved."""


class Binding(Value):
    """A rule and what it says here."""

    rule: str
    message: str


class RunnerUp(Value):
    """Another plan of one model, with all other models as they are: the best one found, or that without one placement."""

    extra_per_hour: float
    """How much more its objective is than the plan's for this model. Below 0 the plan is not the best one."""
    extra_at_least: float
    """No such plan is cheaper than this: what is proved."""
    cost_per_hour: float
    """Hardware of the whole model."""
    unmet_qps: float
    """Of the whole model."""
    replicas: tuple[ReplicaCount, ...]
    """Of the whole model."""


class PlacementExplanation(Value):
    """Why replicas of a part are where they are, and this many."""

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
    """What the units of one are worth to the fleet on top of their cost; null where prices were not asked for."""
    count_rules: tuple[Binding, ...]
    """Rules that break with one replica less. Empty: no rule needs it."""
    place_rules: tuple[Binding, ...]
    """What keeps the replicas here rather than in a cheaper place."""
    runner_up: RunnerUp | None = None


class Need(Value):
    """A limit that would have to be larger."""

    rule: str
    limit: float
    needed: float


class UnmetExplanation(Value):
    """Demand that the plan leaves unserved, and why."""

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
    """In `unit`; null where the limit is no figure."""
    unit: str = ""
    alone: bool | None = None
    """True where all would be served without this limit, every other one in force; null where that is not decided."""


class Conflict(Value):
    """Limits that together leave no room to serve all demand of `models`; without any one of them there is room.

    That is: with only these limits in force no plan serves everything; with one of them dropped as well, some plan does.
    """

    models: tuple[str, ...]
    beside: str
    """What holds for the other models, in words."""
    members: tuple[ConflictMember, ...]
    minimal: bool
    """False where the solver ran into its limits: the set conflicts, but a member may be needless."""


class ModelExplanation(Value):
    """One model of a plan."""

    model: str
    figures: Figures
    best: RunnerUp
    """The best plan found for this model on what the others leave."""
    placements: tuple[PlacementExplanation, ...]
    unmet: tuple[UnmetExplanation, ...] = ()
    servable: bool | None = None
    """Of a model with unmet demand: whether some plan serves all of it beside the others; null where that is not decided."""
    needs: tuple[Need, ...] = ()
    """The least that limits would have to grow by to serve everything; empty where nothing is unmet or no growth helps."""
    conflict: Conflict | None = None


class RuleUnmet(Value):
    """Unmet demand that names a rule. One demand may name several."""

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
    """A plan explained. `covers` says in words what was computed; the rest is empty where it was not."""

    covers: str
    prices_from: str
    """Where the prices come from, in words; empty without prices."""
    broken: tuple[str, ...] = ()
    """Rules that the plan breaks."""
    figures: Figures
    supply: tuple[SupplyUse, ...]
    limits: tuple[LimitUse, ...]
    unmet_by_rule: tuple[RuleUnmet, ...] = ()
    dearest: tuple[ModelCost, ...] = ()
    models: tuple[ModelExplanation, ...] = ()


class Change(Value):
    """A change of a problem. What `target` names depends on the kind (docs/planner.md); `figure` null lifts a limit."""

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
    """What a change would do. Before: as it runs, starting nothing. After: a plan from there."""

    changes: tuple[Change, ...] = Field(min_length=1)
    before: Figures
    after: Figures
    status: str
    """Of the plan after."""
    gap: float
    diff: PlanDiff
    unmet: tuple[UnmetChange, ...] = ()
    broken: tuple[str, ...] = ()
    """Rules that what runs before would break once the change is made, were nothing moved."""
