"""API keys, sessions and tickets."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "api_keys",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("grants", columns.SafeText(), nullable=False),
        sa.Column("parent", columns.SafeText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("created_by", columns.SafeText(), nullable=False),
        sa.Column("expires_at", columns.UtcDateTime(), nullable=True),
        sa.Column("revoked_at", columns.UtcDateTime(), nullable=True),
        sa.Column("last_used_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name="pk_api_keys"),
        sa.UniqueConstraint("id", name="uq_api_keys_id"),
    )
    op.create_index("ix_api_keys_kind", "api_keys", ["kind", "ordinal"])
    op.create_index("ix_api_keys_name", "api_keys", ["name", "ordinal"])
    op.create_index("ix_api_keys_expires_at", "api_keys", ["expires_at"])


def downgrade() -> None:
    """Nobody is asked who they are."""
    op.drop_table("api_keys")
