"""Alembic's scripts. `ipnext.store.alembic_scripts` runs them."""
