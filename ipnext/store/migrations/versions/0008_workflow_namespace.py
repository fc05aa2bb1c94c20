"""Which Temporal namespace runs the changes of the record."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The next worker or API that serves the record writes down whose it is."""
    op.create_table(
        "workflow_namespace",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("namespace_id", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("address", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflow_namespace")),
    )


def downgrade() -> None:
    """Anyone may serve the record again."""
    op.drop_table("workflow_namespace")
