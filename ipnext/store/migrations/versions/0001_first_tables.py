"""The first tables."""

import sqlalchemy as sa
from alembic import op

from ipnext.store import columns

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=True),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("run_id", columns.SafeText(), nullable=True),
        sa.Column("detail", columns.SafeText(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_events")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index("ix_events_model", ["model", "ordinal"], unique=False)

    op.create_table(
        "fleet",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("spec", columns.SafeText(), nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fleet")),
    )
    op.create_table(
        "models",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("manifest", columns.SafeText(), nullable=False),
        sa.Column("generation", columns.WholeNumber(), nullable=False),
        sa.Column("observed_generation", columns.WholeNumber(), nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=False),
        sa.Column("serving_generation", columns.WholeNumber(), nullable=True),
        sa.Column("target_generation", columns.WholeNumber(), nullable=True),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_models")),
    )
    op.create_table(
        "plans",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("trigger", columns.SafeText(), nullable=False),
        sa.Column("input_digest", columns.SafeText(), nullable=False),
        sa.Column("problem", columns.SafeText(), nullable=False),
        sa.Column("plan", columns.SafeText(), nullable=False),
        sa.Column("diff", columns.SafeText(), nullable=False),
        sa.Column("adopted", sa.Boolean(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_plans")),
        sa.UniqueConstraint("id", name=op.f("uq_plans_id")),
    )
    op.create_table(
        "changes",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("sequence", columns.WholeNumber(), nullable=False),
        sa.Column("generation", columns.WholeNumber(), nullable=True),
        sa.Column("plan_id", columns.SafeText(), nullable=True),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=True),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("run_id", columns.SafeText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("finished_at", columns.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_changes_models")),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_changes")),
        sa.UniqueConstraint("id", name=op.f("uq_changes_id")),
        sa.UniqueConstraint("model", "sequence", name=op.f("uq_changes_model_sequence")),
    )
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.create_index("ix_changes_state", ["state"], unique=False)

    op.create_table(
        "conditions",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("type", columns.SafeText(), nullable=False),
        sa.Column("status", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("last_transition_time", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_conditions_models")),
        sa.PrimaryKeyConstraint("model", "type", name=op.f("pk_conditions")),
    )
    op.create_table(
        "deployments",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("hardware", columns.SafeText(), nullable=False),
        sa.Column("deployment", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_deployments_models")),
        sa.PrimaryKeyConstraint("model", "part", "region", "hardware", name=op.f("pk_deployments")),
    )
    op.create_table(
        "generations",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("snapshots", columns.SafeText(), nullable=False),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=True),
        sa.Column("message", columns.SafeText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("serving_at", columns.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_generations_models")),
        sa.PrimaryKeyConstraint("model", "number", name=op.f("pk_generations")),
    )
    with op.batch_alter_table("generations", schema=None) as batch_op:
        batch_op.create_index("ix_generations_state", ["model", "state"], unique=False)

    op.create_table(
        "plan_in_force",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("plan_id", columns.SafeText(), nullable=False),
        sa.Column("adopted_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_in_force_plans")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_in_force")),
    )
    op.create_table(
        "routes",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("revision", columns.WholeNumber(), nullable=False),
        sa.Column("route_table", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_routes_models")),
        sa.PrimaryKeyConstraint("model", "region", name=op.f("pk_routes")),
    )
    op.create_table(
        "snapshots",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("uri", columns.SafeText(), nullable=False),
        sa.Column("manifest", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_snapshots_models")),
        sa.PrimaryKeyConstraint("model", "part", "number", name=op.f("pk_snapshots")),
    )
    op.create_table(
        "transitions",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("change_id", columns.SafeText(), nullable=False),
        sa.Column("generation", columns.WholeNumber(), nullable=False),
        sa.Column("transition", columns.SafeText(), nullable=False),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("waves_done", columns.WholeNumber(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_transitions_models")),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_transitions")),
        sa.UniqueConstraint("id", name=op.f("uq_transitions_id")),
    )
    with op.batch_alter_table("transitions", schema=None) as batch_op:
        batch_op.create_index("ix_transitions_model", ["model", "ordinal"], unique=False)

    op.create_table(
        "reports",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("generation", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("report", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "generation"], ["generations.model", "generations.number"], name=op.f("fk_reports_generations")
        ),
        sa.PrimaryKeyConstraint("model", "generation", name=op.f("pk_reports")),
    )


def downgrade() -> None:
    op.drop_table("reports")
    with op.batch_alter_table("transitions", schema=None) as batch_op:
        batch_op.drop_index("ix_transitions_model")

    op.drop_table("transitions")
    op.drop_table("snapshots")
    op.drop_table("routes")
    op.drop_table("plan_in_force")
    with op.batch_alter_table("generations", schema=None) as batch_op:
        batch_op.drop_index("ix_generations_state")

    op.drop_table("generations")
    op.drop_table("deployments")
    op.drop_table("conditions")
    with op.batch_alter_table("changes", schema=None) as batch_op:
        batch_op.drop_index("ix_changes_state")

    op.drop_table("changes")
    op.drop_table("plans")
    op.drop_table("models")
    op.drop_table("fleet")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index("ix_events_model")

    op.drop_table("events")
