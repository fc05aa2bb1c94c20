"""The tables. A row never leaves the store: the repository turns it into a record or a model value.

Documents (manifests, plans, transitions, ...) are canonical JSON text: equal values have equal bytes on both engines.
"""

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import ForeignKeyConstraint, Index, MetaData, UniqueConstraint, text
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel

from ipnext.store.database.columns import PackedText, SafeText, UtcDateTime, WholeNumber

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


class Row(SQLModel, registry=registry(metadata=METADATA)):
    """Base of all rows, with a separate metadata instead of sqlmodel's process-wide one."""

    __tablename__: ClassVar[Any]


def _text(**options: Any) -> Any:
    return Field(sa_type=SafeText, **options)


def _packed_field(**options: Any) -> Any:
    return Field(sa_type=PackedText, **options)


def _number(**options: Any) -> Any:
    return Field(sa_type=WholeNumber, **options)


def _time(**options: Any) -> Any:
    return Field(sa_type=UtcDateTime, **options)


def _ordinal() -> Any:
    return Field(default=None, primary_key=True, sa_type=WholeNumber, sa_column_kwargs={"autoincrement": True})


def _of_model() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["model"], ["models.name"])


class FleetRow(Row, table=True):
    """The one fleet (id 1)."""

    __tablename__ = "fleet"

    id: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    spec: str = _text()
    version: int = _number()
    updated_at: datetime = _time()


class WorkflowNamespaceRow(Row, table=True):
    """The Temporal namespace that runs the changes of this database (id 1)."""

    __tablename__ = "workflow_namespace"

    id: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    namespace_id: str = _text()
    name: str = _text()
    address: str = _text()
    created_at: datetime = _time()


class SchemaCompatRow(Row, table=True):
    """The version of the tables, and the oldest version whose builds can use them (id 1).

    Written by migrations only.
    """

    __tablename__ = "schema_compat"

    id: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    version: str = _text()
    min_reader: str = _text()


class ModelRow(Row, table=True):
    """A model as applied. `owner` and `ready` repeat its manifest and its condition, for filters and counts."""

    __tablename__ = "models"
    __table_args__ = (
        Index("ix_models_owner", "owner", "name"),
        Index("ix_models_ready", "retired", "ready", "name"),
        Index("ix_models_documents", "owner", "document_bytes"),
        Index("ix_models_access_bytes", "access_bytes"),
    )

    name: str = _text(primary_key=True)
    manifest: str = _text()
    generation: int = _number()
    observed_generation: int = _number()
    version: int = _number()
    serving_generation: int | None = _number(default=None)
    target_generation: int | None = _number(default=None)
    owner: str = _text(default="")
    ready: bool = False
    """Whether the condition Ready is recorded as true; set with the condition."""
    retired: bool = False
    created_at: datetime = _time()
    updated_at: datetime = _time()
    document_bytes: int = _number(default=0)
    """Bytes of its manifest, and of the manifests and reports of its published snapshots."""
    access_bytes: int = _number(default=0)
    """Bytes of its entry in the access lists."""
    refused_generation: int | None = _number(default=None)
    """The revision of the manifest that a validation refused, if none was accepted since."""
    validated: str | None = _text(default=None)
    """The newest revision that a validation accepted, with its spec if the manifest has another one."""
    accepted: str | None = _text(default=None)
    """The one in force, likewise."""
    former: str | None = _text(default=None)
    """What was in force before the open change that put `accepted` in force."""


class SnapshotRow(Row, table=True):
    """One version of one part; its number has one winner."""

    __tablename__ = "snapshots"
    __table_args__ = (_of_model(), Index("ix_snapshots_digest", "model", "part", "digest"))

    model: str = _text(primary_key=True)
    part: str = _text(primary_key=True)
    number: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    digest: str = _text()
    uri: str = _text()
    manifest: str = _text()
    created_at: datetime = _time()
    collected_at: datetime | None = _time(default=None)
    """When its bytes were released because nothing can need them any more; None: they are kept."""


class ArtifactRow(Row, table=True):
    """A blob or the manifest of a snapshot in the artifact store: its account, and when it was last in use."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("ix_artifacts_account", "account"), Index("ix_artifacts_touched", "touched_at"))

    digest: str = _text(primary_key=True)
    size_bytes: int = _number()
    account: str = _text(default="")
    uploads: int = _number(default=0)
    """Uploads of it that are under way."""
    stored: bool = False
    """Whether an upload has succeeded; until then its size is the announced one."""
    touched_at: datetime = _time()


class ProfileRow(Row, table=True):
    """One measurement of one snapshot; never changed."""

    __tablename__ = "profiles"
    __table_args__ = (
        ForeignKeyConstraint(["model", "part", "snapshot"], ["snapshots.model", "snapshots.part", "snapshots.number"]),
        UniqueConstraint("id"),
        Index("ix_profiles_snapshot", "model", "part", "snapshot", "ordinal"),
        Index("ix_profiles_architecture", "model", "part", "architecture", "hardware", "measured_at", "ordinal"),
    )

    ordinal: int | None = _ordinal()
    id: str = _text()
    model: str = _text()
    part: str = _text()
    snapshot: int = _number()
    hardware: str = _text()
    architecture: str = _text()
    """Architecture of the snapshot (`model.profile.architecture_of`): the profile applies to all snapshots of the
    part that share it."""
    profile: str = _packed_field()
    measured_at: datetime = _time()
    created_at: datetime = _time()


class GenerationRow(Row, table=True):
    """One snapshot for every part of a model; its number has one winner."""

    __tablename__ = "generations"
    __table_args__ = (
        _of_model(),
        Index("ix_generations_state", "model", "state"),
        Index("ix_generations_serving_at", "model", "serving_at"),
    )

    model: str = _text(primary_key=True)
    number: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    snapshots: str = _text()
    layout: str | None = _packed_field(default=None)
    """NULL if the generation is not cut."""
    graph: str | None = _packed_field(default=None)
    """The graph by which it served last; NULL before it served, and if no manifest gave it one."""
    hosting: str | None = _packed_field(default=None)
    """The hosted parts that it served with last; NULL before it served."""
    adapters: str | None = _text(default=None)
    """JSON; NULL if it has none."""
    state: str = _text()
    reason: str | None = _text(default=None)
    message: str | None = _text(default=None)
    created_at: datetime = _time()
    serving_at: datetime | None = _time(default=None)


FAILED = text("state IN ('refused', 'rolled_back', 'superseded')")
"""Changes that ended without success. Literal, as in the queries: a partial index is used only if its condition is."""


class ChangeRow(Row, table=True):
    """One change of one model. `ordinal` is the order of recording over all models."""

    __tablename__ = "changes"
    __table_args__ = (
        _of_model(),
        UniqueConstraint("id"),
        UniqueConstraint("model", "sequence"),
        Index("ix_changes_state", "state", "ordinal"),
        Index("ix_changes_created_at", "created_at", "state"),
        Index("ix_changes_kind", "model", "kind", "sequence"),
        Index(
            "ix_changes_failed",
            "kind",
            "model",
            "sequence",
            sqlite_where=FAILED,
            postgresql_where=FAILED,
        ),
    )

    ordinal: int | None = _ordinal()
    id: str = _text()
    model: str = _text()
    kind: str = _text()
    sequence: int = _number()
    generation: int | None = _number(default=None)
    plan_id: str | None = _text(default=None)
    state: str = _text()
    reason: str | None = _text(default=None)
    message: str = _text()
    run_id: str | None = _text(default=None)
    stopped_by: str | None = _text(default=None)
    """The change that preempted this one, which is not done."""
    created_at: datetime = _time()
    finished_at: datetime | None = _time(default=None)


class ReportRow(Row, table=True):
    """The validation report of one generation."""

    __tablename__ = "reports"
    __table_args__ = (ForeignKeyConstraint(["model", "generation"], ["generations.model", "generations.number"]),)

    model: str = _text(primary_key=True)
    generation: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    report: str = _text()


class PlanRow(Row, table=True):
    """A plan: figures in columns, documents packed. Documents are NULL if no plan was found or they were pruned."""

    __tablename__ = "plans"
    __table_args__ = (UniqueConstraint("id"), Index("ix_plans_scope", "scope", "ordinal"))

    ordinal: int | None = _ordinal()
    id: str = _text()
    trigger: str = _text()
    scope: str | None = _text(default=None)
    outcome: str = _text()
    reason: str = _text()
    message: str = _text()
    based_on: str | None = _text(default=None)
    input_digest: str = _text()
    status: str = _text()
    method: str = _text()
    objective: float
    bound: float
    bound_covers: str = _text()
    gap: float
    cost_per_hour: float
    unmet_qps: float
    moves: int = _number()
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = _number(default=None)
    problem: str | None = _packed_field(default=None)
    plan: str | None = _packed_field(default=None)
    diff: str | None = _packed_field(default=None)
    created_at: datetime = _time()


class PlacementRow(Row, table=True):
    """One model's placement. All rows together are the plan in force."""

    __tablename__ = "placements"
    __table_args__ = (
        Index("ix_placements_unmet", "unmet_qps", "model"),
        Index("ix_placements_owner", "owner", "cost_per_hour", "unmet_qps"),
        Index("ix_placements_priority", "priority", "unmet_qps"),
    )

    model: str = _text(primary_key=True)
    plan_id: str = _text()
    owner: str = _text()
    priority: float
    wishes: str = _text()
    replicas: str = _text()
    traffic: str = _text()
    unmet: str = _text()
    unmet_qps: float
    cost_per_hour: float


class PlacedReplicasRow(Row, table=True):
    """The replicas of a placement repeated as numbers that the database can sum up."""

    __tablename__ = "placed_replicas"
    __table_args__ = (
        Index("ix_placed_replicas_units", "region", "hardware", "count", "units", "model"),
        Index("ix_placed_replicas_owner", "owner"),
    )

    model: str = _text(primary_key=True)
    part: str = _text(primary_key=True)
    region: str = _text(primary_key=True)
    hardware: str = _text(primary_key=True)
    owner: str = _text()
    count: int = _number()
    units: float
    """Units of one replica."""


class ReplanRow(Row, table=True):
    """A replan: its request and its outcome."""

    __tablename__ = "replans"
    __table_args__ = (
        UniqueConstraint("id"),
        Index("ix_replans_state", "state"),
        Index("ix_replans_plan_id", "plan_id"),
    )

    ordinal: int | None = _ordinal()
    id: str = _text()
    trigger: str = _text()
    dry_run: bool = False
    max_moves: int | None = _number(default=None)
    state: str = _text()
    reason: str = _text()
    message: str = _text()
    plan_id: str | None = _text(default=None)
    moves: int = _number()
    models: str = _text()
    progress: str | None = _text(default=None)
    run_id: str | None = _text(default=None)
    not_before: datetime = _time()
    created_at: datetime = _time()
    started_at: datetime | None = _time(default=None)
    finished_at: datetime | None = _time(default=None)


class ReplanMoveRow(Row, table=True):
    """A model that a replan has to move, and its progress."""

    __tablename__ = "replan_moves"
    __table_args__ = (Index("ix_replan_moves_state", "plan_id", "state", "position"),)

    plan_id: str = _text(primary_key=True)
    position: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    model: str = _text()
    state: str = _text()
    change_id: str = _text()
    message: str = _text()
    asked_at: datetime | None = _time(default=None)
    ended_at: datetime | None = _time(default=None)


class MovesPauseRow(Row, table=True):
    """The pause of all moves of replans (id 1); no row while they continue."""

    __tablename__ = "moves_pause"

    id: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    reason: str = _text()
    paused_at: datetime = _time()


class PlanInForceRow(Row, table=True):
    """Which plan is in force (id 1)."""

    __tablename__ = "plan_in_force"
    __table_args__ = (ForeignKeyConstraint(["plan_id"], ["plans.id"]),)

    id: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    plan_id: str = _text()
    adopted_at: datetime = _time()


class TransitionRow(Row, table=True):
    """A transition and its progress."""

    __tablename__ = "transitions"
    __table_args__ = (
        _of_model(),
        UniqueConstraint("id"),
        Index("ix_transitions_model", "model", "ordinal"),
        Index("ix_transitions_change", "change_id"),
        Index("ix_transitions_state", "state"),
    )

    ordinal: int | None = _ordinal()
    id: str = _text()
    model: str = _text()
    change_id: str = _text()
    generation: int = _number()
    transition: str = _text()
    state: str = _text()
    waves_done: int = _number()
    message: str = _text()
    created_at: datetime = _time()
    fence: int = _number(default=0)
    revision: int = _number(default=0)
    rests: bool = False
    before: str | None = _text(default=None)
    """Replica sets and served generations when it was planned, until its change ends."""


class PauseRow(Row, table=True):
    """Who paused a model's changes, and why."""

    __tablename__ = "pauses"
    __table_args__ = (_of_model(),)

    model: str = _text(primary_key=True)
    asked: str = _text()
    created_at: datetime = _time()


class DeploymentRow(Row, table=True):
    """The desired state of one replica set."""

    __tablename__ = "deployments"
    __table_args__ = (_of_model(), Index("ix_deployments_units", "region", "hardware", "replicas", "units", "model"))

    model: str = _text(primary_key=True)
    part: str = _text(primary_key=True)
    region: str = _text(primary_key=True)
    hardware: str = _text(primary_key=True)
    replicas: int = _number()
    units: float
    """Units of one replica; like `replicas` also inside the document, repeated here for the database to sum up."""
    deployment: str = _text()


class RouteRow(Row, table=True):
    """The route table of one model in one region."""

    __tablename__ = "routes"
    __table_args__ = (_of_model(), Index("ix_routes_region", "region"), Index("ix_routes_sends", "sends", "model"))

    model: str = _text(primary_key=True)
    region: str = _text(primary_key=True)
    revision: int = _number()
    refuses: bool = False
    sends: bool = True
    """Whether a share has traffic."""
    route_table: str = _text()


class RouteShareRow(Row, table=True):
    """The shares of a route table repeated, for queries by destination. Written in the unit that writes the table."""

    __tablename__ = "route_shares"
    __table_args__ = (_of_model(), Index("ix_route_shares_to", "to", "model"))

    model: str = _text(primary_key=True)
    region: str = _text(primary_key=True)
    """Region of the users."""
    to: str = _text(primary_key=True)
    generation: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    fraction: float


class ConditionRow(Row, table=True):
    """One condition of one model."""

    __tablename__ = "conditions"
    __table_args__ = (_of_model(),)

    model: str = _text(primary_key=True)
    type: str = _text(primary_key=True)
    status: str = _text()
    reason: str = _text()
    message: str = _text()
    last_transition_time: datetime = _time()


class EventRow(Row, table=True):
    """One event of the history."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_model", "model", "ordinal"),)

    ordinal: int | None = _ordinal()
    at: datetime = _time()
    model: str | None = _text(default=None)
    kind: str = _text()
    message: str = _text()
    run_id: str | None = _text(default=None)
    detail: str | None = _text(default=None)


class FreezeRow(Row, table=True):
    """A freeze as applied."""

    __tablename__ = "freezes"

    name: str = _text(primary_key=True)
    manifest: str = _text()
    version: int = _number()
    created_at: datetime = _time()
    updated_at: datetime = _time()


class FreezeOverrideRow(Row, table=True):
    """A change that may pass every freeze."""

    __tablename__ = "freeze_overrides"
    __table_args__ = (_of_model(),)

    change_id: str = _text(primary_key=True)
    model: str = _text()
    at: datetime = _time()
    who: str = _text()
    reason: str = _text()
    freezes: str = _text()


class AuditRow(Row, table=True):
    """An entry of the audit; triggers refuse to change or delete one."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_at", "at"),
        Index("ix_audit_entries_who_id", "who_id", "sequence"),
        Index("ix_audit_entries_who_name", "who_name", "sequence"),
        Index("ix_audit_entries_action", "action", "sequence"),
        Index("ix_audit_entries_object_name", "object_name", "sequence"),
        Index("ix_audit_entries_model", "model", "sequence"),
    )

    sequence: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    at: datetime = _time()
    who_kind: str = _text()
    who_id: str = _text()
    who_name: str = _text()
    said: str | None = _text(default=None)
    source: str | None = _text(default=None)
    action: str = _text()
    operation: str | None = _text(default=None)
    policy: str | None = _text(default=None)
    object_kind: str = _text()
    object_name: str | None = _text(default=None)
    model: str | None = _text(default=None)
    owner: str | None = _text(default=None)
    outcome: str = _text()
    before: str | None = _text(default=None)
    after: str | None = _text(default=None)
    reason: str | None = _text(default=None)
    change_id: str | None = _text(default=None)
    request_id: str = _text()
    left_out: int | None = _number(default=None)
    prev_hash: str = _text()
    hash: str = _text()


class KeyRow(Row, table=True):
    """An API key, a session or a ticket.

    `digest` and `proof_key` are of the secret, `parent` is the key that it acts for. `revocation` is the position of a
    key's revocation among those of all keys.
    """

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("id"),
        Index("ix_api_keys_kind", "kind", "ordinal"),
        Index("ix_api_keys_name", "name", "ordinal"),
        Index("ix_api_keys_expires_at", "expires_at"),
        Index("ix_api_keys_parent", "parent"),
    )

    ordinal: int | None = _ordinal()
    id: str = _text()
    name: str = _text()
    kind: str = _text()
    digest: str = _text()
    proof_key: str = _text()
    grants: str = _text()
    parent: str | None = _text(default=None)
    created_at: datetime = _time()
    created_by: str = _text()
    expires_at: datetime | None = _time(default=None)
    revoked_at: datetime | None = _time(default=None)
    revocation: int | None = _number(default=None)
    last_used_at: datetime | None = _time(default=None)


class AccessListRow(Row, table=True):
    """The one row of content of the access lists that no other row has.

    Settings of the API, and keys of the provider.
    """

    __tablename__ = "access_list"

    id: int = _number(primary_key=True, sa_column_kwargs={"autoincrement": False})
    version: int | None = _number(default=None)
    """Of policies and issuer; None: no API has stored its own yet."""
    policies: str = _text()
    issuer: str | None = _text(default=None)
    signing_keys: str | None = _text(default=None)
    signing_keys_at: datetime | None = _time(default=None)


class RegionAccessRow(Row, table=True):
    """The access list of one region. `digest` is of its content without the revision.

    The list that the region was last found to go by leaves out the first `revocations` revoked keys; None: it was not
    found to go by any.
    """

    __tablename__ = "region_access"

    region: str = _text(primary_key=True)
    revision: int = _number()
    digest: str = _text()
    revocations: int | None = _number(default=None)


class RoleBindingRow(Row, table=True):
    """A role of a person or group of the identity provider.

    `subject` is `group:NAME`, `user:NAME`, `email:ADDRESS` or `sub:ID`.
    """

    __tablename__ = "role_bindings"
    __table_args__ = (UniqueConstraint("id"), UniqueConstraint("subject", "role", "owner", "region"))

    ordinal: int | None = _ordinal()
    id: str = _text()
    subject: str = _text()
    role: str = _text()
    owner: str = _text()
    region: str = _text()
    created_at: datetime = _time()
    created_by: str = _text()


class OwnerRow(Row, table=True):
    """An owner as applied; its members are role bindings. `priority` repeats its manifest, for the planner."""

    __tablename__ = "owners"

    name: str = _text(primary_key=True)
    manifest: str = _text()
    priority: int = _number()
    version: int = _number()
    created_at: datetime = _time()
    updated_at: datetime = _time()


class OwnerClaimRow(Row, table=True):
    """The amount of one model in one quota of its owner; written with the manifest."""

    __tablename__ = "owner_claims"
    __table_args__ = (_of_model(),)

    model: str = _text(primary_key=True)
    quota: str = _text(primary_key=True)
    amount: float


class DrainRow(Row, table=True):
    """One drain of one region; the newest of a region is in force."""

    __tablename__ = "drains"
    __table_args__ = (UniqueConstraint("id"), Index("ix_drains_region", "region", "ordinal"))

    ordinal: int | None = _ordinal()
    id: str = _text()
    region: str = _text()
    disaster: bool = False
    force: bool = False
    reason: str = _text()
    state: str = _text()
    cause: str = _text()
    message: str = _text()
    models_left: int = _number()
    replicas_left: int = _number()
    traffic_left_qps: float
    replan_id: str | None = _text(default=None)
    replans: int = _number()
    told: bool = False
    """Whether the workflow engine has the latest request."""
    lost_after_change: int | None = _number(default=None)
    """Ordinal of the newest change when the region was last declared lost, or requested back after that."""
    created_at: datetime = _time()
    updated_at: datetime = _time()
    finished_at: datetime | None = _time(default=None)
