"""Measurements of snapshots."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing was measured before."""
    op.create_table(
        "profiles",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("snapshot", columns.WholeNumber(), nullable=False),
        sa.Column("hardware", columns.SafeText(), nullable=False),
        sa.Column("profile", columns.PackedText(), nullable=False),
        sa.Column("measured_at", columns.UtcDateTime(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "part", "snapshot"],
            ["snapshots.model", "snapshots.part", "snapshots.number"],
            name=op.f("fk_profiles_snapshots"),
        ),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_profiles")),
        sa.UniqueConstraint("id", name=op.f("uq_profiles_id")),
    )
    with op.batch_alter_table("profiles", schema=None) as batch_op:
        batch_op.create_index("ix_profiles_model", ["model", "measured_at"], unique=False)


def downgrade() -> None:
    """Measurements are forgotten: declared numbers count again."""
    with op.batch_alter_table("profiles", schema=None) as batch_op:
        batch_op.drop_index("ix_profiles_model")
    op.drop_table("profiles")
