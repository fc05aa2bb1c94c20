"""Conditions with positive polarity and a closed list of reasons."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from ipnext.model.deployment.replica import Replica
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.value import Name, WrittenValue


class ConditionType(StrEnum):
    """Each is true when all is well. `Ready` is `Serving` and `UpToDate`, and is derived from them (`ready_of`)."""

    RESOLVED = "SnapshotsResolved"
    VALIDATED = "Validated"
    PLANNED = "Planned"
    CAPACITY_READY = "CapacityReady"
    ROUTES_READY = "RoutesReady"
    PROGRESSING = "Progressing"
    """Nothing holds the model's changes back; while a change runs, the message names its step."""
    SERVING = "Serving"
    """A validated generation answers, in every region whose users the model is for."""
    UP_TO_DATE = "UpToDate"
    """The newest wanted state, generation and manifest, is the one that is routed to."""
    FRESH = "Fresh"
    """No part that asks for freshness breaches it. Absent if none asks; not a half of `Ready`."""
    READY = "Ready"


class Reason(StrEnum):
    """Why a condition has its status. docs/reference/reasons.md explains each."""

    PENDING = "Pending"
    PROGRESSING = "Progressing"
    SUCCEEDED = "Succeeded"
    SERVING = "Serving"
    NOT_PUBLISHED = "NotPublished"
    SUPERSEDED = "Superseded"
    ROLLED_BACK = "RolledBack"
    ARTIFACT_MISSING = "ArtifactMissing"
    ARTIFACT_DIGEST_MISMATCH = "ArtifactDigestMismatch"
    SIGNATURE_INVALID = "SignatureInvalid"
    SNAPSHOT_DENIED = "SnapshotDenied"
    ENGINE_MISMATCH = "EngineMismatch"
    UNSAFE_FORMAT = "UnsafeFormat"
    SCHEMA_MISMATCH = "SchemaMismatch"
    NON_FINITE_WEIGHTS = "NonFiniteWeights"
    SPLIT_REFUSED = "SplitRefused"
    SPLIT_DIFFERS = "SplitDiffers"
    OPTIMIZATION_REFUSED = "OptimizationRefused"
    ACCURACY_LOST = "AccuracyLost"
    STAGE_REFUSED = "StageRefused"
    STAGE_FAILED = "StageFailed"
    METRICS_REGRESSED = "MetricsRegressed"
    GOLDEN_MISMATCH = "GoldenMismatch"
    PAUSED = "Paused"
    AWAITING_APPROVAL = "AwaitingApproval"
    ABORTED = "Aborted"
    FROZEN = "Frozen"
    NO_CAPACITY = "NoCapacity"
    OVER_BUDGET = "OverBudget"
    QUOTA_EXCEEDED = "QuotaExceeded"
    PLANNER_INFEASIBLE = "PlannerInfeasible"
    PLANNER_FAILED = "PlannerFailed"
    TRANSITION_REFUSED = "TransitionRefused"
    LOAD_FAILED = "LoadFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    CRASH_LOOP = "CrashLoop"
    REGION_UNREACHABLE = "RegionUnreachable"
    UNAVAILABLE = "Unavailable"
    ROUTE_FAILED = "RouteFailed"
    GATE_FAILED = "GateFailed"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    FRESH = "Fresh"
    TRAINING_LATE = "TrainingLate"
    PICK_UP_LATE = "PickUpLate"
    VALIDATION_LATE = "ValidationLate"
    FREEZE_LATE = "FreezeLate"
    SUPPLY_LATE = "SupplyLate"
    GATE_LATE = "GateLate"
    INTERNAL_ERROR = "InternalError"


_CODES: Mapping[str, Reason] = {
    "ArtifactMissing": Reason.ARTIFACT_MISSING,
    "ArtifactDigestMismatch": Reason.ARTIFACT_DIGEST_MISMATCH,
    "Infeasible": Reason.NO_CAPACITY,
    "LoadFailed": Reason.LOAD_FAILED,
    "MemoryExceeded": Reason.OUT_OF_MEMORY,
    "DeadlineExceeded": Reason.DEADLINE_EXCEEDED,
}


def reason_of(code: str | None, *, otherwise: Reason = Reason.INTERNAL_ERROR) -> Reason:
    """Return the reason for an error code of `ipnext.errors`. The code of a reason is that reason."""
    if code is not None and code in _CODES:
        return _CODES[code]
    return Reason(code) if code in set(Reason) else otherwise


ConditionStatus = Literal["True", "False", "Unknown"]


class Condition(WrittenValue):
    """One condition of an object."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: str = ""
    last_transition_time: datetime
    """When `status` last changed; of `Progressing`, when its change was recorded or ended, if that is later."""


def ready_of(conditions: Iterable[Condition]) -> Condition | None:
    """Return `Ready` for a model with these conditions; None if neither `Serving` nor `UpToDate` is among them.

    It has the reason and the message of the condition that prevents it: `UpToDate` first, as its reason is that of the
    newest change. `Unknown` if one of the two was never written.
    """
    found = {condition.type: condition for condition in conditions}
    halves = [found[kind] for kind in (ConditionType.UP_TO_DATE, ConditionType.SERVING) if kind in found]
    if not halves:
        return None
    unmet = [half for status in ("False", "Unknown") for half in halves if half.status == status]
    if unmet:
        since = min(half.last_transition_time for half in unmet if half.status == unmet[0].status)
        return unmet[0].model_copy(update={"type": ConditionType.READY, "last_transition_time": since})
    since = max(half.last_transition_time for half in halves)
    ready = halves[-1].model_copy(update={"type": ConditionType.READY, "last_transition_time": since})
    if len(halves) < 2:
        ready = ready.model_copy(update={"status": "Unknown", "reason": Reason.PENDING})
    return ready


def with_ready(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    """Return the conditions with `Ready`, which follows from the others, in the order of a rollout's stages."""
    found = [condition for condition in conditions if condition.type is not ConditionType.READY]
    ready = ready_of(found)
    shown = found if ready is None else [*found, ready]
    return tuple(sorted(shown, key=lambda condition: _SHOWN_FIRST.index(condition.type)))


_SHOWN_FIRST = tuple(ConditionType)


class ModelStatus(WrittenValue):
    """`status` of a model. `generation` here is the manifest's revision; `servingGeneration` is a set of snapshots."""

    model: Name
    generation: int
    """Revision of the manifest; rises by one with each change of the spec."""
    observed_generation: int = 0
    """Revision of the manifest that the platform last brought to serving."""
    serving_generation: int | None = None
    target_generation: int | None = None
    conditions: tuple[Condition, ...] = ()
    traffic: Mapping[str, tuple[RouteShare, ...]] = Field(default_factory=dict)
    """Region -> shares."""
    replicas: tuple[Replica, ...] = ()
    plan_id: str | None = None
    run_id: str | None = None
    unreachable_regions: tuple[Name, ...] = ()
    """Regions that did not answer in time: what runs there is not known."""

    @property
    def ready(self) -> bool:
        """True if the condition `Ready` is."""
        return self.is_met(ConditionType.READY)

    def is_met(self, kind: ConditionType, status: ConditionStatus = "True") -> bool:
        """Return whether a condition has this status; an absent one is `Unknown`."""
        found = next((condition.status for condition in self.conditions if condition.type is kind), "Unknown")
        return found == status
