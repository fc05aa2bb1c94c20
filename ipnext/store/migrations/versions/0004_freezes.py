"""Freezes, changes that may pass them, and the audit."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is frozen."""
    op.create_table(
        "freezes",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("manifest", columns.SafeText(), nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_freezes"),
    )
    op.create_table(
        "freeze_overrides",
        sa.Column("change_id", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("who", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("freezes", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_freeze_overrides_model_models"),
        sa.PrimaryKeyConstraint("change_id", name="pk_freeze_overrides"),
    )
    op.create_table(
        "audit",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("who", columns.SafeText(), nullable=False),
        sa.Column("action", columns.SafeText(), nullable=False),
        sa.Column("subject", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=True),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("detail", columns.SafeText(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name="pk_audit"),
    )


def downgrade() -> None:
    """Freezes and their audit are lost."""
    op.drop_table("audit")
    op.drop_table("freeze_overrides")
    op.drop_table("freezes")
