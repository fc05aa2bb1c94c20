"""Which builds may use this schema: an older one starts on a newer schema that it can still read and write."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

min_reader = "0009"
"""The oldest schema whose builds can use this one; builds before it do not look at the range."""


def upgrade() -> None:
    """The one row is written by `ipnext.store.migrating` after each migration."""
    op.create_table(
        "schema_compat",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("version", columns.SafeText(), nullable=False),
        sa.Column("min_reader", columns.SafeText(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schema_compat")),
    )


def downgrade() -> None:
    """Any newer schema is refused again."""
    op.drop_table("schema_compat")
