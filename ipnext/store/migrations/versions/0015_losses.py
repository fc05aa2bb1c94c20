"""The place of each loss of a region among the changes, so that no clock decides which of the two was first."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Losses so far count as earlier than every change."""
    op.add_column("drains", sa.Column("lost_after_change", columns.WholeNumber(), nullable=True))


def downgrade() -> None:
    """Which changes a loss came after is forgotten."""
    op.drop_column("drains", "lost_after_change")
