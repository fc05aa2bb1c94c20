"""Who may move a model: fencing tokens of transitions, and pauses that outlive the workflow that was asked for them."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Transitions of before have the first token, and work with the first revision of their manifest."""
    for name, first in (("fence", "0"), ("revision", "0")):
        op.add_column("transitions", sa.Column(name, columns.WholeNumber(), server_default=first, nullable=False))
    op.create_index("ix_transitions_state", "transitions", ["state"])
    op.create_table(
        "pauses",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("asked", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_pauses_models")),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_pauses")),
    )


def downgrade() -> None:
    """Pauses are kept by workflows alone."""
    op.drop_table("pauses")
    op.drop_index("ix_transitions_state", table_name="transitions")
    with op.batch_alter_table("transitions") as table:
        table.drop_column("revision")
        table.drop_column("fence")
