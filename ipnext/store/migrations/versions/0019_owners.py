"""Owners, and what each model counts for in the quotas of its owner."""

import sqlalchemy as sa
from alembic import op

from ipnext.model.manifest import ModelManifest
from ipnext.model.owner_claims import claims_of
from ipnext.model.wire import decode
from ipnext.store import columns

revision = "0019"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables, and count the models that there are by what their manifests declare."""
    op.create_table(
        "owners",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("manifest", columns.SafeText(), nullable=False),
        sa.Column("priority", columns.WholeNumber(), nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_owners"),
    )
    op.create_table(
        "owner_claims",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("quota", columns.SafeText(), nullable=False),
        sa.Column("amount", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name="fk_owner_claims_model_models"),
        sa.PrimaryKeyConstraint("model", "quota", name="pk_owner_claims"),
    )
    _count_models()


def downgrade() -> None:
    """Remove the tables: no owner has a quota or a priority. Members keep their roles."""
    op.drop_table("owner_claims")
    op.drop_table("owners")


def _count_models() -> None:
    connection = op.get_bind()
    text = columns.SafeText()
    models = sa.table("models", sa.column("name", text), sa.column("manifest", text))
    claims = sa.table("owner_claims", sa.column("model", text), sa.column("quota", text), sa.column("amount"))
    for name, manifest in connection.execute(sa.select(models.c.name, models.c.manifest)).all():
        amounts = claims_of(decode(ModelManifest, manifest))
        rows = [{"model": name, "quota": quota, "amount": amount} for quota, amount in sorted(amounts.items())]
        if rows:
            connection.execute(sa.insert(claims), rows)
