"""Alembic's entry: migrates the connection that `ipnext.store.schema.alembic_scripts` gives."""

from alembic import context

from ipnext.store.tables.row import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,
    render_as_batch=True,
    user_module_prefix="columns.",
)
with context.begin_transaction():
    context.run_migrations()
