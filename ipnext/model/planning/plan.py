"""The planner's problem and plan, in the wire form that other tools and an independent checker read.

QPS are requests a second, rtt and latencies are milliseconds, units are units of a hardware kind (they may be
fractional: models share a host), money is $/h.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from ipnext.model.fleet import OwnerBudget, SupplyItem
from ipnext.model.value import Value

Rule = Literal["served", "latency", "capacity", "survive", "min_replicas", "supply", "budget", "moves"]


_set = object.__setattr__


class FigureRow(Value):
    """A value of names and figures alone, all fields required: a fleet has a million of them."""

    _columns: ClassVar[tuple[str, ...]] = ()
    _every_field: ClassVar[set[str]] = set()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Keep the names of the fields for `from_trusted`."""
        cls._columns = tuple(cls.model_fields)
        cls._every_field = set(cls.model_fields)

    @classmethod
    def from_trusted(cls, *values: Any) -> Self:
        """Return the row of these values, in the order of its fields and unchecked: only for values known to be valid.

        Equal to the validated row, in half the time and a fourth to a seventh of the memory: it shares the set of its
        fields' names with all others of its kind, and Python lays out its attributes as in any plain object.
        """
        row = cls.__new__(cls)
        for name, value in zip(cls._columns, values, strict=True):
            _set(row, name, value)
        _set(row, "__pydantic_fields_set__", cls._every_field)
        _set(row, "__pydantic_extra__", None)
        _set(row, "__pydantic_private__", None)
        return row


class RegionSupply(FigureRow):
    """Units of one hardware kind in one region, at `unit_cost` $/h a unit."""

    region: str
    hardware: str
    units: float = Field(ge=0)
    unit_cost: float = Field(ge=0)

    @classmethod
    def of(cls, item: SupplyItem) -> "RegionSupply":
        """Return the wire form of a fleet's supply item."""
        return cls(region=item.region, hardware=item.hardware, units=item.units, unit_cost=item.unit_cost)


class Owner(Value):
    """An owner and what it may spend, $/h; null is no limit. A document has no priority of 0."""

    owner: str
    budget_per_hour: float | None = Field(default=None, ge=0)
    priority: int = Field(default=0, exclude_if=lambda priority: priority == 0)
    """If supply is short, demand of owners with a higher priority is served first."""

    @classmethod
    def of(cls, item: OwnerBudget) -> "Owner":
        """Return the wire form of a fleet's owner."""
        return cls(owner=item.owner, budget_per_hour=item.budget_per_hour)


class RegionDemand(FigureRow):
    """Demand of the users of one region."""

    region: str
    qps: float = Field(ge=0)


class PartOption(FigureRow):
    """One way to run a part: `units` of `hardware` a replica give `qps`."""

    hardware: str
    units: float = Field(gt=0)
    qps: float = Field(gt=0)


class PartProblem(Value):
    """A part: a region that holds replicas of it holds at least `min_replicas`."""

    part: str
    min_replicas: int = Field(default=1, ge=0)
    options: tuple[PartOption, ...] = Field(min_length=1)


class ModelProblem(Value):
    """One model's demand, limits and parts."""

    model: str
    owner: str
    priority: float = Field(default=1.0, gt=0)
    latency_tolerance_ms: float = Field(ge=0)
    survive: Literal["region", "none"] = "none"
    budget_per_hour: float | None = Field(default=None, ge=0)
    demand: tuple[RegionDemand, ...]
    parts: tuple[PartProblem, ...] = Field(min_length=1)

    @property
    def units(self) -> Mapping[tuple[str, str], float]:
        """Map (part, hardware) to the units of a replica."""
        return {(part.part, option.hardware): option.units for part in self.parts for option in part.options}


class ReplicaCount(FigureRow):
    """Whole replicas of a part in a region on a hardware kind: a placement."""

    model: str
    part: str
    region: str
    hardware: str
    count: int = Field(ge=0)


class TrafficShare(FigureRow):
    """Fraction of the demand of the users of `from` that is served in `to`."""

    model: str
    origin: str = Field(alias="from")
    to: str
    fraction: float = Field(ge=0, le=1.000001)


class CurrentState(Value):
    """What runs now."""

    replicas: tuple[ReplicaCount, ...] = ()
    traffic: tuple[TrafficShare, ...] = ()


class Objective(Value):
    """Weights: $/h per QPS·ms, $/h per replica started, $/h per unmet QPS (times priority)."""

    latency_weight: float = Field(default=0.0, ge=0)
    move_cost: float = Field(default=0.0, ge=0)
    unmet_cost: float = Field(default=10.0, ge=0)


class Limits(Value):
    """`max_moves` caps the replicas started beyond the current placement; `gap` is relative; time in seconds."""

    max_moves: int | None = Field(default=None, ge=0)
    time_seconds: float = Field(default=60.0, gt=0)
    gap: float = Field(default=0.01, ge=0)


class Problem(Value):
    """problem.json. `planner.io.problem` reads files into it and checks that its names agree."""

    regions: tuple[str, ...] = Field(min_length=1)
    rtt_ms: tuple[tuple[float, ...], ...]
    hardware: tuple[str, ...] = Field(min_length=1)
    supply: tuple[RegionSupply, ...]
    owners: tuple[Owner, ...] = ()
    models: tuple[ModelProblem, ...]
    current: CurrentState = CurrentState()
    objective: Objective = Objective()
    limits: Limits = Limits()

    @property
    def levels(self) -> tuple[frozenset[str], ...]:
        """The models by the priority of their owners, the highest first. An unlisted owner has 0."""
        priority = {item.owner: item.priority for item in self.owners}
        models: dict[int, set[str]] = {}
        for model in self.models:
            models.setdefault(priority.get(model.owner, 0), set()).add(model.model)
        return tuple(frozenset(models[level]) for level in sorted(models, reverse=True))


class Unmet(Value):
    """Demand that a plan leaves unserved, with the rules that bind."""

    model: str
    region: str
    qps: float
    rules: tuple[str, ...]


class SolverInfo(Value):
    """How the plan was found."""

    method: str
    seconds: float
    iterations: int = 0


class Plan(Value):
    """plan.json. `bound` is a true lower bound on the objective over the plan space that `bound_covers` names."""

    status: Literal["optimal", "feasible", "infeasible", "time_limit"]
    objective: float
    bound: float
    gap: float
    bound_covers: str
    cost_per_hour: float
    replicas: tuple[ReplicaCount, ...]
    traffic: tuple[TrafficShare, ...]
    unmet: tuple[Unmet, ...] = ()
    solver: SolverInfo


class ReplicaChange(FigureRow):
    """A placement whose count differs between two plans."""

    model: str
    part: str
    region: str
    hardware: str
    before: int
    after: int


class TrafficChange(FigureRow):
    """A traffic share that differs between two plans."""

    model: str
    origin: str = Field(alias="from")
    to: str
    before: float
    after: float


class PlanDiff(Value):
    """What changes from one plan to another. `moves` counts the replicas started."""

    replicas: tuple[ReplicaChange, ...] = ()
    traffic: tuple[TrafficChange, ...] = ()
    moves: int = 0
    cost_per_hour_before: float = 0.0
    cost_per_hour_after: float = 0.0

    @property
    def empty(self) -> bool:
        """True if nothing changes."""
        return not self.replicas and not self.traffic
