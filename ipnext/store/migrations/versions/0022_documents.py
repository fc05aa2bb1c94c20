"""Bytes of a model's documents, which count for its owner, and which revision of its manifest was refused."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

_BYTES = {"sqlite": "length(CAST({} AS BLOB))", "postgresql": "octet_length({})"}


def upgrade() -> None:
    """Count the documents that there are."""
    op.add_column("models", sa.Column("document_bytes", columns.WholeNumber(), nullable=False, server_default=sa.text("0")))
    op.add_column("models", sa.Column("refused_generation", columns.WholeNumber(), nullable=True))
    own, of_snapshots, of_reports = (
        _BYTES[op.get_bind().dialect.name].format(column) for column in ("manifest", "snapshots.manifest", "report")
    )
    op.execute(
        f"UPDATE models SET document_bytes = {own}"  # noqa: S608 - columns of our own
        f" + (SELECT coalesce(sum({of_snapshots}), 0) FROM snapshots WHERE snapshots.model = models.name)"
        f" + (SELECT coalesce(sum({of_reports}), 0) FROM reports WHERE reports.model = models.name)"
    )
    op.create_index("ix_models_documents", "models", ["owner", "document_bytes"])


def downgrade() -> None:
    """Documents count for nobody."""
    op.drop_index("ix_models_documents", table_name="models")
    op.drop_column("models", "refused_generation")
    op.drop_column("models", "document_bytes")
