"""What the artifact store holds as far as it is counted or in use, and snapshots whose bytes were collected."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table. What is in the store already counts for nobody until it is published again."""
    op.create_table(
        "artifacts",
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("size_bytes", columns.WholeNumber(), nullable=False),
        sa.Column("account", columns.SafeText(), nullable=False),
        sa.Column("uploads", columns.WholeNumber(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("touched_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_artifacts"),
    )
    op.create_index("ix_artifacts_account", "artifacts", ["account"])
    op.create_index("ix_artifacts_touched", "artifacts", ["touched_at"])
    op.add_column("snapshots", sa.Column("collected_at", columns.UtcDateTime(), nullable=True))


def downgrade() -> None:
    """Remove table and column: nothing is counted, and snapshots whose bytes are gone look as if they were there."""
    op.drop_column("snapshots", "collected_at")
    op.drop_table("artifacts")
