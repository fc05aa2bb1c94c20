"""Status that tells the truth: conditions with positive polarity and a closed list of reasons."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from ipnext.model.deployment import Replica, RouteShare
from ipnext.model.value import Name, Written


class ConditionType(StrEnum):
    """Each is true when all is well. `Ready` is true only while the newest wanted state serves."""

    RESOLVED = "SnapshotsResolved"
    VALIDATED = "Validated"
    PLANNED = "Planned"
    CAPACITY_READY = "CapacityReady"
    ROUTES_READY = "RoutesReady"
    PROGRESSING = "Progressing"
    """Nothing holds the model's changes back."""
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
    ENGINE_MISMATCH = "EngineMismatch"
    UNSAFE_FORMAT = "UnsafeFormat"
    SCHEMA_MISMATCH = "SchemaMismatch"
    NON_FINITE_WEIGHTS = "NonFiniteWeights"
    SPLIT_REFUSED = "SplitRefused"
    SPLIT_DIFFERS = "SplitDiffers"
    PAUSED = "Paused"
    AWAITING_APPROVAL = "AwaitingApproval"
    ABORTED = "Aborted"
    FROZEN = "Frozen"
    NO_CAPACITY = "NoCapacity"
    OVER_BUDGET = "OverBudget"
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
    """The reason that an error code of `ipnext.errors` stands for; a code that is a reason stands for itself."""
    if code is not None and code in _CODES:
        return _CODES[code]
    return Reason(code) if code in set(Reason) else otherwise


class Condition(Written):
    """One condition of an object."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str = ""
    last_transition_time: datetime
    """When `status` last changed."""


class ModelStatus(Written):
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
        """True where the condition `Ready` is."""
        return any(c.type is ConditionType.READY and c.status == "True" for c in self.conditions)
