"""Alembic's scripts. `ipnext.store.schema.alembic_scripts` runs them."""
