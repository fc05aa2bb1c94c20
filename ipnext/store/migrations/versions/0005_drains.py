"""Drains of regions, and how far a replan is with its models."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No region is drained; replans of before tell no progress."""
    op.create_table(
        "drains",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("disaster", sa.Boolean(), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("cause", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("models_left", columns.WholeNumber(), nullable=False),
        sa.Column("replicas_left", columns.WholeNumber(), nullable=False),
        sa.Column("traffic_left_qps", sa.Float(), nullable=False),
        sa.Column("replan_id", columns.SafeText(), nullable=True),
        sa.Column("replans", columns.WholeNumber(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.Column("finished_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_drains")),
        sa.UniqueConstraint("id", name=op.f("uq_drains_id")),
    )
    with op.batch_alter_table("drains", schema=None) as batch_op:
        batch_op.create_index("ix_drains_region", ["region", "ordinal"], unique=False)
    with op.batch_alter_table("replans", schema=None) as batch_op:
        batch_op.add_column(sa.Column("progress", columns.SafeText(), nullable=True))


def downgrade() -> None:
    """Drains are forgotten: every region's supply counts again."""
    with op.batch_alter_table("replans", schema=None) as batch_op:
        batch_op.drop_column("progress")
    with op.batch_alter_table("drains", schema=None) as batch_op:
        batch_op.drop_index("ix_drains_region")
    op.drop_table("drains")
