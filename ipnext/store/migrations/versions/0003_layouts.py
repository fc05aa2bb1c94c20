"""How a generation is cut into parts."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Generations of before are not cut."""
    with op.batch_alter_table("generations") as table:
        table.add_column(sa.Column("layout", columns.PackedText(), nullable=True))


def downgrade() -> None:
    """Layouts are lost; the segments' snapshots stay."""
    with op.batch_alter_table("generations") as table:
        table.drop_column("layout")
