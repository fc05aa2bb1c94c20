"""Owners, what each model counts for in the quotas of its owner, and the condition `Ready` as its halves."""

import sqlalchemy as sa
from alembic import op

from ipnext.model.manifest import ModelManifest
from ipnext.model.owner_claims import claims_of
from ipnext.model.wire import decode
from ipnext.store import columns

revision = "0019"
down_revision = "0018"
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
    _split_ready()


def downgrade() -> None:
    """Remove the tables: no owner has a quota or a priority. Members keep their roles. `UpToDate` is `Ready` again."""
    op.execute("DELETE FROM conditions WHERE type = 'Serving'")
    op.execute("UPDATE conditions SET type = 'Ready' WHERE type = 'UpToDate'")
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


def _split_ready() -> None:
    """`Ready` said whether the newest wanted state serves; what serves is known of the model."""
    op.execute("UPDATE conditions SET type = 'UpToDate' WHERE type = 'Ready'")
    op.execute(
        "INSERT INTO conditions (model, type, status, reason, message, last_transition_time) "
        "SELECT name, 'Serving', 'True', 'Serving', 'generation ' || serving_generation || ' serves', updated_at "
        "FROM models WHERE serving_generation IS NOT NULL AND NOT retired"
    )
    op.execute(
        "INSERT INTO conditions (model, type, status, reason, message, last_transition_time) "
        "SELECT c.model, 'Serving', 'False', c.reason, c.message, c.last_transition_time FROM conditions c "
        "JOIN models m ON m.name = c.model "
        "WHERE c.type = 'UpToDate' AND (m.serving_generation IS NULL OR m.retired)"
    )
