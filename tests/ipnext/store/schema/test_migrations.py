"""Migrations on both engines: they make exactly the tables of the code, whoever runs them."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from ipnext.errors import Conflict, Unavailable
from ipnext.store.database import dialects
from ipnext.store.schema import migration
from ipnext.store.schema.alembic_scripts import alembic_config
from ipnext.store.store import Store
from ipnext.store.tables.row import METADATA
from tests.waiting import PATIENCE_SECONDS

NAMES_TABLES = "from ipnext.store.tables.row import METADATA; print(*METADATA.tables)"
MIGRATES = "import sys; from ipnext.store.store import Store; store = Store.open(sys.argv[1]); store.migrate()"


def test_migrations_and_tables_agree(store):
    with store._engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_every_table_is_named_by_the_code(store):
    assert set(inspect(store._engine).get_table_names()) == {*METADATA.tables, "alembic_version"}


@pytest.mark.usefixtures("subprocesses")
def test_the_metadata_has_every_table_whatever_was_imported():
    named = subprocess.run([sys.executable, "-c", NAMES_TABLES], check=True, capture_output=True, text=True).stdout
    assert set(named.split()) == set(METADATA.tables)


@pytest.mark.usefixtures("subprocesses")
def test_many_threads_and_processes_may_migrate_at_once(empty_url, make):
    processes = [subprocess.Popen([sys.executable, "-c", MIGRATES, empty_url]) for _ in range(2)]
    stores = [Store.open(empty_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Store.migrate, stores))
    assert [process.wait(PATIENCE_SECONDS) for process in processes] == [0, 0]
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


NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9001", "{head}", None, None
{states}

def upgrade():
    op.add_column("models", sa.Column("added_later", sa.String(), nullable=True))

def downgrade():
    op.drop_column("models", "added_later")
"""


@pytest.fixture
def next_build(tmp_path, monkeypatch):
    """Migrate by a build whose scripts have one more revision; `states` is what that revision says of readers."""

    def migrate(url, states=""):
        scripts = tmp_path / "migrations"
        shutil.copytree(migration.SCRIPTS, scripts)
        head = migration.newest_revision()
        (scripts / "versions" / "9001_next.py").write_text(NEXT.format(head=head, states=states))
        with monkeypatch.context() as patch, closing(Store.open(url)) as newer:
            patch.setattr(migration, "SCRIPTS", scripts)
            newer.migrate()
        return head

    return migrate


def test_a_build_starts_and_works_on_a_schema_that_a_newer_build_has_extended(applied, url, next_build, make):
    head = next_build(url)

    applied.migrate()

    with applied.begin() as repository:
        repository.put_model(make.manifest("another"), expected_version=None)
        repository.publish("ctr", {"dense": make.source("a"), "sparse": make.source("b")}, change_id="c1")
    with applied.read() as repository:
        assert repository.model("another").name == "another"
    found = migration.schema_range(applied._engine)
    assert (found.version, found.own, found.compatible) == ("9001", head, True)
    assert found.min_reader <= head


def test_a_build_refuses_a_schema_whose_range_begins_beyond_it_and_touches_nothing(applied, url, next_build):
    head = next_build(url, states='min_reader = "9001"')

    expected = f"to schema 9001, which builds of schema 9001 or newer can use; this build knows {head}"
    with pytest.raises(Conflict, match=expected):
        applied.migrate()

    assert not migration.schema_range(applied._engine).compatible
    with applied._engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9001"


def test_a_newer_schema_that_states_no_range_is_refused(store):
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match=r"later version of IPnext to schema 9999"):
        store.migrate()


def test_the_range_is_the_newest_one_that_a_migration_states(store):
    found = migration.schema_range(store._engine)
    assert found.version == found.own
    stated = [
        script.module.min_reader
        for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()
        if hasattr(script.module, "min_reader")
    ]
    assert found.min_reader == stated[0]


def test_sqlite_keeps_a_write_ahead_log_and_every_commit(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/new/folder/ipnext.db")
    store.migrate()
    with dialects.reading(store._engine).connect() as connection:
        pragmas = {
            name: connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    store.close()


@pytest.mark.parametrize("place", ["absent.db", "absent/folder/ipnext.db"])
def test_only_migrating_creates_a_database(tmp_path, place):
    with closing(Store.open(f"sqlite:///{tmp_path}/{place}")) as store:
        assert store.schema_range() is None
        for use in (store.begin, store.read):
            with (
                pytest.raises(Unavailable, match=f"{place} does not exist; `ipnext platform setup` creates it"),
                use() as unit,
            ):
                unit.models()
        with pytest.raises(Unavailable):
            store.revision()
        assert list(tmp_path.iterdir()) == []

        store.migrate()

        with store.read() as repository:
            assert repository.models() == ()


def test_looking_for_the_schema_leaves_the_directory_as_it_was_and_waits_for_no_writer(tmp_path, migrated_file):
    shutil.copy(migrated_file, tmp_path / "ipnext.db")
    before = (tmp_path / "ipnext.db").read_bytes()
    with closing(Store.open(f"sqlite:///{tmp_path}/ipnext.db")) as store, store.begin():
        assert store.schema_range() is not None
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("ipnext.db", before)]


def test_a_name_with_signs_of_a_uri_is_a_name(tmp_path):
    with closing(Store.open(f"sqlite:///{tmp_path}/a b%3Fc%23d.db")) as store:
        store.migrate()
        assert store.schema_range() is not None


def test_a_database_that_can_not_be_created_says_which(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        closing(Store.open(f"sqlite:///{tmp_path}/file/ipnext.db")) as store,
        pytest.raises(Unavailable, match=r"file/ipnext.db can't be created \(File exists\)"),
    ):
        store.migrate()


def test_a_file_that_is_no_database_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("no database " * 100)
    with (
        closing(Store.open(f"sqlite:///{tmp_path}/notes.txt")) as store,
        pytest.raises(Unavailable, match=r"notes.txt cannot be used \(file is not a database\)"),
    ):
        store.schema_range()
