"""The audit: entries that are sealed to each other, and that triggers refuse to change or delete.

A later migration of this table must not recreate it (`batch_alter_table` on SQLite does): the triggers would be lost.
"""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None
min_reader = "0016"

TABLE = "audit_entries"
REFUSAL = "the audit is only ever added to"


def upgrade() -> None:
    """Begin the chain. What the former table held of freezes stands in the events, too."""
    op.drop_table("audit")
    op.create_table(
        TABLE,
        sa.Column("sequence", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("who_kind", columns.SafeText(), nullable=False),
        sa.Column("who_id", columns.SafeText(), nullable=False),
        sa.Column("who_name", columns.SafeText(), nullable=False),
        sa.Column("said", columns.SafeText(), nullable=True),
        sa.Column("source", columns.SafeText(), nullable=True),
        sa.Column("action", columns.SafeText(), nullable=False),
        sa.Column("operation", columns.SafeText(), nullable=True),
        sa.Column("policy", columns.SafeText(), nullable=True),
        sa.Column("object_kind", columns.SafeText(), nullable=False),
        sa.Column("object_name", columns.SafeText(), nullable=True),
        sa.Column("model", columns.SafeText(), nullable=True),
        sa.Column("owner", columns.SafeText(), nullable=True),
        sa.Column("outcome", columns.SafeText(), nullable=False),
        sa.Column("before", columns.SafeText(), nullable=True),
        sa.Column("after", columns.SafeText(), nullable=True),
        sa.Column("reason", columns.SafeText(), nullable=True),
        sa.Column("change_id", columns.SafeText(), nullable=True),
        sa.Column("request_id", columns.SafeText(), nullable=False),
        sa.Column("left_out", columns.WholeNumber(), nullable=True),
        sa.Column("prev_hash", columns.SafeText(), nullable=False),
        sa.Column("hash", columns.SafeText(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_at", TABLE, ["at"])
    for column in ("who_id", "who_name", "action", "object_name", "model"):
        op.create_index(f"ix_audit_entries_{column}", TABLE, [column, "sequence"])
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    """The audit is lost."""
    op.drop_table(TABLE)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_audit_change()")
    op.create_table(
        "audit",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("who", columns.SafeText(), nullable=False),
        sa.Column("action", columns.SafeText(), nullable=False),
        sa.Column("subject", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=True),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("detail", columns.SafeText(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name="pk_audit"),
    )


_SQLITE = (
    f"CREATE TRIGGER audit_entries_no_update BEFORE UPDATE ON {TABLE} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
    f"CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON {TABLE} BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
    # INSERT OR REPLACE deletes without the trigger of deletes
    f"CREATE TRIGGER audit_entries_no_replace BEFORE INSERT ON {TABLE} WHEN EXISTS"  # noqa: S608 - a name of our own
    f" (SELECT 1 FROM {TABLE} WHERE sequence = NEW.sequence) BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
)
_POSTGRESQL = (
    "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS"
    f" $$ BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'insufficient_privilege'; END $$",
    f"CREATE TRIGGER audit_entries_no_change BEFORE UPDATE OR DELETE ON {TABLE}"
    " FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()",
    f"CREATE TRIGGER audit_entries_no_truncate BEFORE TRUNCATE ON {TABLE}"
    " FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()",
)
