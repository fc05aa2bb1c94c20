"""What the repository gives out: frozen records, never tables."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ipnext.model.fleet import FleetSpec
from ipnext.model.manifest import ModelManifest
from ipnext.model.plan import Plan, PlanDiff, Problem
from ipnext.model.rollout import Transition, TransitionState
from ipnext.model.value import Value


class ModelRecord(Value):
    """A model as applied. `generation` is the manifest's revision; `version` guards writes."""

    manifest: ModelManifest
    generation: int
    observed_generation: int = 0
    version: int
    serving_generation: int | None = None
    target_generation: int | None = None
    retired: bool = False
    created_at: datetime
    updated_at: datetime

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name


class FleetRecord(Value):
    """The fleet as applied."""

    spec: FleetSpec
    version: int
    updated_at: datetime


class PlanRecord(Value):
    """A plan with its input and what it changes against the plan before it."""

    id: str
    trigger: str
    """`publish MODEL`, `schedule`, `manual`, ..."""
    input_digest: str
    problem: Problem
    plan: Plan
    diff: PlanDiff
    adopted: bool = False
    message: str = ""
    created_at: datetime


class TransitionRecord(Value):
    """A transition and how far it is. `waves_done` counts whole waves."""

    id: str
    model: str
    change_id: str
    generation: int
    transition: Transition
    state: TransitionState = TransitionState.PLANNED
    waves_done: int = 0
    message: str = ""
    created_at: datetime


class Event(Value):
    """One line of the history that a person reads."""

    at: datetime
    model: str | None
    kind: str
    message: str
    run_id: str | None = None
    detail: Mapping[str, Any] | None = None
