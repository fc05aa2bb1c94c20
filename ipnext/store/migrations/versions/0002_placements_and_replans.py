"""The plan in force model by model, plans with figures and packed documents, replans as they were asked for."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEPT = ("ordinal", "id", "trigger", "input_digest", "problem", "plan", "diff", "message", "created_at")
"""Columns of a plan on both sides."""

TYPED = {name: columns.PackedText() for name in ("problem", "plan", "diff")} | {"created_at": columns.UtcDateTime()}

OLD_PLANS = sa.table(
    "plans",
    *(sa.column(name) for name in KEPT if name != "created_at"),
    sa.column("adopted", sa.Boolean()),
    sa.column("created_at", columns.UtcDateTime()),
)

PLANS = sa.table(
    "plans",
    *(sa.column(name, TYPED.get(name)) for name in KEPT),
    *(sa.column(name) for name in ("scope", "outcome", "reason", "based_on", "status", "method", "objective", "bound")),
    *(sa.column(name) for name in ("bound_covers", "gap", "cost_per_hour", "unmet_qps", "moves")),
)

POINTER = sa.table(
    "plan_in_force", sa.column("id"), sa.column("plan_id"), sa.column("adopted_at", columns.UtcDateTime())
)


def upgrade() -> None:
    bind = op.get_bind()
    plans = [dict(row) for row in bind.execute(sa.select(OLD_PLANS).order_by(OLD_PLANS.c.ordinal)).mappings()]
    in_force = [dict(row) for row in bind.execute(sa.select(POINTER)).mappings()]
    op.drop_table("plan_in_force")
    op.drop_table("plans")
    _create_new_plans()
    _create_plan_in_force()
    _create_placements()
    _create_replans()
    _widen_deployments(bind)
    with op.batch_alter_table("transitions", schema=None) as batch_op:
        batch_op.create_index("ix_transitions_change", ["change_id"], unique=False)
    _fill(bind, plans, in_force)


def downgrade() -> None:
    """Plans keep their documents; none is in force, so every model is entitled to what it runs until the next plan."""
    bind = op.get_bind()
    readable = sa.select(PLANS).where(PLANS.c.plan.is_not(None)).order_by(PLANS.c.ordinal)
    plans = bind.execute(readable).mappings().all()
    with op.batch_alter_table("transitions", schema=None) as batch_op:
        batch_op.drop_index("ix_transitions_change")
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.drop_column("units")
        batch_op.drop_column("replicas")
    with op.batch_alter_table("replans", schema=None) as batch_op:
        batch_op.drop_index("ix_replans_state")
    op.drop_table("replans")
    with op.batch_alter_table("placed_replicas", schema=None) as batch_op:
        batch_op.drop_index("ix_placed_replicas_owner")
        batch_op.drop_index("ix_placed_replicas_units")
    op.drop_table("placed_replicas")
    op.drop_table("placements")
    op.drop_table("plan_in_force")
    with op.batch_alter_table("plans", schema=None) as batch_op:
        batch_op.drop_index("ix_plans_scope")
    op.drop_table("plans")
    _create_old_plans()
    _create_plan_in_force()
    rows = [{**{name: row[name] for name in KEPT}, "adopted": row["outcome"] == "adopted"} for row in plans]
    if rows:
        bind.execute(sa.insert(OLD_PLANS), rows)
        _count_on(bind)


def _create_new_plans() -> None:
    op.create_table(
        "plans",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("trigger", columns.SafeText(), nullable=False),
        sa.Column("scope", columns.SafeText(), nullable=True),
        sa.Column("outcome", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("based_on", columns.SafeText(), nullable=True),
        sa.Column("input_digest", columns.SafeText(), nullable=False),
        sa.Column("status", columns.SafeText(), nullable=False),
        sa.Column("method", columns.SafeText(), nullable=False),
        sa.Column("objective", sa.Float(), nullable=False),
        sa.Column("bound", sa.Float(), nullable=False),
        sa.Column("bound_covers", columns.SafeText(), nullable=False),
        sa.Column("gap", sa.Float(), nullable=False),
        sa.Column("cost_per_hour", sa.Float(), nullable=False),
        sa.Column("unmet_qps", sa.Float(), nullable=False),
        sa.Column("moves", columns.WholeNumber(), nullable=False),
        sa.Column("wall_seconds", sa.Float(), nullable=True),
        sa.Column("cpu_seconds", sa.Float(), nullable=True),
        sa.Column("peak_memory_bytes", columns.WholeNumber(), nullable=True),
        sa.Column("problem", columns.PackedText(), nullable=True),
        sa.Column("plan", columns.PackedText(), nullable=True),
        sa.Column("diff", columns.PackedText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_plans")),
        sa.UniqueConstraint("id", name=op.f("uq_plans_id")),
    )
    with op.batch_alter_table("plans", schema=None) as batch_op:
        batch_op.create_index("ix_plans_scope", ["scope", "ordinal"], unique=False)


def _create_old_plans() -> None:
    op.create_table(
        "plans",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("trigger", columns.SafeText(), nullable=False),
        sa.Column("input_digest", columns.SafeText(), nullable=False),
        sa.Column("problem", columns.SafeText(), nullable=False),
        sa.Column("plan", columns.SafeText(), nullable=False),
        sa.Column("diff", columns.SafeText(), nullable=False),
        sa.Column("adopted", sa.Boolean(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_plans")),
        sa.UniqueConstraint("id", name=op.f("uq_plans_id")),
    )


def _create_plan_in_force() -> None:
    op.create_table(
        "plan_in_force",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("plan_id", columns.SafeText(), nullable=False),
        sa.Column("adopted_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_in_force_plans")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_in_force")),
    )


def _create_placements() -> None:
    op.create_table(
        "placements",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("plan_id", columns.SafeText(), nullable=False),
        sa.Column("owner", columns.SafeText(), nullable=False),
        sa.Column("priority", sa.Float(), nullable=False),
        sa.Column("wishes", columns.SafeText(), nullable=False),
        sa.Column("replicas", columns.SafeText(), nullable=False),
        sa.Column("traffic", columns.SafeText(), nullable=False),
        sa.Column("unmet", columns.SafeText(), nullable=False),
        sa.Column("unmet_qps", sa.Float(), nullable=False),
        sa.Column("cost_per_hour", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_placements")),
    )
    op.create_table(
        "placed_replicas",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("hardware", columns.SafeText(), nullable=False),
        sa.Column("owner", columns.SafeText(), nullable=False),
        sa.Column("count", columns.WholeNumber(), nullable=False),
        sa.Column("units", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", "part", "region", "hardware", name=op.f("pk_placed_replicas")),
    )
    with op.batch_alter_table("placed_replicas", schema=None) as batch_op:
        batch_op.create_index(
            "ix_placed_replicas_units", ["region", "hardware", "count", "units", "model"], unique=False
        )
        batch_op.create_index("ix_placed_replicas_owner", ["owner"], unique=False)


def _create_replans() -> None:
    op.create_table(
        "replans",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("trigger", columns.SafeText(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("max_moves", columns.WholeNumber(), nullable=True),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("plan_id", columns.SafeText(), nullable=True),
        sa.Column("moves", columns.WholeNumber(), nullable=False),
        sa.Column("models", columns.SafeText(), nullable=False),
        sa.Column("run_id", columns.SafeText(), nullable=True),
        sa.Column("not_before", columns.UtcDateTime(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("started_at", columns.UtcDateTime(), nullable=True),
        sa.Column("finished_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_replans")),
        sa.UniqueConstraint("id", name=op.f("uq_replans_id")),
    )
    with op.batch_alter_table("replans", schema=None) as batch_op:
        batch_op.create_index("ix_replans_state", ["state"], unique=False)


def _widen_deployments(bind: sa.Connection) -> None:
    """Replicas and units of each replica set also as numbers."""
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.add_column(sa.Column("replicas", columns.WholeNumber(), nullable=True))
        batch_op.add_column(sa.Column("units", sa.Float(), nullable=True))
    key = ("model", "part", "region", "hardware")
    table = sa.table("deployments", *(sa.column(name) for name in (*key, "deployment", "replicas", "units")))
    for row in bind.execute(sa.select(table)).mappings().all():
        found = json.loads(row["deployment"])
        same = sa.and_(*(table.c[name] == row[name] for name in key))
        values = {"replicas": found["replicas"], "units": found["units"]}
        bind.execute(sa.update(table).where(same).values(values))
    with op.batch_alter_table("deployments", schema=None) as batch_op:
        batch_op.alter_column("replicas", existing_type=columns.WholeNumber(), nullable=False)
        batch_op.alter_column("units", existing_type=sa.Float(), nullable=False)


def _fill(bind: sa.Connection, plans: list[dict[str, Any]], in_force: list[dict[str, Any]]) -> None:
    rows = [_new_row(row) for row in plans]
    if rows:
        bind.execute(sa.insert(PLANS), rows)
        _count_on(bind)
    if in_force:
        bind.execute(sa.insert(POINTER), in_force)
        found = next(row for row in plans if row["id"] == in_force[0]["plan_id"])
        _fill_placements(bind, found["id"], json.loads(found["problem"]), json.loads(found["plan"]))


def _new_row(row: dict[str, Any]) -> dict[str, Any]:
    plan, diff = json.loads(row["plan"]), json.loads(row["diff"])
    return {
        **{name: row[name] for name in KEPT},
        "scope": None,
        "outcome": "adopted" if row["adopted"] else "kept",
        "reason": "Succeeded",
        "based_on": None,
        "status": plan["status"],
        "method": plan["solver"]["method"],
        **{name: plan[name] for name in ("objective", "bound", "bound_covers", "gap", "cost_per_hour")},
        "unmet_qps": sum(item["qps"] for item in plan["unmet"]),
        "moves": diff["moves"],
    }


def _fill_placements(bind: sa.Connection, plan_id: str, problem: dict[str, Any], plan: dict[str, Any]) -> None:
    placements, replicas = [], []
    prices = {(item["region"], item["hardware"]): item["unit_cost"] for item in problem["supply"]}
    for model in problem["models"]:
        name = model["model"]
        units = {(p["part"], o["hardware"]): o["units"] for p in model["parts"] for o in p["options"]}
        own = {key: [row for row in plan[key] if row["model"] == name] for key in ("replicas", "traffic", "unmet")}
        counted = [row for row in own["replicas"] if row["count"]]
        placed = [
            {**row, "owner": model["owner"], "units": units.get((row["part"], row["hardware"]), 0.0)} for row in counted
        ]
        replicas += placed
        cost = sum(r["count"] * r["units"] * prices.get((r["region"], r["hardware"]), 0.0) for r in placed)
        placements.append(
            {
                "model": name,
                "plan_id": plan_id,
                "owner": model["owner"],
                "priority": model["priority"],
                "wishes": _text(model),
                "replicas": _text(counted),
                "traffic": _text([row for row in own["traffic"] if row["fraction"] > 0]),
                "unmet": _text(own["unmet"]),
                "unmet_qps": sum(item["qps"] for item in own["unmet"]),
                "cost_per_hour": cost,
            }
        )
    if placements:
        bind.execute(sa.insert(sa.table("placements", *(sa.column(name) for name in placements[0]))), placements)
    if replicas:
        bind.execute(sa.insert(sa.table("placed_replicas", *(sa.column(name) for name in replicas[0]))), replicas)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _count_on(bind: sa.Connection) -> None:
    """PostgreSQL keeps the last ordinal apart from the rows."""
    if bind.dialect.name == "postgresql":
        highest = "(SELECT coalesce(max(ordinal), 0) + 1 FROM plans)"
        bind.execute(sa.text(f"SELECT setval(pg_get_serial_sequence('plans', 'ordinal'), {highest}, false)"))
