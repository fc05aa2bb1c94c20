"""Tables of the fleet, of models, and of snapshots, generations and their files."""

from datetime import datetime

from sqlalchemy import ForeignKeyConstraint, Index, UniqueConstraint

from ipnext.store.tables.row import Row, model_key, number_field, ordinal_field, packed_field, text_field, time_field


class FleetRow(Row, table=True):
    """The one fleet (id 1)."""

    __tablename__ = "fleet"

    id: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    spec: str = text_field()
    version: int = number_field()
    updated_at: datetime = time_field()


class ModelRow(Row, table=True):
    """A model as applied. `owner` and `ready` repeat its manifest and its condition, for filters and counts."""

    __tablename__ = "models"
    __table_args__ = (
        Index("ix_models_owner", "owner", "name"),
        Index("ix_models_ready", "retired", "ready", "name"),
        Index("ix_models_documents", "owner", "document_bytes"),
        Index("ix_models_access_bytes", "access_bytes"),
    )

    name: str = text_field(primary_key=True)
    manifest: str = text_field()
    generation: int = number_field()
    observed_generation: int = number_field()
    version: int = number_field()
    serving_generation: int | None = number_field(default=None)
    target_generation: int | None = number_field(default=None)
    owner: str = text_field(default="")
    ready: bool = False
    """Whether the condition Ready is recorded as true; set with the condition."""
    retired: bool = False
    created_at: datetime = time_field()
    updated_at: datetime = time_field()
    document_bytes: int = number_field(default=0)
    """Bytes of its manifest, and of the manifests and reports of its published snapshots."""
    access_bytes: int = number_field(default=0)
    """Bytes of its entry in the access lists."""
    refused_generation: int | None = number_field(default=None)
    """The revision of the manifest that a validation refused, if none was accepted since."""
    validated: str | None = text_field(default=None)
    """The newest revision that a validation accepted, with its spec if the manifest has another one."""
    accepted: str | None = text_field(default=None)
    """The one in force, likewise."""
    former: str | None = text_field(default=None)
    """What was in force before the open change that put `accepted` in force."""
    retention: str | None = text_field(default=None)
    """`spec.retention` of the manifest; NULL: the platform's settings."""


class LabelRow(Row, table=True):
    """A label of a model or an owner, repeated from its manifest for filters."""

    __tablename__ = "labels"
    __table_args__ = (Index("ix_labels_value", "kind", "key", "value", "name"),)

    kind: str = text_field(primary_key=True)
    name: str = text_field(primary_key=True)
    key: str = text_field(primary_key=True)
    value: str = text_field()


class SnapshotRow(Row, table=True):
    """One version of one part; its number has one winner."""

    __tablename__ = "snapshots"
    __table_args__ = (
        model_key(),
        Index("ix_snapshots_digest", "model", "part", "digest"),
        Index("ix_snapshots_parent", "model", "part", "parent"),
        Index("ix_snapshots_created_at", "created_at"),
        Index("ix_snapshots_made_from", "parent"),
    )

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    number: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    digest: str = text_field()
    uri: str = text_field()
    manifest: str = text_field()
    created_at: datetime = time_field()
    trained_at: datetime | None = time_field(default=None)
    """When its training ended; NULL if that is not known."""
    collected_at: datetime | None = time_field(default=None)
    """When its bytes were released because nothing can need them any more; None: they are kept."""
    derived_from: int | None = number_field(default=None)
    """Number of the published snapshot that it was derived from; NULL if it was published."""
    hardware: str | None = text_field(default=None)
    """Hardware kinds that it was derived for, as JSON; NULL: all kinds of its part, or it was published."""
    served_at: datetime | None = time_field(default=None)
    """When a generation with it last began to serve; None: none has."""
    parent: str | None = text_field(default=None)
    """Digest of the snapshot of which it is a delta, or from which it was trained on."""
    is_delta: bool = False
    """Whether it can't be loaded without its parent."""
    size_bytes: int = number_field(default=0)
    """Of its files."""
    origin: str | None = text_field(default=None)
    """The version of a source that it was published from, with its training run."""


class SnapshotHoldRow(Row, table=True):
    """A hold: the snapshot is never collected until the hold is released."""

    __tablename__ = "snapshot_holds"
    __table_args__ = (
        ForeignKeyConstraint(["model", "part", "number"], ["snapshots.model", "snapshots.part", "snapshots.number"]),
    )

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    number: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    reason: str = text_field()
    held_by: str = text_field()
    created_at: datetime = time_field()


class ServingSnapshotRow(Row, table=True):
    """The snapshot of a part that serves the users of a region, and how long it has kept to the part's freshness."""

    __tablename__ = "serving_snapshots"
    __table_args__ = (
        model_key(),
        Index("ix_serving_snapshots_late_at", "late_at", "model"),
        Index("ix_serving_snapshots_breached", "breached_at"),
    )

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    region: str = text_field(primary_key=True)
    """Region of the users."""
    number: int | None = number_field(default=None)
    """NULL: none serves now."""
    trained_at: datetime | None = time_field(default=None)
    published_at: datetime = time_field()
    since: datetime = time_field()
    to_serving_seconds: float | None = None
    target_seconds: float | None = None
    objective: float = 1.0
    late_at: datetime | None = time_field(default=None)
    """When it is older than the target; NULL if none serves, or without a target."""
    window: str = text_field(default="[]")
    """[[hour, seconds observed, seconds late], ...], at most one day of them."""
    accounted_at: datetime = time_field()
    """The window covers the time until then."""
    breached_at: datetime | None = time_field(default=None)


class FirstServingRow(Row, table=True):
    """When a snapshot served the users of a region for the first time; of the newest snapshots."""

    __tablename__ = "first_servings"
    __table_args__ = (model_key(),)

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    region: str = text_field(primary_key=True)
    number: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    serving_at: datetime = time_field()


class ArtifactRow(Row, table=True):
    """A blob or the manifest of a snapshot in the artifact store: its account, and when it was last in use."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("ix_artifacts_account", "account"), Index("ix_artifacts_touched", "touched_at"))

    digest: str = text_field(primary_key=True)
    size_bytes: int = number_field()
    account: str = text_field(default="")
    uploads: int = number_field(default=0)
    """Uploads of it that are under way."""
    stored: bool = False
    """Whether an upload has succeeded; until then its size is the announced one."""
    touched_at: datetime = time_field()


class ProfileRow(Row, table=True):
    """One measurement of one snapshot; never changed."""

    __tablename__ = "profiles"
    __table_args__ = (
        ForeignKeyConstraint(["model", "part", "snapshot"], ["snapshots.model", "snapshots.part", "snapshots.number"]),
        UniqueConstraint("id"),
        Index("ix_profiles_snapshot", "model", "part", "snapshot", "ordinal"),
        Index("ix_profiles_architecture", "model", "part", "architecture", "hardware", "measured_at", "ordinal"),
    )

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    model: str = text_field()
    part: str = text_field()
    snapshot: int = number_field()
    hardware: str = text_field()
    architecture: str = text_field()
    """Architecture of the snapshot (`model.profile.architecture_of`): the profile applies to all snapshots of the
    part that share it."""
    profile: str = packed_field()
    measured_at: datetime = time_field()
    created_at: datetime = time_field()


class GenerationRow(Row, table=True):
    """One snapshot for every part of a model; its number has one winner."""

    __tablename__ = "generations"
    __table_args__ = (
        model_key(),
        Index("ix_generations_state", "model", "state"),
        Index("ix_generations_serving_at", "model", "serving_at"),
    )

    model: str = text_field(primary_key=True)
    number: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    snapshots: str = text_field()
    derived: str | None = text_field(default=None)
    """JSON; NULL if its manifest has no pipeline."""
    layout: str | None = packed_field(default=None)
    """NULL if the generation is not cut."""
    graph: str | None = packed_field(default=None)
    """The graph by which it served last; NULL before it served, and if no manifest gave it one."""
    hosting: str | None = packed_field(default=None)
    """The hosted parts that it served with last; NULL before it served."""
    adapters: str | None = text_field(default=None)
    """JSON; NULL if it has none."""
    state: str = text_field()
    reason: str | None = text_field(default=None)
    message: str | None = text_field(default=None)
    created_at: datetime = time_field()
    serving_at: datetime | None = time_field(default=None)


class ReportRow(Row, table=True):
    """The validation report of one generation."""

    __tablename__ = "reports"
    __table_args__ = (ForeignKeyConstraint(["model", "generation"], ["generations.model", "generations.number"]),)

    model: str = text_field(primary_key=True)
    generation: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    report: str = text_field()


class DerivationRow(Row, table=True):
    """A finished step of a pipeline: what it derived from a snapshot, or that it derived nothing."""

    __tablename__ = "derivations"
    __table_args__ = (model_key(),)

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    parent: str = text_field(primary_key=True)
    """Digest of the snapshot that it derives from."""
    recipe: str = text_field(primary_key=True)
    """Digest of the step and of the versions of its tools."""
    snapshot: int | None = number_field(default=None)
    """Number of the derived snapshot; NULL if a limit was broken."""
    report: str = packed_field()
    created_at: datetime = time_field()
    is_repeated: bool = False
    """Whether another attempt judges it again, since the machine had a part in the refusal."""


class CheckResultsRow(Row, table=True):
    """Results of one check of a generation's snapshots, for later validations of the same inputs."""

    __tablename__ = "check_results"
    __table_args__ = (model_key(), Index("ix_check_results_made", "model", "created_at"))

    model: str = text_field(primary_key=True)
    key: str = text_field(primary_key=True)
    """Digest of the check, its version and all that its results depend on."""
    check: str = text_field()
    results: str = packed_field()
    created_at: datetime = time_field()


class SourceRow(Row, table=True):
    """A source of a model, as its manifest has it, and where its watch stands."""

    __tablename__ = "sources"
    __table_args__ = (
        model_key(),
        Index("ix_sources_upstream", "kind", "upstream", "model", "name"),
        Index("ix_sources_sent", "sent"),
    )

    model: str = text_field(primary_key=True)
    name: str = text_field(primary_key=True)
    kind: str = text_field()
    upstream: str = text_field()
    """Sources of one kind and upstream system are polled together."""
    stream: str = text_field()
    """Digest of its kind and settings; another one begins without a cursor."""
    part: str = text_field()
    spec: str = text_field()
    every_seconds: float
    reach: int = number_field(default=0)
    """What it may read, by who applied it."""
    sent: bool = False
    """Whether the latest request was sent to the workflow engine."""
    paused_by: str | None = text_field(default=None)
    paused_at: datetime | None = time_field(default=None)
    pause_reason: str = text_field(default="")
    cursor: str = text_field(default="")
    polled_at: datetime | None = time_field(default=None)
    failures: int = number_field(default=0)
    """Polls in a row that failed."""
    error: str = text_field(default="")
    picked_at: datetime | None = time_field(default=None)
    picked_key: str | None = text_field(default=None)
    created_at: datetime = time_field()


class DenialRow(Row, table=True):
    """A denied digest."""

    __tablename__ = "denials"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - as sqlalchemy reads it; a number has one denial

    ordinal: int | None = ordinal_field()
    digest: str = text_field(unique=True)
    reason: str = text_field()
    denied_by: str = text_field()
    denied_at: datetime = time_field()
    is_carried_out: bool = False
    ended_at: datetime | None = time_field(default=None)
    """When it was ended; then its snapshots are let go, and the row is removed."""


class DeniedSnapshotRow(Row, table=True):
    """A snapshot that a denial covers: the digest is its own, a file's, or that of what it was made from."""

    __tablename__ = "denied_snapshots"
    __table_args__ = (
        model_key(),
        ForeignKeyConstraint(["denial"], ["denials.ordinal"]),
        Index("ix_denied_snapshots_digest", "digest"),
        Index("ix_denied_snapshots_denial", "denial"),
    )

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    number: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    denial: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    digest: str = text_field()


class SourceVersionRow(Row, table=True):
    """A version that a source found; its key has one winner."""

    __tablename__ = "source_versions"
    __table_args__ = (
        model_key(),
        UniqueConstraint("model", "source", "stream", "key"),
        Index("ix_source_versions_source", "model", "source", "ordinal"),
        Index("ix_source_versions_state", "state", "model"),
        Index("ix_source_versions_counts", "model", "source", "state"),
        Index("ix_source_versions_digest", "digest"),
    )

    ordinal: int | None = ordinal_field()
    model: str = text_field()
    source: str = text_field()
    stream: str = text_field()
    key: str = text_field()
    part: str = text_field()
    state: str = text_field()
    version: str = text_field()
    digest: str | None = text_field(default=None)
    """Of its snapshot, once that was read."""
    found_at: datetime = time_field()
    attempts: int = number_field(default=0)
    due_at: datetime | None = time_field(default=None)
    """Time of the next attempt, after one that failed."""
    message: str = text_field(default="")
    change_id: str | None = text_field(default=None)
    ended_at: datetime | None = time_field(default=None)
    parent: str | None = text_field(default=None)
    """Digest of the snapshot of which it is a delta, once it was read."""
    listed: bool = True
    """Whether the upstream system may list it again; False once a listing of all its versions lacked it."""
