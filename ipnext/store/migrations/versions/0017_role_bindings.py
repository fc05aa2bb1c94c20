"""Roles of people and groups of the identity provider."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "role_bindings",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("subject", columns.SafeText(), nullable=False),
        sa.Column("role", columns.SafeText(), nullable=False),
        sa.Column("owner", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("created_by", columns.SafeText(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name="pk_role_bindings"),
        sa.UniqueConstraint("id", name="uq_role_bindings_id"),
        sa.UniqueConstraint("subject", "role", "owner", "region", name="uq_role_bindings_subject_role_owner_region"),
    )


def downgrade() -> None:
    """Remove the table: people have no roles."""
    op.drop_table("role_bindings")
