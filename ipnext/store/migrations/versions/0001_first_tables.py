"""The first tables. Triggers refuse to change or delete entries of the audit.

A later migration must not recreate the table of the audit (`batch_alter_table` on SQLite does): the triggers would be lost.
"""

import sqlalchemy as sa
from alembic import op

from ipnext.store.database import columns

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
min_reader = "0001"

FAILED = sa.text("state IN ('refused', 'rolled_back', 'superseded')")
REFUSAL = "the audit is only ever added to"
DROPPED = (
    "denied_snapshots",
    "denials",
    "first_servings",
    "serving_snapshots",
    "source_versions",
    "sources",
    "reports",
    "profiles",
    "snapshot_holds",
    "labels",
    "transitions",
    "snapshots",
    "routes",
    "route_shares",
    "plan_in_force",
    "shadows",
    "pauses",
    "owner_claims",
    "generations",
    "freeze_overrides",
    "derivations",
    "deployments",
    "conditions",
    "check_overrides",
    "check_results",
    "changes",
    "workflow_namespace",
    "schema_compat",
    "role_bindings",
    "replans",
    "replan_moves",
    "region_access",
    "plans",
    "placements",
    "placed_replicas",
    "owners",
    "moves_pause",
    "models",
    "freezes",
    "fleet",
    "events",
    "drains",
    "audit_entries",
    "artifacts",
    "api_keys",
    "access_list",
)
"""All tables, in an order in which none is referred to any more."""


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "access_list",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=True),
        sa.Column("policies", columns.SafeText(), nullable=False),
        sa.Column("issuer", columns.SafeText(), nullable=True),
        sa.Column("signing_keys", columns.SafeText(), nullable=True),
        sa.Column("signing_keys_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_list")),
    )
    op.create_table(
        "api_keys",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("proof_key", columns.SafeText(), nullable=False),
        sa.Column("grants", columns.SafeText(), nullable=False),
        sa.Column("parent", columns.SafeText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("created_by", columns.SafeText(), nullable=False),
        sa.Column("expires_at", columns.UtcDateTime(), nullable=True),
        sa.Column("revoked_at", columns.UtcDateTime(), nullable=True),
        sa.Column("revocation", columns.WholeNumber(), nullable=True),
        sa.Column("last_used_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("id", name=op.f("uq_api_keys_id")),
    )
    op.create_index("ix_api_keys_expires_at", "api_keys", ["expires_at"], unique=False)
    op.create_index("ix_api_keys_kind", "api_keys", ["kind", "ordinal"], unique=False)
    op.create_index("ix_api_keys_parent", "api_keys", ["parent"], unique=False)
    op.create_index("ix_api_keys_name", "api_keys", ["name", "ordinal"], unique=False)
    op.create_table(
        "artifacts",
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("size_bytes", columns.WholeNumber(), nullable=False),
        sa.Column("account", columns.SafeText(), nullable=False),
        sa.Column("uploads", columns.WholeNumber(), nullable=False),
        sa.Column("stored", sa.Boolean(), nullable=False),
        sa.Column("touched_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_artifacts")),
    )
    op.create_index("ix_artifacts_account", "artifacts", ["account"], unique=False)
    op.create_index("ix_artifacts_touched", "artifacts", ["touched_at"], unique=False)
    op.create_table(
        "audit_entries",
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
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit_entries")),
    )
    op.create_index("ix_audit_entries_action", "audit_entries", ["action", "sequence"], unique=False)
    op.create_index("ix_audit_entries_at", "audit_entries", ["at"], unique=False)
    op.create_index("ix_audit_entries_model", "audit_entries", ["model", "sequence"], unique=False)
    op.create_index("ix_audit_entries_object_name", "audit_entries", ["object_name", "sequence"], unique=False)
    op.create_index("ix_audit_entries_who_id", "audit_entries", ["who_id", "sequence"], unique=False)
    op.create_index("ix_audit_entries_who_name", "audit_entries", ["who_name", "sequence"], unique=False)
    op.create_table(
        "drains",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("disaster", sa.Boolean(), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("cause", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("models_left", columns.WholeNumber(), nullable=False),
        sa.Column("replicas_left", columns.WholeNumber(), nullable=False),
        sa.Column("traffic_left_qps", sa.Float(), nullable=False),
        sa.Column("replan_id", columns.SafeText(), nullable=True),
        sa.Column("replans", columns.WholeNumber(), nullable=False),
        sa.Column("told", sa.Boolean(), nullable=False),
        sa.Column("lost_after_change", columns.WholeNumber(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.Column("finished_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_drains")),
        sa.UniqueConstraint("id", name=op.f("uq_drains_id")),
    )
    op.create_index("ix_drains_region", "drains", ["region", "ordinal"], unique=False)
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
    op.create_index("ix_events_model", "events", ["model", "ordinal"], unique=False)
    op.create_table(
        "fleet",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("spec", columns.SafeText(), nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fleet")),
    )
    op.create_table(
        "freezes",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("manifest", columns.SafeText(), nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_freezes")),
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
        sa.Column("owner", columns.SafeText(), nullable=False),
        sa.Column("ready", sa.Boolean(), nullable=False),
        sa.Column("retired", sa.Boolean(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.Column("document_bytes", columns.WholeNumber(), nullable=False),
        sa.Column("access_bytes", columns.WholeNumber(), nullable=False),
        sa.Column("refused_generation", columns.WholeNumber(), nullable=True),
        sa.Column("validated", columns.SafeText(), nullable=True),
        sa.Column("accepted", columns.SafeText(), nullable=True),
        sa.Column("former", columns.SafeText(), nullable=True),
        sa.Column("retention", columns.SafeText(), nullable=True),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_models")),
    )
    op.create_index("ix_models_access_bytes", "models", ["access_bytes"], unique=False)
    op.create_index("ix_models_documents", "models", ["owner", "document_bytes"], unique=False)
    op.create_index("ix_models_owner", "models", ["owner", "name"], unique=False)
    op.create_index("ix_models_ready", "models", ["retired", "ready", "name"], unique=False)
    op.create_table(
        "moves_pause",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("paused_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_moves_pause")),
    )
    op.create_table(
        "owners",
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("manifest", columns.SafeText(), nullable=False),
        sa.Column("priority", columns.WholeNumber(), nullable=False),
        sa.Column("version", columns.WholeNumber(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("updated_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_owners")),
    )
    op.create_table(
        "placed_replicas",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("hardware", columns.SafeText(), nullable=False),
        sa.Column("owner", columns.SafeText(), nullable=False),
        sa.Column("count", columns.WholeNumber(), nullable=False),
        sa.Column("units", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", "part", "region", "hardware", name=op.f("pk_placed_replicas")),
    )
    op.create_index("ix_placed_replicas_owner", "placed_replicas", ["owner"], unique=False)
    op.create_index(
        "ix_placed_replicas_units", "placed_replicas", ["region", "hardware", "count", "units", "model"], unique=False
    )
    op.create_table(
        "placements",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("plan_id", columns.SafeText(), nullable=False),
        sa.Column("owner", columns.SafeText(), nullable=False),
        sa.Column("priority", sa.Float(), nullable=False),
        sa.Column("wishes", columns.SafeText(), nullable=False),
        sa.Column("replicas", columns.SafeText(), nullable=False),
        sa.Column("traffic", columns.SafeText(), nullable=False),
        sa.Column("unmet", columns.SafeText(), nullable=False),
        sa.Column("unmet_qps", sa.Float(), nullable=False),
        sa.Column("cost_per_hour", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_placements")),
    )
    op.create_index("ix_placements_owner", "placements", ["owner", "cost_per_hour", "unmet_qps"], unique=False)
    op.create_index("ix_placements_priority", "placements", ["priority", "unmet_qps"], unique=False)
    op.create_index("ix_placements_unmet", "placements", ["unmet_qps", "model"], unique=False)
    op.create_table(
        "plans",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("trigger", columns.SafeText(), nullable=False),
        sa.Column("scope", columns.SafeText(), nullable=True),
        sa.Column("outcome", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("based_on", columns.SafeText(), nullable=True),
        sa.Column("input_digest", columns.SafeText(), nullable=False),
        sa.Column("status", columns.SafeText(), nullable=False),
        sa.Column("method", columns.SafeText(), nullable=False),
        sa.Column("objective", sa.Float(), nullable=False),
        sa.Column("bound", sa.Float(), nullable=False),
        sa.Column("bound_covers", columns.SafeText(), nullable=False),
        sa.Column("gap", sa.Float(), nullable=False),
        sa.Column("cost_per_hour", sa.Float(), nullable=False),
        sa.Column("unmet_qps", sa.Float(), nullable=False),
        sa.Column("moves", columns.WholeNumber(), nullable=False),
        sa.Column("wall_seconds", sa.Float(), nullable=True),
        sa.Column("cpu_seconds", sa.Float(), nullable=True),
        sa.Column("peak_memory_bytes", columns.WholeNumber(), nullable=True),
        sa.Column("problem", columns.PackedText(), nullable=True),
        sa.Column("plan", columns.PackedText(), nullable=True),
        sa.Column("diff", columns.PackedText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_plans")),
        sa.UniqueConstraint("id", name=op.f("uq_plans_id")),
    )
    op.create_index("ix_plans_scope", "plans", ["scope", "ordinal"], unique=False)
    op.create_table(
        "region_access",
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("revision", columns.WholeNumber(), nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("revocations", columns.WholeNumber(), nullable=True),
        sa.PrimaryKeyConstraint("region", name=op.f("pk_region_access")),
    )
    op.create_table(
        "replan_moves",
        sa.Column("plan_id", columns.SafeText(), nullable=False),
        sa.Column("position", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("change_id", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("asked_at", columns.UtcDateTime(), nullable=True),
        sa.Column("ended_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("plan_id", "position", name=op.f("pk_replan_moves")),
    )
    op.create_index("ix_replan_moves_state", "replan_moves", ["plan_id", "state", "position"], unique=False)
    op.create_table(
        "replans",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("trigger", columns.SafeText(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("max_moves", columns.WholeNumber(), nullable=True),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("plan_id", columns.SafeText(), nullable=True),
        sa.Column("moves", columns.WholeNumber(), nullable=False),
        sa.Column("models", columns.SafeText(), nullable=False),
        sa.Column("progress", columns.SafeText(), nullable=True),
        sa.Column("run_id", columns.SafeText(), nullable=True),
        sa.Column("not_before", columns.UtcDateTime(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("started_at", columns.UtcDateTime(), nullable=True),
        sa.Column("finished_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_replans")),
        sa.UniqueConstraint("id", name=op.f("uq_replans_id")),
    )
    op.create_index("ix_replans_plan_id", "replans", ["plan_id"], unique=False)
    op.create_index("ix_replans_state", "replans", ["state"], unique=False)
    op.create_table(
        "role_bindings",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("subject", columns.SafeText(), nullable=False),
        sa.Column("role", columns.SafeText(), nullable=False),
        sa.Column("owner", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("created_by", columns.SafeText(), nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_role_bindings")),
        sa.UniqueConstraint("id", name=op.f("uq_role_bindings_id")),
        sa.UniqueConstraint(
            "subject", "role", "owner", "region", name=op.f("uq_role_bindings_subject_role_owner_region")
        ),
    )
    op.create_table(
        "schema_compat",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("version", columns.SafeText(), nullable=False),
        sa.Column("min_reader", columns.SafeText(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schema_compat")),
    )
    op.create_table(
        "workflow_namespace",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("namespace_id", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("address", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workflow_namespace")),
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
        sa.Column("stopped_by", columns.SafeText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("finished_at", columns.UtcDateTime(), nullable=True),
        sa.Column("stages", columns.SafeText(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_changes_models")),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_changes")),
        sa.UniqueConstraint("id", name=op.f("uq_changes_id")),
        sa.UniqueConstraint("model", "sequence", name=op.f("uq_changes_model_sequence")),
    )
    op.create_index("ix_changes_created_at", "changes", ["created_at", "state"], unique=False)
    op.create_index(
        "ix_changes_failed",
        "changes",
        ["kind", "model", "sequence"],
        unique=False,
        sqlite_where=FAILED,
        postgresql_where=FAILED,
    )
    op.create_index("ix_changes_kind", "changes", ["model", "kind", "sequence"], unique=False)
    op.create_index("ix_changes_state", "changes", ["state", "ordinal"], unique=False)
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
    op.create_index("ix_conditions_type", "conditions", ["type", "model"], unique=False)
    op.create_table(
        "deployments",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("hardware", columns.SafeText(), nullable=False),
        sa.Column("replicas", columns.WholeNumber(), nullable=False),
        sa.Column("units", sa.Float(), nullable=False),
        sa.Column("deployment", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_deployments_models")),
        sa.PrimaryKeyConstraint("model", "part", "region", "hardware", name=op.f("pk_deployments")),
    )
    op.create_index(
        "ix_deployments_units", "deployments", ["region", "hardware", "replicas", "units", "model"], unique=False
    )
    op.create_table(
        "check_overrides",
        sa.Column("change_id", columns.SafeText(), nullable=False),
        sa.Column("check", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("who", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_check_overrides_models")),
        sa.PrimaryKeyConstraint("change_id", "check", name=op.f("pk_check_overrides")),
    )
    op.create_table(
        "check_results",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("key", columns.SafeText(), nullable=False),
        sa.Column("check", columns.SafeText(), nullable=False),
        sa.Column("results", columns.PackedText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_check_results_models")),
        sa.PrimaryKeyConstraint("model", "key", name=op.f("pk_check_results")),
    )
    op.create_index("ix_check_results_made", "check_results", ["model", "created_at"], unique=False)
    op.create_table(
        "derivations",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("parent", columns.SafeText(), nullable=False),
        sa.Column("recipe", columns.SafeText(), nullable=False),
        sa.Column("snapshot", columns.WholeNumber(), nullable=True),
        sa.Column("report", columns.PackedText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("is_repeated", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_derivations_models")),
        sa.PrimaryKeyConstraint("model", "part", "parent", "recipe", name=op.f("pk_derivations")),
    )
    op.create_table(
        "freeze_overrides",
        sa.Column("change_id", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("who", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("freezes", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_freeze_overrides_models")),
        sa.PrimaryKeyConstraint("change_id", name=op.f("pk_freeze_overrides")),
    )
    op.create_table(
        "generations",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("snapshots", columns.SafeText(), nullable=False),
        sa.Column("derived", columns.SafeText(), nullable=True),
        sa.Column("layout", columns.PackedText(), nullable=True),
        sa.Column("graph", columns.PackedText(), nullable=True),
        sa.Column("hosting", columns.PackedText(), nullable=True),
        sa.Column("adapters", columns.SafeText(), nullable=True),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=True),
        sa.Column("message", columns.SafeText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("serving_at", columns.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_generations_models")),
        sa.PrimaryKeyConstraint("model", "number", name=op.f("pk_generations")),
    )
    op.create_index("ix_generations_serving_at", "generations", ["model", "serving_at"], unique=False)
    op.create_index("ix_generations_state", "generations", ["model", "state"], unique=False)
    op.create_table(
        "owner_claims",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("quota", columns.SafeText(), nullable=False),
        sa.Column("amount", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_owner_claims_models")),
        sa.PrimaryKeyConstraint("model", "quota", name=op.f("pk_owner_claims")),
    )
    op.create_table(
        "shadows",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("change_id", columns.SafeText(), nullable=False),
        sa.Column("shadow", columns.SafeText(), nullable=False),
        sa.Column("seen", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_shadows_models")),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_shadows")),
    )
    op.create_table(
        "pauses",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("asked", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_pauses_models")),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_pauses")),
    )
    op.create_table(
        "plan_in_force",
        sa.Column("id", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("plan_id", columns.SafeText(), nullable=False),
        sa.Column("adopted_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["plan_id"], ["plans.id"], name=op.f("fk_plan_in_force_plans")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plan_in_force")),
    )
    op.create_table(
        "route_shares",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("to", columns.SafeText(), nullable=False),
        sa.Column("generation", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("fraction", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_route_shares_models")),
        sa.PrimaryKeyConstraint("model", "region", "to", "generation", name=op.f("pk_route_shares")),
    )
    op.create_index("ix_route_shares_to", "route_shares", ["to", "model"], unique=False)
    op.create_table(
        "routes",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("revision", columns.WholeNumber(), nullable=False),
        sa.Column("refuses", sa.Boolean(), nullable=False),
        sa.Column("sends", sa.Boolean(), nullable=False),
        sa.Column("route_table", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_routes_models")),
        sa.PrimaryKeyConstraint("model", "region", name=op.f("pk_routes")),
    )
    op.create_index("ix_routes_region", "routes", ["region"], unique=False)
    op.create_index("ix_routes_sends", "routes", ["sends", "model"], unique=False)
    op.create_table(
        "snapshots",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("uri", columns.SafeText(), nullable=False),
        sa.Column("manifest", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("trained_at", columns.UtcDateTime(), nullable=True),
        sa.Column("collected_at", columns.UtcDateTime(), nullable=True),
        sa.Column("served_at", columns.UtcDateTime(), nullable=True),
        sa.Column("parent", columns.SafeText(), nullable=True),
        sa.Column("is_delta", sa.Boolean(), nullable=False),
        sa.Column("size_bytes", columns.WholeNumber(), nullable=False),
        sa.Column("origin", columns.SafeText(), nullable=True),
        sa.Column("derived_from", columns.WholeNumber(), nullable=True),
        sa.Column("hardware", columns.SafeText(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_snapshots_models")),
        sa.PrimaryKeyConstraint("model", "part", "number", name=op.f("pk_snapshots")),
    )
    op.create_index("ix_snapshots_digest", "snapshots", ["model", "part", "digest"], unique=False)
    op.create_index("ix_snapshots_parent", "snapshots", ["model", "part", "parent"], unique=False)
    op.create_index("ix_snapshots_created_at", "snapshots", ["created_at"], unique=False)
    op.create_index("ix_snapshots_made_from", "snapshots", ["parent"], unique=False)
    op.create_table(
        "labels",
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("key", columns.SafeText(), nullable=False),
        sa.Column("value", columns.SafeText(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", "key", name=op.f("pk_labels")),
    )
    op.create_index("ix_labels_value", "labels", ["kind", "key", "value", "name"], unique=False)
    op.create_table(
        "snapshot_holds",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("held_by", columns.SafeText(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "part", "number"],
            ["snapshots.model", "snapshots.part", "snapshots.number"],
            name=op.f("fk_snapshot_holds_snapshots"),
        ),
        sa.PrimaryKeyConstraint("model", "part", "number", name=op.f("pk_snapshot_holds")),
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
        sa.Column("fence", columns.WholeNumber(), nullable=False),
        sa.Column("revision", columns.WholeNumber(), nullable=False),
        sa.Column("rests", sa.Boolean(), nullable=False),
        sa.Column("before", columns.SafeText(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_transitions_models")),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_transitions")),
        sa.UniqueConstraint("id", name=op.f("uq_transitions_id")),
    )
    op.create_index("ix_transitions_change", "transitions", ["change_id"], unique=False)
    op.create_index("ix_transitions_model", "transitions", ["model", "ordinal"], unique=False)
    op.create_index("ix_transitions_state", "transitions", ["state"], unique=False)
    op.create_table(
        "profiles",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("id", columns.SafeText(), nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("snapshot", columns.WholeNumber(), nullable=False),
        sa.Column("hardware", columns.SafeText(), nullable=False),
        sa.Column("architecture", columns.SafeText(), nullable=False),
        sa.Column("profile", columns.PackedText(), nullable=False),
        sa.Column("measured_at", columns.UtcDateTime(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model", "part", "snapshot"],
            ["snapshots.model", "snapshots.part", "snapshots.number"],
            name=op.f("fk_profiles_snapshots"),
        ),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_profiles")),
        sa.UniqueConstraint("id", name=op.f("uq_profiles_id")),
    )
    op.create_index(
        "ix_profiles_architecture",
        "profiles",
        ["model", "part", "architecture", "hardware", "measured_at", "ordinal"],
        unique=False,
    )
    op.create_index("ix_profiles_snapshot", "profiles", ["model", "part", "snapshot", "ordinal"], unique=False)
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
    op.create_table(
        "sources",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("name", columns.SafeText(), nullable=False),
        sa.Column("kind", columns.SafeText(), nullable=False),
        sa.Column("upstream", columns.SafeText(), nullable=False),
        sa.Column("stream", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("spec", columns.SafeText(), nullable=False),
        sa.Column("every_seconds", sa.Float(), nullable=False),
        sa.Column("reach", columns.WholeNumber(), nullable=False),
        sa.Column("sent", sa.Boolean(), nullable=False),
        sa.Column("paused_by", columns.SafeText(), nullable=True),
        sa.Column("paused_at", columns.UtcDateTime(), nullable=True),
        sa.Column("pause_reason", columns.SafeText(), nullable=False),
        sa.Column("cursor", columns.SafeText(), nullable=False),
        sa.Column("polled_at", columns.UtcDateTime(), nullable=True),
        sa.Column("failures", columns.WholeNumber(), nullable=False),
        sa.Column("error", columns.SafeText(), nullable=False),
        sa.Column("picked_at", columns.UtcDateTime(), nullable=True),
        sa.Column("picked_key", columns.SafeText(), nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_sources_models")),
        sa.PrimaryKeyConstraint("model", "name", name=op.f("pk_sources")),
    )
    op.create_index("ix_sources_upstream", "sources", ["kind", "upstream", "model", "name"], unique=False)
    op.create_index("ix_sources_sent", "sources", ["sent"], unique=False)
    op.create_table(
        "source_versions",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("source", columns.SafeText(), nullable=False),
        sa.Column("stream", columns.SafeText(), nullable=False),
        sa.Column("key", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("state", columns.SafeText(), nullable=False),
        sa.Column("version", columns.SafeText(), nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=True),
        sa.Column("found_at", columns.UtcDateTime(), nullable=False),
        sa.Column("attempts", columns.WholeNumber(), nullable=False),
        sa.Column("due_at", columns.UtcDateTime(), nullable=True),
        sa.Column("message", columns.SafeText(), nullable=False),
        sa.Column("change_id", columns.SafeText(), nullable=True),
        sa.Column("ended_at", columns.UtcDateTime(), nullable=True),
        sa.Column("parent", columns.SafeText(), nullable=True),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_source_versions_models")),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_source_versions")),
        sa.UniqueConstraint(
            "model", "source", "stream", "key", name=op.f("uq_source_versions_model_source_stream_key")
        ),
    )
    op.create_index("ix_source_versions_source", "source_versions", ["model", "source", "ordinal"], unique=False)
    op.create_index("ix_source_versions_state", "source_versions", ["state", "model"], unique=False)
    op.create_index("ix_source_versions_counts", "source_versions", ["model", "source", "state"], unique=False)
    op.create_index("ix_source_versions_digest", "source_versions", ["digest"], unique=False)
    op.create_table(
        "denials",
        sa.Column("ordinal", columns.WholeNumber(), autoincrement=True, nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.Column("reason", columns.SafeText(), nullable=False),
        sa.Column("denied_by", columns.SafeText(), nullable=False),
        sa.Column("denied_at", columns.UtcDateTime(), nullable=False),
        sa.Column("is_carried_out", sa.Boolean(), nullable=False),
        sa.Column("ended_at", columns.UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("ordinal", name=op.f("pk_denials")),
        sa.UniqueConstraint("digest", name=op.f("uq_denials_digest")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "denied_snapshots",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("denial", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("digest", columns.SafeText(), nullable=False),
        sa.ForeignKeyConstraint(["denial"], ["denials.ordinal"], name=op.f("fk_denied_snapshots_denials")),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_denied_snapshots_models")),
        sa.PrimaryKeyConstraint("model", "part", "number", "denial", name=op.f("pk_denied_snapshots")),
    )
    op.create_index("ix_denied_snapshots_denial", "denied_snapshots", ["denial"], unique=False)
    op.create_index("ix_denied_snapshots_digest", "denied_snapshots", ["digest"], unique=False)
    op.create_table(
        "serving_snapshots",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), nullable=True),
        sa.Column("trained_at", columns.UtcDateTime(), nullable=True),
        sa.Column("published_at", columns.UtcDateTime(), nullable=False),
        sa.Column("since", columns.UtcDateTime(), nullable=False),
        sa.Column("to_serving_seconds", sa.Float(), nullable=True),
        sa.Column("target_seconds", sa.Float(), nullable=True),
        sa.Column("objective", sa.Float(), nullable=False),
        sa.Column("late_at", columns.UtcDateTime(), nullable=True),
        sa.Column("window", columns.SafeText(), nullable=False),
        sa.Column("accounted_at", columns.UtcDateTime(), nullable=False),
        sa.Column("breached_at", columns.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_serving_snapshots_models")),
        sa.PrimaryKeyConstraint("model", "part", "region", name=op.f("pk_serving_snapshots")),
    )
    op.create_index("ix_serving_snapshots_late_at", "serving_snapshots", ["late_at", "model"], unique=False)
    op.create_index("ix_serving_snapshots_breached", "serving_snapshots", ["breached_at"], unique=False)
    op.create_table(
        "first_servings",
        sa.Column("model", columns.SafeText(), nullable=False),
        sa.Column("part", columns.SafeText(), nullable=False),
        sa.Column("region", columns.SafeText(), nullable=False),
        sa.Column("number", columns.WholeNumber(), autoincrement=False, nullable=False),
        sa.Column("serving_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["models.name"], name=op.f("fk_first_servings_models")),
        sa.PrimaryKeyConstraint("model", "part", "region", "number", name=op.f("pk_first_servings")),
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    """Drop all tables."""
    for table in DROPPED:
        op.drop_table(table)
    if op.get_bind().dialect.name != "sqlite":
        op.execute("DROP FUNCTION refuse_audit_change()")


_SQLITE = (
    f"CREATE TRIGGER audit_entries_no_update BEFORE UPDATE ON audit_entries BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
    f"CREATE TRIGGER audit_entries_no_delete BEFORE DELETE ON audit_entries BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
    # INSERT OR REPLACE deletes without the trigger of deletes
    "CREATE TRIGGER audit_entries_no_replace BEFORE INSERT ON audit_entries WHEN EXISTS"
    f" (SELECT 1 FROM audit_entries WHERE sequence = NEW.sequence) BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
)
_POSTGRESQL = (
    "CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS"
    f" $$ BEGIN RAISE EXCEPTION '{REFUSAL}' USING ERRCODE = 'insufficient_privilege'; END $$",
    "CREATE TRIGGER audit_entries_no_change BEFORE UPDATE OR DELETE ON audit_entries FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()",
    "CREATE TRIGGER audit_entries_no_truncate BEFORE TRUNCATE ON audit_entries FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()",
)
