"""Owner and readiness of models as columns, and the indexes of lists, counts and metrics."""

import json

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_BATCH = 500

_NEW = (
    ("ix_models_owner", "models", ["owner", "name"]),
    ("ix_models_ready", "models", ["retired", "ready", "name"]),
    ("ix_changes_created_at", "changes", ["created_at", "state"]),
    ("ix_placements_unmet", "placements", ["unmet_qps", "model"]),
    ("ix_placements_owner", "placements", ["owner", "cost_per_hour", "unmet_qps"]),
    ("ix_placements_priority", "placements", ["priority", "unmet_qps"]),
    ("ix_deployments_units", "deployments", ["region", "hardware", "replicas", "units", "model"]),
)


def upgrade() -> None:
    """Copy the owner from each manifest and the readiness from each condition."""
    op.add_column("models", sa.Column("owner", columns.SafeText(), nullable=False, server_default=sa.text("''")))
    op.add_column("models", sa.Column("ready", sa.Boolean(), nullable=False, server_default=sa.false()))
    _copy_owners()
    op.execute(
        "UPDATE models SET ready = TRUE WHERE name IN "
        "(SELECT model FROM conditions WHERE type = 'Ready' AND status = 'True')"
    )
    op.drop_index("ix_changes_state", table_name="changes")
    op.create_index("ix_changes_state", "changes", ["state", "ordinal"])
    for name, table, of in _NEW:
        op.create_index(name, table, of)


def downgrade() -> None:
    """Owner and readiness stay in manifests and conditions."""
    for name, table, _ in reversed(_NEW):
        op.drop_index(name, table_name=table)
    op.drop_index("ix_changes_state", table_name="changes")
    op.create_index("ix_changes_state", "changes", ["state"])
    op.drop_column("models", "ready")
    op.drop_column("models", "owner")


def _copy_owners() -> None:
    connection = op.get_bind()
    models = sa.table("models", sa.column("name", columns.SafeText()), sa.column("manifest", columns.SafeText()), sa.column("owner", columns.SafeText()))
    found = connection.execute(sa.select(models.c.name, models.c.manifest)).all()
    write = sa.update(models).where(models.c.name == sa.bindparam("of")).values(owner=sa.bindparam("by"))
    for start in range(0, len(found), _BATCH):
        rows = found[start : start + _BATCH]
        connection.execute(write, [{"of": name, "by": _owner(text)} for name, text in rows])


def _owner(manifest: str) -> str:
    return str(json.loads(manifest)["metadata"].get("owner") or "default")
