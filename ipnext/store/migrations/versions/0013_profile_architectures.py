"""The architecture of each profile's snapshot as a column, so that the profile that holds is found by an index."""

import sqlalchemy as sa
from alembic import op

from ipnext.model.profile import architecture_of
from ipnext.model.registry import SnapshotManifest
from ipnext.model.wire import decode
from ipnext.store import columns

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_TEXTS = ("model", "part", "architecture", "manifest")


def upgrade() -> None:
    """Fill the column from the manifests of the snapshots that were measured."""
    op.add_column(
        "profiles", sa.Column("architecture", columns.SafeText(), nullable=False, server_default=sa.text("''"))
    )
    _fill_architectures()
    op.drop_index("ix_profiles_model", table_name="profiles")
    op.create_index("ix_profiles_snapshot", "profiles", ["model", "part", "snapshot", "ordinal"])
    of = ["model", "part", "architecture", "hardware", "measured_at", "ordinal"]
    op.create_index("ix_profiles_architecture", "profiles", of)


def downgrade() -> None:
    """Which profile holds is found by the manifests of snapshots."""
    op.drop_index("ix_profiles_architecture", table_name="profiles")
    op.drop_index("ix_profiles_snapshot", table_name="profiles")
    op.create_index("ix_profiles_model", "profiles", ["model", "measured_at"])
    op.drop_column("profiles", "architecture")


def _fill_architectures() -> None:
    connection = op.get_bind()
    text = columns.SafeText()
    profiles = sa.table("profiles", sa.column("snapshot"), *(sa.column(name, text) for name in _TEXTS[:3]))
    snapshots = sa.table("snapshots", sa.column("number"), *(sa.column(name, text) for name in ("model", "part", "manifest")))
    of = (profiles.c.model == snapshots.c.model) & (profiles.c.part == snapshots.c.part)
    of &= profiles.c.snapshot == snapshots.c.number
    measured = sa.select(snapshots.c.model, snapshots.c.part, snapshots.c.number, snapshots.c.manifest).distinct()
    for model, part, number, manifest in connection.execute(measured.join(profiles, of)).all():
        mine = (profiles.c.model == model) & (profiles.c.part == part) & (profiles.c.snapshot == number)
        architecture = architecture_of(decode(SnapshotManifest, manifest))
        connection.execute(sa.update(profiles).where(mine).values(architecture=architecture))
