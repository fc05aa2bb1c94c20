"""Transitions: the safe waves from one state to another, in the wire form that an independent checker reads."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from ipnext.model.planning.plan import FigureRow, RegionDemand
from ipnext.model.value import Value

Refresh = Literal["in_place", "replace", "swap"]
"""The way in which a new generation replaces a former one: beside it in the same process; in a new process, while
the former one ends; or in the former one's process, in its place."""


class GenerationReplicas(FigureRow):
    """Absolute count of replicas of a part that hold a generation in a region on a hardware kind."""

    model: str
    part: str
    generation: int
    region: str
    hardware: str
    count: int = Field(ge=0)


class GenerationShare(FigureRow):
    """Fraction of the demand of `from` that a generation answers in `to`."""

    model: str
    origin: str = Field(alias="from")
    to: str
    generation: int
    fraction: float = Field(ge=0, le=1.000001)


class FleetState(Value):
    """Replicas and traffic by generation."""

    replicas: tuple[GenerationReplicas, ...] = ()
    traffic: tuple[GenerationShare, ...] = ()


class Share(FigureRow):
    """One entry of a route change."""

    to: str
    generation: int
    fraction: float = Field(ge=0, le=1.000001)


class RouteChange(Value):
    """The new shares of one (model, from); they replace all former ones."""

    model: str
    origin: str = Field(alias="from")
    shares: tuple[Share, ...]


class Wave(Value):
    """All of `scale_up` is ready before `route` applies; `route` has applied before `scale_down`."""

    scale_up: tuple[GenerationReplicas, ...] = ()
    route: tuple[RouteChange, ...] = ()
    scale_down: tuple[GenerationReplicas, ...] = ()
    hold_seconds: float = Field(default=0.0, ge=0)
    gate: Literal["canary", "step", "final"] = "step"


class SurgeItem(Value):
    """Units needed beyond the larger of the two states."""

    region: str
    hardware: str
    units: float


class Dip(FigureRow):
    """The largest fraction of a part's ready throughput in a region that may be missing for a generation's traffic."""

    model: str
    part: str
    region: str
    fraction: float = Field(gt=0, le=1)


class Swap(FigureRow):
    """Replicas of a part in a region that go over to another generation where they stand.

    Those of a wave answer for neither generation until they have: `fraction` of what the part's traffic in the region
    needs is missing then, at most.
    """

    model: str
    part: str
    region: str
    replicas: int = Field(ge=1)
    """In all waves together."""
    fraction: float = Field(ge=0, le=1)


class Transition(Value):
    """transition.json: waves from `from` to `to`, or why there are none."""

    origin: FleetState = Field(alias="from")
    to: FleetState
    waves: tuple[Wave, ...] = ()
    surge: tuple[SurgeItem, ...] = ()
    dips: tuple[Dip, ...] = ()
    """Where the waves go below the traffic; empty unless the owner's policy allows a dip."""
    swaps: tuple[Swap, ...] = ()
    """With `refresh: swap`: what goes over. A wave that swaps has the counts of both generations in `scale_up`."""
    refused: str | None = None
    demand: tuple[RegionDemand, ...] = ()
    """Of a transition of one model: what the waves were planned for; its owner may ask for another demand meanwhile."""
    refresh: Refresh = "in_place"
    """Whether one process holds several generations, or each snapshot has processes of its own, which go over where
    they can."""

    @property
    def apart(self) -> bool:
        """Whether a process holds one generation only, so that those of several generations add up."""
        return self.refresh != "in_place"


class TransitionState(StrEnum):
    """Where a transition stands."""

    PLANNED = "planned"
    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
