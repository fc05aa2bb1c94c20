"""What the repository gives out: frozen records, never tables."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from ipnext.model.fleet import FleetSpec
from ipnext.model.freeze import FreezeManifest
from ipnext.model.manifest import ModelManifest
from ipnext.model.owner import OwnerManifest
from ipnext.model.plan import (
    CurrentState,
    ModelProblem,
    Plan,
    PlanDiff,
    Problem,
    ReplicaCount,
    TrafficShare,
    Unmet,
)
from ipnext.model.rollout import Transition, TransitionState
from ipnext.model.status import Reason
from ipnext.model.value import Value

PlanOutcome = Literal["adopted", "kept", "dry_run", "failed"]
"""What came of a plan: put in force, not worth it, asked for as a dry run, or none found."""


class ModelRecord(Value):
    """A model as applied. `generation` is the manifest's revision; `version` guards writes."""

    manifest: ModelManifest
    generation: int
    observed_generation: int = 0
    version: int
    serving_generation: int | None = None
    target_generation: int | None = None
    refused_generation: int | None = None
    """The revision of the manifest that a validation refused, if none was accepted since."""
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


class FreezeRecord(Value):
    """A freeze as applied. `version` guards writes."""

    manifest: FreezeManifest
    version: int
    created_at: datetime
    updated_at: datetime


class OwnerRecord(Value):
    """An owner as applied, without members. `version` guards writes."""

    manifest: OwnerManifest
    version: int
    created_at: datetime
    updated_at: datetime

    @property
    def name(self) -> str:
        """The owner's name."""
        return self.manifest.name


class OwnerUse(Value):
    """What an owner's models that are not retired count for, and what the plan in force gives them."""

    claimed: Mapping[str, float] = {}
    """Quota -> the sum of the models' claims; `models` is their number."""
    without_budget: int = 0
    """Models without a claim of $/h."""
    placed_units: Mapping[str, float] = {}
    """Hardware kind -> units in all regions."""
    placed_replicas: int = 0
    """In all regions."""
    placed_cost: float = 0.0
    """$/h."""


class SolveUse(Value):
    """What a search for a plan took. It stands beside the plan document, which is the same whatever the clock says.

    Making the planner's kernels ready is not counted, if the search had a process of its own.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None = None
    """The most memory of the solver's process; None where it had none of its own."""


class PlanEntry(Value):
    """A plan without its documents: the line that a person reads. Also a replan that found none (`failed`)."""

    id: str
    trigger: str
    """`publish MODEL`, `schedule`, `manual`, ..."""
    scope: str | None = None
    """The one model that was placed on what the others leave; None: the whole fleet."""
    outcome: PlanOutcome = "kept"
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    based_on: str | None = None
    """The plan that was in force when this one was made."""
    input_digest: str = ""
    """SHA-256 of the problem; empty where there is no plan."""
    status: str = ""
    method: str = ""
    objective: float = 0.0
    """$/h, with `bound` and `gap`: of the plan's own document, so of one model where `scope` names one."""
    bound: float = 0.0
    bound_covers: str = ""
    gap: float = 0.0
    cost_per_hour: float = 0.0
    """Of the whole fleet with this plan."""
    unmet_qps: float = 0.0
    """Of the whole fleet with this plan."""
    moves: int = 0
    use: SolveUse | None = None
    has_documents: bool = True
    """False where the plan was never found, or is so old that only this line is kept."""
    created_at: datetime

    @property
    def adopted(self) -> bool:
        """True where the plan is or was in force."""
        return self.outcome == "adopted"


class PlanRecord(Value):
    """A plan with its input and what it changes against the plan before it.

    Where `scope` names a model, problem and plan are of that model alone, on what all others leave of the supply.
    """

    id: str
    trigger: str
    scope: str | None = None
    outcome: PlanOutcome = "kept"
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    based_on: str | None = None
    input_digest: str
    problem: Problem
    plan: Plan
    diff: PlanDiff
    use: SolveUse | None = None
    created_at: datetime

    @property
    def adopted(self) -> bool:
        """True where the plan is or was in force."""
        return self.outcome == "adopted"


class PlanDocuments(Value):
    """A plan's documents as JSON text, for who only hands them on."""

    problem: str
    plan: str
    diff: str


class Placement(Value):
    """What the plan in force gives one model, and the wishes it was made for."""

    model: str
    plan_id: str
    """The plan that decided it; later plans that leave it as it is don't count."""
    wishes: ModelProblem
    replicas: tuple[ReplicaCount, ...] = ()
    traffic: tuple[TrafficShare, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    cost_per_hour: float = 0.0
    """At the prices it was planned at."""

    @property
    def state(self) -> CurrentState:
        """Its rows."""
        return CurrentState(replicas=self.replicas, traffic=self.traffic)


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
    fence: int = 0
    """The fencing token: rises each time another run takes the transition over. Only runs that hold it may write."""
    revision: int = 0
    """Revision of the manifest that the waves were planned with."""

    @property
    def is_open(self) -> bool:
        """True while it may still move traffic or replicas."""
        return self.state in {TransitionState.PLANNED, TransitionState.RUNNING}


class Moving(NamedTuple):
    """A transition under way and what it was planned for, as JSON."""

    model: str
    transition: str
    manifest: str
    layout: str | None
    """Of the transition's generation, if that is cut."""


class HeldSlot(NamedTuple):
    """Replicas of one replica set, by the plan in force or as they are wanted now, and units of one of them."""

    model: str
    part: str
    region: str
    hardware: str
    replicas: int
    units: float


class Event(Value):
    """One line of the history that a person reads."""

    at: datetime
    model: str | None
    kind: str
    message: str
    run_id: str | None = None
    detail: Mapping[str, Any] | None = None
