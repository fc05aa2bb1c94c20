"""The repository's results: frozen records, never tables."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from ipnext.model.access.owner import OwnerManifest
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.model.manifest.manifest import ModelManifest, ModelSpec
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.planning.plan import (
    CurrentState,
    ModelProblem,
    Plan,
    PlanDiff,
    Problem,
    ReplicaCount,
    TrafficShare,
    Unmet,
)
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.model.registry.registry import GenerationState
from ipnext.model.registry.sources import FoundVersion, Reach, VersionState
from ipnext.model.value import Value

PlanOutcome = Literal["adopted", "kept", "dry_run", "failed"]
"""Outcome of a plan: put in force, not worth it, requested as a dry run, or none found."""


class JudgedSpec(Value):
    """A revision of a manifest that a validation accepted."""

    revision: int
    spec: ModelSpec | None = None
    """Its spec; None if the model's newest manifest has it."""


class ModelPlacement(Value):
    """One model's placement in the plan in force, and the desired state that it was made for."""

    model: str
    plan_id: str
    """The plan that decided it; later plans that leave it unchanged don't count."""
    wishes: ModelProblem
    replicas: tuple[ReplicaCount, ...] = ()
    traffic: tuple[TrafficShare, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    cost_per_hour: float = 0.0
    """At the prices of its plan."""

    @property
    def parts(self) -> frozenset[str]:
        """Parts that it was made for."""
        return frozenset(part.part for part in self.wishes.parts)

    @property
    def state(self) -> CurrentState:
        """Its replicas and traffic."""
        return CurrentState(replicas=self.replicas, traffic=self.traffic)


class FormerBasis(Value):
    """What a model went by before an open change was planned: what serves goes by it until the change moves the model.

    The end of that change without success restores it.
    """

    change_id: str
    generation: int = 0
    """The generation that the change rolls out by its manifest; 0 for a rollback, which brings none."""
    accepted: JudgedSpec | None = None
    """The revision that was in force; None if there was none yet."""
    placement: ModelPlacement | None = None
    """The placement that was in force, with the wishes that it was made for; None if the model was not placed."""
    plan_id: str = ""
    """The plan of the placement that the change goes by."""


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
    validated: JudgedSpec | None = None
    """The newest revision that a validation accepted."""
    accepted: JudgedSpec | None = None
    """The one in force: the newest of them that a change was planned by, unless that change ended without success."""
    former: FormerBasis | None = None
    """What was in force before the open change that put `accepted` in force."""
    retired: bool = False
    created_at: datetime
    updated_at: datetime

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def in_force(self) -> ModelManifest:
        """The manifest that the model is planned, started and routed by.

        The newest one, with the spec that is in force. A spec is in force while its change is carried out, and once
        that has succeeded. One that was refused, is not validated yet, or whose change ended without success changes
        nothing that serves but its owner's policies: who may ask, and which signatures count.
        """
        return self._by(self.accepted)

    @property
    def judged_manifest(self) -> ModelManifest:
        """The manifest that a change which was validated goes on with: the newest spec that a validation accepted."""
        return self._by(self.validated)

    @property
    def revision_in_force(self) -> int:
        """The revision of `in_force`."""
        return self.accepted.revision if self.accepted else self.generation

    def _by(self, judged: JudgedSpec | None) -> ModelManifest:
        if judged is None or judged.spec is None:
            return self.manifest
        newest = self.manifest.spec
        policies = {"access": newest.access, "validation": newest.validation}
        return self.manifest.model_copy(update={"spec": judged.spec.model_copy(update=policies)})


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
    """Claims of an owner's models that are not retired, and their placements in the plan in force."""

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
    """Resources of a search for a plan. They are not in the plan document, which does not depend on the clock.

    Compiling the planner's kernels is not counted, if the search had a separate process.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None = None
    """Peak memory of the solver's process; None if it had no separate process."""


class PlanEntry(Value):
    """A plan without its documents, for lists. Also a replan that found none (`failed`)."""

    id: str
    trigger: str
    """`publish MODEL`, `schedule`, `manual`, ..."""
    scope: str | None = None
    """The one model that was placed on the residual supply; None: the whole fleet."""
    outcome: PlanOutcome = "kept"
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    based_on: str | None = None
    """The plan that was in force when this one was made."""
    input_digest: str = ""
    """SHA-256 of the problem; empty if there is no plan."""
    status: str = ""
    method: str = ""
    objective: float = 0.0
    """$/h, like `bound` and `gap`: of the plan's document, so of one model if `scope` names one."""
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
    """False if no plan was found, or if the plan is so old that only this entry is kept."""
    created_at: datetime

    @property
    def is_adopted(self) -> bool:
        """True if the plan is or was in force."""
        return self.outcome == "adopted"


class PlanRecord(Value):
    """A plan with its input and its changes against the plan before it.

    If `scope` names a model, problem and plan are of that model alone, on the residual supply.
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
    def is_adopted(self) -> bool:
        """True if the plan is or was in force."""
        return self.outcome == "adopted"


class PlanDocuments(Value):
    """A plan's documents as JSON text, for callers that only pass them on."""

    problem: str
    plan: str
    diff: str


class TransitionRecord(Value):
    """A transition and its progress. `waves_done` counts whole waves."""

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
    """The fencing token: rises each time another run takes the transition over. Only the run with the current token
    may write."""
    revision: int = 0
    """Revision of the manifest that the waves were planned with."""
    rests: bool = False
    """True while no activity of it changes anything, between two steps: regions hold then what the store has."""

    @property
    def is_open(self) -> bool:
        """True while it may still move traffic or replicas."""
        return self.state in {TransitionState.PLANNED, TransitionState.RUNNING}


class StateBefore(Value):
    """Desired state of a model when a transition of it was planned: a revert restores it."""

    deployments: tuple[Deployment, ...] = ()
    served: tuple[ServedGeneration, ...] = ()
    """Generations as the route tables had them."""

    @property
    def units(self) -> Mapping[tuple[str, str], float]:
        """(part, hardware) -> units of a replica."""
        return {(found.key.part, found.key.hardware): found.units for found in self.deployments}


class ModelTransition(NamedTuple):
    """A transition under way with the model's manifest, layout, placement and state before, as JSON."""

    model: str
    transition: str
    manifest: str
    layout: str | None
    """Layout of the transition's generation, if that is cut."""
    wishes: str | None = None
    """The wishes that the plan in force places the model by, if it does."""
    before: str | None = None
    """`StateBefore` of the transition."""


class HeldSlot(NamedTuple):
    """Replicas of one replica set, by the plan in force or by the desired state now, and the units of one of them."""

    model: str
    part: str
    region: str
    hardware: str
    replicas: int
    units: float


class Event(Value):
    """One event of the history."""

    at: datetime
    model: str | None
    kind: str
    message: str
    run_id: str | None = None
    detail: Mapping[str, Any] | None = None


class GenerationEnd(Value):
    """How a generation ended, or how far it is."""

    number: int
    state: GenerationState
    reason: str | None = None
    message: str | None = None
    served: bool = False
    """Whether it serves, or has served."""


class SnapshotHold(Value):
    """A hold of a snapshot: its bytes are not collected until the hold is released."""

    model: str
    part: str
    number: int
    reason: str
    held_by: str
    created_at: datetime


class SourceRecord(Value):
    """A source of a model, and where its watch stands."""

    model: str
    owner: str
    name: str
    kind: str
    upstream: str
    stream: str
    part: str
    spec: SourceSpec
    reach: Reach
    paused_by: str | None = None
    paused_at: datetime | None = None
    pause_reason: str = ""
    cursor: str = ""
    polled_at: datetime | None = None
    failures: int = 0
    error: str = ""
    picked_at: datetime | None = None
    picked_key: str | None = None
    created_at: datetime


class VersionRecord(Value):
    """A version that a source found, and what became of it. `ordinal` is the order of finding over all sources."""

    ordinal: int
    model: str
    source: str
    part: str
    version: FoundVersion
    state: VersionState
    digest: str | None = None
    found_at: datetime
    attempts: int = 0
    due_at: datetime | None = None
    message: str = ""
    change_id: str | None = None
    ended_at: datetime | None = None
