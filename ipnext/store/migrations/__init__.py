"""Alembic's scripts. `ipnext.store.migrating` runs them."""
