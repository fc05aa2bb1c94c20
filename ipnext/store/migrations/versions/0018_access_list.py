"""The list by which regions check predictions: its revision, and what of it no other row has."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "access_list",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("revision", columns.WholeNumber(), nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("policies", columns.SafeText(), nullable=False),
        sa.Column("issuer", columns.SafeText(), nullable=True),
        sa.Column("signing_keys", columns.SafeText(), nullable=True),
        sa.Column("signing_keys_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_access_list"),
    )


def downgrade() -> None:
    """Remove the table: regions keep the list that they have."""
    op.drop_table("access_list")
