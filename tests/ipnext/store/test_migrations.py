"""Migrations on both engines: they make exactly the tables of the code, whoever runs them."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from ipnext.errors import Conflict
from ipnext.store import engines
from ipnext.store.migrating import alembic_config
from ipnext.store.session import Store
from ipnext.store.tables import METADATA

MIGRATES = "import sys; from ipnext.store.session import Store; store = Store.open(sys.argv[1]); store.migrate()"


def test_migrations_and_tables_agree(store):
    with store._engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_every_table_is_named_by_the_code(store):
    assert set(inspect(store._engine).get_table_names()) == {*METADATA.tables, "alembic_version"}


def test_many_threads_and_processes_may_migrate_at_once(empty_url, make):
    processes = [subprocess.Popen([sys.executable, "-c", MIGRATES, empty_url]) for _ in range(2)]
    stores = [Store.open(empty_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Store.migrate, stores))
    assert [process.wait(60) for process in processes] == [0, 0]
    with stores[0].begin() as repository:
        repository.put_model(make.manifest(), expected_version=None)
    for store in stores:
        store.close()


def test_migrating_again_keeps_everything(applied):
    applied.migrate()
    with applied.begin() as repository:
        assert repository.model("ctr").name == "ctr"


def test_the_way_back_leaves_nothing(empty_url):
    store = Store.open(empty_url)
    store.migrate()
    with store._engine.begin() as connection:
        command.downgrade(alembic_config(connection), "base")
    assert inspect(store._engine).get_table_names() == ["alembic_version"]
    store.migrate()
    store.close()


def test_a_database_of_a_later_version_is_not_touched(store):
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match=r"later version of IPnext.*9999"):
        store.migrate()


def test_sqlite_keeps_a_write_ahead_log_and_every_commit(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/new/folder/ipnext.db")
    store.migrate()
    with engines.reading(store._engine).connect() as connection:
        pragmas = {
            name: connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    store.close()
