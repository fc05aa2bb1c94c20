"""Indexes and rows that keep the cost of a step independent of the history and of the fleet.

`route_shares` repeats the shares of every route table, `replan_moves` lists the models of a replan that have to move,
and `moves_pause` is the pause of all moves, which was a matter of the workflow alone.
"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INDEXES = (
    ("ix_snapshots_digest", "snapshots", ["model", "part", "digest"]),
    ("ix_generations_serving_at", "generations", ["model", "serving_at"]),
    ("ix_routes_region", "routes", ["region"]),
)


def upgrade() -> None:
    """The shares are read from the tables that are stored; a replan under way lists its models when it plans again."""
    for name, table, names in INDEXES:
        op.create_index(name, table, names)
    shares = op.create_table(
        "route_shares",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("to", columns.SafeText(), nullable=False),
        sa.Column("generation", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("fraction", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_route_shares_models")),
        sa.PrimaryKeyConstraint("model", "region", "to", "generation", name=op.f("pk_route_shares")),
    )
    op.create_index("ix_route_shares_to", "route_shares", ["to", "model"])
    routes = op.get_bind().execute(sa.text("SELECT model, region, route_table FROM routes")).all()
    rows = [row for model, region, table in routes for row in _rows(model, region, json.loads(table))]
    if rows:
        op.bulk_insert(shares, rows)
    op.create_table(
        "replan_moves",
        sa.Column("plan_id", columns.SafeText(), nullable=False),
        sa.Column("position", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("change_id", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("asked_at", columns.UtcDateTime(), nullable=True),
        sa.Column("ended_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("plan_id", "position", name=op.f("pk_replan_moves")),
    )
    op.create_index("ix_replan_moves_state", "replan_moves", ["plan_id", "state", "position"])
    op.create_table(
        "moves_pause",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("paused_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_moves_pause")),
    )


def downgrade() -> None:
    """The tables repeat what others hold; a pause of the moves ends."""
    for table in ("moves_pause", "replan_moves", "route_shares"):
        op.drop_table(table)
    for name, table, _ in INDEXES:
        op.drop_index(name, table)


def _rows(model: str, region: str, table: dict[str, Any]) -> list[dict[str, Any]]:
    """The shares of one table; those of one destination and generation are one row."""
    fractions: dict[tuple[str, int], float] = {}
    for share in table["shares"]:
        to = (share["to"], share["generation"])
        fractions[to] = fractions.get(to, 0.0) + share["fraction"]
    return [
        {"model": model, "region": region, "to": to, "generation": generation, "fraction": fraction}
        for (to, generation), fraction in sorted(fractions.items())
    ]
