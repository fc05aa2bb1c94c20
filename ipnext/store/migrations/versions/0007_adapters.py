"""Which parts of a generation are adapters of others."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Generations of before have no adapters."""
    with op.batch_alter_table("generations") as table:
        table.add_column(sa.Column("adapters", columns.SafeText(), nullable=True))


def downgrade() -> None:
    """Which parts are adapters is lost; their snapshots stay."""
    with op.batch_alter_table("generations") as table:
        table.drop_column("adapters")
