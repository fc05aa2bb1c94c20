"""Transitions: the safe waves from one state to another, in the wire form that an independent checker reads."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from ipnext.model.value import Value


class GenerationReplicas(Value):
    """Absolute count of replicas of a part that hold a generation in a region on a hardware kind."""

    model: str
    part: str
    generation: int
    region: str
    hardware: str
    count: int = Field(ge=0)


class GenerationShare(Value):
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


class Share(Value):
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


class Transition(Value):
    """transition.json: waves from `from` to `to`, or why there are none."""

    origin: FleetState = Field(alias="from")
    to: FleetState
    waves: tuple[Wave, ...] = ()
    surge: tuple[SurgeItem, ...] = ()
    refused: str | None = None
    refresh: Literal["in_place", "replace"] = "in_place"
    """Whether one process holds several generations, or each snapshot has processes of its own."""


class TransitionState(StrEnum):
    """Where a transition stands."""

    PLANNED = "planned"
    RUNNING = "running"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
