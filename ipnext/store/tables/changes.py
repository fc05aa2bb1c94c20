"""Tables of changes, of the desired state that they write, and of drains and freezes."""

from datetime import datetime

from sqlalchemy import Index, UniqueConstraint, text

from ipnext.store.tables.row import Row, model_key, number_field, ordinal_field, text_field, time_field

FAILED = text("state IN ('refused', 'rolled_back', 'superseded')")
"""Changes that ended without success. Literal, as in the queries: a partial index is used only if its condition is."""


class ChangeRow(Row, table=True):
    """One change of one model. `ordinal` is the order of recording over all models."""

    __tablename__ = "changes"
    __table_args__ = (
        model_key(),
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

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    model: str = text_field()
    kind: str = text_field()
    sequence: int = number_field()
    generation: int | None = number_field(default=None)
    plan_id: str | None = text_field(default=None)
    state: str = text_field()
    reason: str | None = text_field(default=None)
    message: str = text_field()
    run_id: str | None = text_field(default=None)
    stopped_by: str | None = text_field(default=None)
    """The change that preempted this one, which is not done."""
    created_at: datetime = time_field()
    finished_at: datetime | None = time_field(default=None)
    stages: str | None = text_field(default=None)
    """How far it is in its stages; NULL before it begins."""


class TransitionRow(Row, table=True):
    """A transition and its progress."""

    __tablename__ = "transitions"
    __table_args__ = (
        model_key(),
        UniqueConstraint("id"),
        Index("ix_transitions_model", "model", "ordinal"),
        Index("ix_transitions_change", "change_id"),
        Index("ix_transitions_state", "state"),
    )

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    model: str = text_field()
    change_id: str = text_field()
    generation: int = number_field()
    transition: str = text_field()
    state: str = text_field()
    waves_done: int = number_field()
    message: str = text_field()
    created_at: datetime = time_field()
    fence: int = number_field(default=0)
    revision: int = number_field(default=0)
    rests: bool = False
    before: str | None = text_field(default=None)
    """Replica sets and served generations when it was planned, until its change ends."""


class PauseRow(Row, table=True):
    """Who paused a model's changes, and why."""

    __tablename__ = "pauses"
    __table_args__ = (model_key(),)

    model: str = text_field(primary_key=True)
    asked: str = text_field()
    created_at: datetime = time_field()


class ShadowRow(Row, table=True):
    """The shadow that a model's change keeps."""

    __tablename__ = "shadows"
    __table_args__ = (model_key(),)

    model: str = text_field(primary_key=True)
    change_id: str = text_field()
    shadow: str = text_field()
    seen: str = text_field()
    """The last look at it."""
    created_at: datetime = time_field()


class DeploymentRow(Row, table=True):
    """The desired state of one replica set."""

    __tablename__ = "deployments"
    __table_args__ = (model_key(), Index("ix_deployments_units", "region", "hardware", "replicas", "units", "model"))

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    region: str = text_field(primary_key=True)
    hardware: str = text_field(primary_key=True)
    replicas: int = number_field()
    units: float
    """Units of one replica; like `replicas` also inside the document, repeated here for the database to sum up."""
    deployment: str = text_field()


class RouteRow(Row, table=True):
    """The route table of one model in one region."""

    __tablename__ = "routes"
    __table_args__ = (model_key(), Index("ix_routes_region", "region"), Index("ix_routes_sends", "sends", "model"))

    model: str = text_field(primary_key=True)
    region: str = text_field(primary_key=True)
    revision: int = number_field()
    refuses: bool = False
    sends: bool = True
    """Whether a share has traffic."""
    route_table: str = text_field()


class RouteShareRow(Row, table=True):
    """The shares of a route table repeated, for queries by destination. Written in the unit that writes the table."""

    __tablename__ = "route_shares"
    __table_args__ = (model_key(), Index("ix_route_shares_to", "to", "model"))

    model: str = text_field(primary_key=True)
    region: str = text_field(primary_key=True)
    """Region of the users."""
    to: str = text_field(primary_key=True)
    generation: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    fraction: float


class ConditionRow(Row, table=True):
    """One condition of one model."""

    __tablename__ = "conditions"
    __table_args__ = (model_key(), Index("ix_conditions_type", "type", "model"))

    model: str = text_field(primary_key=True)
    type: str = text_field(primary_key=True)
    status: str = text_field()
    reason: str = text_field()
    message: str = text_field()
    last_transition_time: datetime = time_field()


class EventRow(Row, table=True):
    """One event of the history."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_model", "model", "ordinal"),)

    ordinal: int | None = ordinal_field()
    at: datetime = time_field()
    model: str | None = text_field(default=None)
    kind: str = text_field()
    message: str = text_field()
    run_id: str | None = text_field(default=None)
    detail: str | None = text_field(default=None)


class FreezeRow(Row, table=True):
    """A freeze as applied."""

    __tablename__ = "freezes"

    name: str = text_field(primary_key=True)
    manifest: str = text_field()
    version: int = number_field()
    created_at: datetime = time_field()
    updated_at: datetime = time_field()


class FreezeOverrideRow(Row, table=True):
    """A change that may pass every freeze."""

    __tablename__ = "freeze_overrides"
    __table_args__ = (model_key(),)

    change_id: str = text_field(primary_key=True)
    model: str = text_field()
    at: datetime = time_field()
    who: str = text_field()
    reason: str = text_field()
    freezes: str = text_field()


class CheckOverrideRow(Row, table=True):
    """A check whose refusals let one change pass."""

    __tablename__ = "check_overrides"
    __table_args__ = (model_key(),)

    change_id: str = text_field(primary_key=True)
    check: str = text_field(primary_key=True)
    model: str = text_field()
    at: datetime = time_field()
    who: str = text_field()
    reason: str = text_field()


class DrainRow(Row, table=True):
    """One drain of one region; the newest of a region is in force."""

    __tablename__ = "drains"
    __table_args__ = (UniqueConstraint("id"), Index("ix_drains_region", "region", "ordinal"))

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    region: str = text_field()
    disaster: bool = False
    force: bool = False
    reason: str = text_field()
    state: str = text_field()
    cause: str = text_field()
    message: str = text_field()
    models_left: int = number_field()
    replicas_left: int = number_field()
    traffic_left_qps: float
    replan_id: str | None = text_field(default=None)
    replans: int = number_field()
    told: bool = False
    """Whether the workflow engine has the latest request."""
    lost_after_change: int | None = number_field(default=None)
    """Ordinal of the newest change when the region was last declared lost, or requested back after that."""
    created_at: datetime = time_field()
    updated_at: datetime = time_field()
    finished_at: datetime | None = time_field(default=None)
