"""A database that was lent before is as a migrated one."""

from contextlib import closing

import psycopg
import pytest

from ipnext.store.store import Store
from tests.ipnext.store.lent_databases import LentDatabases

from .conftest import model_manifest


@pytest.fixture
def databases(lent_databases: LentDatabases) -> LentDatabases:
    return lent_databases


def connected(server, name: str):
    return closing(psycopg.connect(server.url(name).replace("+psycopg", ""), autocommit=True))


def test_rows_are_gone_and_identities_begin_at_one(databases, postgres_server):
    ordinals = []
    for _ in range(2):
        name = databases.lend()
        with closing(Store.open(postgres_server.url(name))) as store, store.begin() as repository:
            repository.put_model(model_manifest(), expected_version=None)
        with connected(postgres_server, name) as connection:
            assert connection.execute("SELECT count(*) FROM models").fetchone() == (1,)
            written = connection.execute(
                "INSERT INTO events (at, kind, message) VALUES (now(), 'x', 'y') RETURNING ordinal"
            )
            ordinals.append(written.fetchone())
        databases.take_back(name)

    assert ordinals[0] == ordinals[1]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE models ADD COLUMN more text",
        "DROP INDEX ix_models_owner",
        "CREATE TABLE another (id int)",
        "ANALYZE models",
        "DELETE FROM alembic_version",
        "ALTER TABLE models DISABLE TRIGGER ALL",
    ],
)
def test_a_database_that_was_changed_beyond_its_rows_is_not_lent_again(databases, postgres_server, change):
    name = databases.lend()
    with connected(postgres_server, name) as connection:
        connection.execute(change)
    databases.take_back(name)

    assert databases.lend() != name


def test_connections_of_a_test_that_ended_are_ended(databases, postgres_server):
    name = databases.lend()
    with connected(postgres_server, name) as connection:
        databases.take_back(name)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
