"""Migrations by alembic, from code: with the scripts in this package and without an alembic.ini.

`ipnext.store.schema.migration` imports it only to migrate a database; otherwise every process would pay for the import.
"""

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from ipnext.store.schema import migration


def alembic_config(connection: Connection | None = None) -> Config:
    """Return alembic's configuration for our scripts; env.py takes the connection from its attributes."""
    config = Config()
    config.set_main_option("script_location", str(migration.SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Run all migrations that the database lacks."""
    command.upgrade(alembic_config(connection), "head")


def min_reader() -> str:
    """Return the `min_reader` of the newest migration that states one: a migration that only adds states none."""
    scripts = ScriptDirectory.from_config(alembic_config())
    stated = (getattr(script.module, "min_reader", None) for script in scripts.walk_revisions())
    return next((str(revision) for revision in stated if revision), migration.newest_revision())
