"""Tables of plans, of the placements in force, and of replans."""

from datetime import datetime

from sqlalchemy import ForeignKeyConstraint, Index, UniqueConstraint

from ipnext.store.tables.row import Row, number_field, ordinal_field, packed_field, text_field, time_field


class PlanRow(Row, table=True):
    """A plan: figures in columns, documents packed. Documents are NULL if no plan was found or they were pruned."""

    __tablename__ = "plans"
    __table_args__ = (UniqueConstraint("id"), Index("ix_plans_scope", "scope", "ordinal"))

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    trigger: str = text_field()
    scope: str | None = text_field(default=None)
    outcome: str = text_field()
    reason: str = text_field()
    message: str = text_field()
    based_on: str | None = text_field(default=None)
    input_digest: str = text_field()
    status: str = text_field()
    method: str = text_field()
    objective: float
    bound: float
    bound_covers: str = text_field()
    gap: float
    cost_per_hour: float
    unmet_qps: float
    moves: int = number_field()
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = number_field(default=None)
    problem: str | None = packed_field(default=None)
    plan: str | None = packed_field(default=None)
    diff: str | None = packed_field(default=None)
    created_at: datetime = time_field()


class PlacementRow(Row, table=True):
    """One model's placement. All rows together are the plan in force."""

    __tablename__ = "placements"
    __table_args__ = (
        Index("ix_placements_unmet", "unmet_qps", "model"),
        Index("ix_placements_owner", "owner", "cost_per_hour", "unmet_qps"),
        Index("ix_placements_priority", "priority", "unmet_qps"),
    )

    model: str = text_field(primary_key=True)
    plan_id: str = text_field()
    owner: str = text_field()
    priority: float
    wishes: str = text_field()
    replicas: str = text_field()
    traffic: str = text_field()
    unmet: str = text_field()
    unmet_qps: float
    cost_per_hour: float


class PlacedReplicasRow(Row, table=True):
    """The replicas of a placement repeated as numbers that the database can sum up."""

    __tablename__ = "placed_replicas"
    __table_args__ = (
        Index("ix_placed_replicas_units", "region", "hardware", "count", "units", "model"),
        Index("ix_placed_replicas_owner", "owner"),
    )

    model: str = text_field(primary_key=True)
    part: str = text_field(primary_key=True)
    region: str = text_field(primary_key=True)
    hardware: str = text_field(primary_key=True)
    owner: str = text_field()
    count: int = number_field()
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

    ordinal: int | None = ordinal_field()
    id: str = text_field()
    trigger: str = text_field()
    dry_run: bool = False
    max_moves: int | None = number_field(default=None)
    state: str = text_field()
    reason: str = text_field()
    message: str = text_field()
    plan_id: str | None = text_field(default=None)
    moves: int = number_field()
    models: str = text_field()
    progress: str | None = text_field(default=None)
    run_id: str | None = text_field(default=None)
    not_before: datetime = time_field()
    created_at: datetime = time_field()
    started_at: datetime | None = time_field(default=None)
    finished_at: datetime | None = time_field(default=None)


class ReplanMoveRow(Row, table=True):
    """A model that a replan has to move, and its progress."""

    __tablename__ = "replan_moves"
    __table_args__ = (Index("ix_replan_moves_state", "plan_id", "state", "position"),)

    plan_id: str = text_field(primary_key=True)
    position: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    model: str = text_field()
    state: str = text_field()
    change_id: str = text_field()
    message: str = text_field()
    asked_at: datetime | None = time_field(default=None)
    ended_at: datetime | None = time_field(default=None)


class MovesPauseRow(Row, table=True):
    """The pause of all moves of replans (id 1); no row while they continue."""

    __tablename__ = "moves_pause"

    id: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    reason: str = text_field()
    paused_at: datetime = time_field()


class PlanInForceRow(Row, table=True):
    """Which plan is in force (id 1)."""

    __tablename__ = "plan_in_force"
    __table_args__ = (ForeignKeyConstraint(["plan_id"], ["plans.id"]),)

    id: int = number_field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    plan_id: str = text_field()
    adopted_at: datetime = time_field()
