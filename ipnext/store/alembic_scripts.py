"""Migrations by alembic, from code: with the scripts in this package and without an alembic.ini.

Called by `ipnext.store.migrating`, only where a database is to be migrated: every process would pay for the import.
"""

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ipnext.store import migrating


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for our scripts; env.py takes the connection from its attributes."""
    config = Config()
    config.set_main_option("script_location", str(migrating.SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Run all migrations that the database has not seen."""
    command.upgrade(alembic_config(connection), "head")


def min_reader() -> str:
    """What the newest migration that says so states: a migration that only adds states nothing."""
    scripts = ScriptDirectory.from_config(alembic_config())
    stated = (getattr(script.module, "min_reader", None) for script in scripts.walk_revisions())
    return next((str(revision) for revision in stated if revision), migrating.newest_revision())
