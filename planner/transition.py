"""stub"""
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ipnext.model.plan import Problem
from ipnext.model.rollout import FleetState, Transition
from ipnext.model.value import Value
from planner.solution import Violation


class StepPolicy(Value):
    """How fast one model's traffic may move."""

    canary: float = Field(default=0.05, gt=0, le=1)
    max_step: float = Field(default=0.25, gt=0, le=1)
    hold_seconds: float = Field(default=0.0, ge=0)
    refresh: Literal["in_place", "replace"] = "in_place"


def plan_transition(problem: Problem, origin: FleetState, to: FleetState, policies: Mapping[str, StepPolicy]) -> Transition:
    """Waves."""
    raise NotImplementedError


def check_transition(problem: Problem, transition: Transition, policies: Mapping[str, StepPolicy]) -> tuple[Violation, ...]:
    """Violations."""
    raise NotImplementedError
