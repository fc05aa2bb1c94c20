"""Requests and answers of the API other than manifests: the wire types of `ipnext.api` and `ipnext.client`.

Answers about manifests and status are camelCase, as a person writes them; records of runs are snake_case.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, model_validator

from ipnext.model.api.derivatives import DerivativeView
from ipnext.model.api.generation_stats import GenerationAnswers
from ipnext.model.api.sources import SourceView
from ipnext.model.api.stages import StageProgress
from ipnext.model.deployment.deployment import DeploymentStatus
from ipnext.model.deployment.replica import Replica
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.lifecycle.freshness import PartFreshness, SnapshotServing
from ipnext.model.lifecycle.regions.drain import DrainView
from ipnext.model.lifecycle.replans.moves import MovesPause
from ipnext.model.lifecycle.replans.replan import Replan
from ipnext.model.lifecycle.shadow import ShadowView
from ipnext.model.lifecycle.status import ModelStatus, Reason
from ipnext.model.manifest.freeze import Frozen, ReasonText
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import Plan, PlanDiff, Problem, Unmet
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.model.registry.profile import PartThroughput
from ipnext.model.registry.registry import Generation, Snapshot, SplitLayout
from ipnext.model.value import Name, Sha256, Value, WrittenMoment, WrittenValue

ChangeId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]
"""Chosen by the client, so that a repeated request is one change: letters, digits, `_`, `.`, `-`; at most 80.

The prefixes of `ipnext.names.RESERVED_PREFIXES` are the platform's own: the API refuses them.
"""

AnyId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$")]
"""Of a record, whether a client or the platform chose it: that of a move names its plan and its model."""


Item = TypeVar("Item")


class ListPage(Value, Generic[Item]):
    """A page of a list. `next`, given as `after`, leads to the following page; null on the last one."""

    items: tuple[Item, ...] = ()
    next: str | None = None


class ErrorBody(Value):
    """Body of every answer that is not a success. `code` is one of docs/reference/errors.md."""

    code: str
    message: str
    field: str | None = None
    value: Any = None
    allowed: tuple[str, ...] | None = None
    rules: tuple[str, ...] | None = None
    """The binding rules, if the code is Infeasible."""
    policy: str | None = None
    """The policy that decided, if the code is Forbidden."""


class ChangeView(Change):
    """A change with the link to its run in the Temporal UI (none before the run starts)."""

    run_url: str | None = None
    again: str | None = None
    """The change that carries this one out again, as a region was lost in its way. Only `GET /v1/changes/{change_id}`
    has it."""
    shadow: ShadowView | None = None
    """The shadow that it keeps while its stage `shadow` runs. Lists of changes of all models do not have it."""
    stages: tuple[StageProgress, ...] = ()
    """Its stages in their order; empty before it begins. Of lists of changes of all models, only the overview's has
    them."""


class FieldChange(WrittenValue):
    """A field of a manifest that an apply changes. An absent field is null."""

    field: str
    before: Any = None
    after: Any = None


class ModelApplied(WrittenValue):
    """Answer of an apply. With `dryRun` nothing was written, and `version` is the one in force (0: none)."""

    model: Name
    version: int
    generation: int
    changed: bool
    restored: bool = False
    """The model was retired and is back. Nothing serves until it is published, or rolled back to a generation that
    served."""
    dry_run: bool = False
    fields: tuple[FieldChange, ...] = ()
    change: ChangeView | None = None
    """The change that brings a model that serves to its new manifest."""


class ModelView(WrittenValue):
    """A model as applied and as observed."""

    manifest: ModelManifest
    version: int
    retired: bool = False
    created_at: datetime
    updated_at: datetime
    status: ModelStatus
    deployments: tuple[DeploymentStatus, ...] = ()
    layout: SplitLayout | None = None
    """The parts that the serving generation is cut into, if its manifest splits it."""
    answers: tuple[GenerationAnswers, ...] = ()
    """How the generations that are served answer; left out of lists of models."""
    throughput: tuple[PartThroughput, ...] = ()
    """What plans take a replica of each part to do; left out of lists of models."""
    freshness: tuple[PartFreshness, ...] = ()
    """The snapshots that serve each region, and their age; left out of lists of models."""


class FleetView(WrittenValue):
    """The fleet as applied."""

    spec: FleetSpec
    version: int
    updated_at: datetime


class SnapshotView(Snapshot):
    """A snapshot with the regions whose users it has served."""

    servings: tuple[SnapshotServing, ...] = ()
    """Each with the first time; known of the newest 20 snapshots that served a region."""


class PublishPart(WrittenValue):
    """One part's content: the digest of an uploaded snapshot, or a file:// or s3:// uri the server reads."""

    digest: Sha256 | None = None
    uri: str | None = Field(default=None, min_length=1)
    trained_at: WrittenMoment | None = None
    """When its training ended; without it what `training.json` says, if a uri names a directory that has one."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.digest is None) == (self.uri is None):
            msg = "give either digest or uri"
            raise ValueError(msg)
        return self


class PublishRequest(WrittenValue):
    """Body of a publish."""

    change_id: ChangeId | None = None
    parts: Mapping[Name, PublishPart] = Field(min_length=1)
    override_freeze: ReasonText | None = None
    """The reason for which this change passes every freeze; it stands in the audit."""


class RollbackRequest(WrittenValue):
    """Body of a rollback. Without `generation`: the newest other generation that has served."""

    change_id: ChangeId | None = None
    generation: int | None = Field(default=None, ge=1, lt=2**31)


class RepairRequest(WrittenValue):
    """Body of a repair."""

    change_id: ChangeId | None = None


class ReplanRequest(WrittenValue):
    """Body of a replan. `dryRun`: the plan is computed and stored, nothing is adopted, nothing moves."""

    replan_id: ChangeId | None = None
    trigger: Literal["manual", "supply", "drain"] = "manual"
    dry_run: bool = False
    max_moves: int | None = Field(default=None, ge=0, lt=2**31)
    """At most so many replicas started; without it the platform's setting."""


MOST_ASKED: Final = 1000
"""Digests of one query: each costs the server a call to its artifact store. Clients ask for more in several."""


class BlobQuery(WrittenValue):
    """SHA-256 digests a client is about to upload."""

    digests: tuple[Sha256, ...] = Field(max_length=MOST_ASKED)


class MissingBlobs(WrittenValue):
    """Those of the asked digests that the store does not hold."""

    missing: tuple[Sha256, ...]


class StoredSnapshot(WrittenValue):
    """A snapshot that the artifact store holds whole."""

    uri: str
    digest: Sha256


class ReplanView(Replan):
    """A replan with the link to its run in the Temporal UI (none before the run plans it)."""

    run_url: str | None = None


class MovesView(Value):
    """How the moves of replans stand."""

    pause: MovesPause | None = None
    """Null: moves go on."""
    replan: ReplanView | None = None
    """The replan whose models move now."""
    replans_waiting: int = 0
    """Replans that wait for a run; while moves are paused, also those that wait for the end of the pause."""


class PlanSummary(Value):
    """A plan without its problem and placements. Money is $/h, unmet demand is in the models' units."""

    id: str
    trigger: str
    scope: str | None = None
    """The one model that was placed on what the others leave; null: the whole fleet."""
    outcome: Literal["adopted", "kept", "dry_run", "failed"] = "kept"
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    based_on: str | None = None
    """The plan that was in force when this one was made."""
    input_digest: str = ""
    """SHA-256 of the problem; empty if no plan was found."""
    status: str
    method: str = ""
    objective: float = 0.0
    bound: float = 0.0
    bound_covers: str = ""
    """The plans over which `bound` is a lower bound of the objective. Of one model's if `scope` names one."""
    gap: float
    cost_per_hour: float
    """Of the whole fleet with this plan."""
    unmet_qps: float
    """Of the whole fleet with this plan."""
    moves: int
    wall_seconds: float | None = None
    """What the search took, where it was measured."""
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    adopted: bool
    in_force: bool = False
    has_documents: bool = True
    """False if no plan was found, or if only this line is kept."""
    created_at: datetime


class PlanView(PlanSummary):
    """A plan with its problem and its difference to the plan before it."""

    problem: Problem
    plan: Plan
    diff: PlanDiff


class TransitionView(Value):
    """A transition and how far it is. `waves_done` counts whole waves."""

    id: str
    model: Name
    change_id: str
    generation: int
    transition: Transition
    state: TransitionState
    waves_done: int
    message: str
    created_at: datetime


class EventView(Value):
    """One line of the history that a person reads."""

    at: datetime
    model: str | None
    kind: str
    message: str
    run_id: str | None = None
    detail: Mapping[str, Any] | None = None


class HardwareUse(Value):
    """Units of one hardware kind in one region; `used` is what the wanted deployments take."""

    hardware: Name
    units: float
    used: float
    free: float
    unit_cost: float


class RegionView(Value):
    """A region as the fleet states it and as its infrastructure reports it."""

    region: Name
    reachable: bool
    drain: DrainView | None = None
    """Where it is out of service, or on its way; none: in service."""
    gateway_url: str | None = None
    gateway_is_named: bool = False
    """The operator named `gateway_url` (IPNEXT_GATEWAYS), so that clients send credentials there. Otherwise the
    region's agent reported it."""
    supply: tuple[HardwareUse, ...] = ()
    replicas: tuple[Replica, ...] = ()
    """At most twenty, those that do not answer first; all of them: `GET /v1/regions/{region}/replicas`."""
    replica_count: int = 0
    phases: Mapping[str, int] = Field(default_factory=dict)
    """Phase -> replicas in it."""
    routed_models: int = 0
    """Models that the region's gateway has a route table of."""
    requests: int = 0
    """Requests that its router has counted since it started."""
    errors: int = 0
    access_behind_seconds: float | None = None
    """Time since the region has had a newer access list than the one that its router goes by; none: it has no newer
    one. For callers who see the whole fleet."""


class PlanInForce(Value):
    """The plan in force with the demand it leaves unserved."""

    summary: PlanSummary
    unmet: tuple[Unmet, ...] = ()
    """Of the twenty models with the most."""
    unmet_models: int = 0
    """Models of whose demand some is left unserved."""
    tokens: tuple[Name, ...] = ()
    """Those of the models in `unmet` whose demand is in tokens a second."""


class ExplanationStep(Value):
    """One link of the chain from a deployment to the cause."""

    level: Literal["deployment", "change", "step", "part", "region", "host", "freshness", "cause"]
    subject: str
    state: str
    message: str = ""


class StatusExplanation(Value):
    """Why a model is, or is not, where its owner wants it: one chain, one reason, what to do."""

    model: Name
    ready: bool
    reason: Reason
    message: str
    advice: str
    chain: tuple[ExplanationStep, ...]


class ModelOverview(Value):
    """One model on the page."""

    model: ModelView
    generations: tuple[Generation, ...] = ()
    """Newest first, at most eight."""
    frozen: Frozen | None = None
    """What would hold a publish back now."""
    explanation: StatusExplanation | None = None
    """Why it is not ready; of the first ten of the page that are not."""
    sources: tuple[SourceView, ...] = ()
    change: ChangeView | None = None
    """The change that runs, else the newest one, with its stages and the shadow that it keeps."""
    derivatives: tuple[DerivativeView, ...] = ()
    """The newest finished steps of its optimization pipeline, at most eight."""


class Overview(Value):
    """Everything the page shows, read at one moment: a page of the models, and the whole fleet in counts."""

    models: tuple[ModelOverview, ...] = ()
    next: str | None = None
    """Given as `after`, it leads to the following models; null on the last page."""
    model_count: int = 0
    """Models that are not retired."""
    ready_count: int = 0
    not_ready: tuple[Name, ...] = ()
    """The first fifty models, by name, that are not ready; all of them: `GET /v1/models?ready=false`."""
    regions: tuple[RegionView, ...] = ()
    changes: tuple[ChangeView, ...] = ()
    """Of all models, newest first."""
    events: tuple[EventView, ...] = ()
    plan: PlanInForce | None = None
    replan: PlanSummary | None = None
    """The newest plan of the whole fleet, whatever came of it; a dry run is none."""
    temporal_ui_url: str


class TemporalUi(Value):
    """Where Temporal's UI is."""

    url: str


class Readiness(Value):
    """Answer of `/readyz`. Temporal may be down: reads and publishes are answered all the same."""

    ready: bool
    store: Literal["ok", "down", "foreign"]
    """foreign: it belongs to another platform, so nothing of it is submitted here."""
    access_settings: Literal["ok", "differ"] = "ok"
    """differ: gateways go by other policies, or another identity provider, than this process does."""
    temporal: Literal["ok", "down"]
    unsubmitted_changes: int | None = None
    """None for callers that do not operate the platform, and without the store."""
    stuck_changes: int | None = None
    """Of those: refused by Temporal, or not taken after several attempts; `ipnext platform check` names the cause. None
    for the same callers."""
