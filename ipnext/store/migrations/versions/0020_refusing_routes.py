"""Whether a route table only refuses its users, as those of a model do that has never served."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No table so far is of such a model, nor is one that an earlier build writes."""
    op.add_column("routes", sa.Column("refuses", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Remove the column, and the tables that say nothing else: builds before know none of a model that has never served."""
    op.execute(
        "DELETE FROM routes WHERE refuses AND model IN (SELECT name FROM models WHERE serving_generation IS NULL)"
    )
    op.drop_column("routes", "refuses")
