"""Migrations on both engines: they make exactly the tables of the code, whoever runs them."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Boolean, bindparam, inspect, text

from ipnext.errors import Conflict, Unavailable
from ipnext.model.status import ConditionType, Reason
from ipnext.model.value import canonical_json
from ipnext.store import engines, migrating
from ipnext.store.alembic_scripts import alembic_config
from ipnext.store.columns import UtcDateTime
from ipnext.store.placements import PreparedPlan
from ipnext.store.session import Store
from ipnext.store.tables import METADATA
from tests.waiting import PATIENCE_SECONDS

MIGRATES = "import sys; from ipnext.store.session import Store; store = Store.open(sys.argv[1]); store.migrate()"


def test_migrations_and_tables_agree(store):
    with store._engine.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, METADATA) == []


def test_every_table_is_named_by_the_code(store):
    assert set(inspect(store._engine).get_table_names()) == {*METADATA.tables, "alembic_version"}


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


OLD_PROBLEM = {
    "regions": ["north"],
    "rtt_ms": [[0.0]],
    "hardware": ["cpu"],
    "supply": [{"region": "north", "hardware": "cpu", "units": 9.0, "unit_cost": 1.5}],
    "owners": [],
    "models": [
        {
            "model": "ctr",
            "owner": "search",
            "priority": 2.0,
            "latency_tolerance_ms": 10.0,
            "survive": "none",
            "budget_per_hour": None,
            "demand": [{"region": "north", "qps": 250.0}],
            "parts": [
                {"part": "dense", "min_replicas": 1, "options": [{"hardware": "cpu", "units": 2.0, "qps": 100.0}]}
            ],
        }
    ],
    "current": {"replicas": [], "traffic": []},
    "objective": {"latency_weight": 0.0, "move_cost": 0.0, "unmet_cost": 10.0},
    "limits": {"max_moves": None, "time_seconds": 60.0, "gap": 0.01},
}
OLD_PLAN = {
    "status": "optimal",
    "objective": 59.0,
    "bound": 59.0,
    "gap": 0.0,
    "bound_covers": "all",
    "cost_per_hour": 6.0,
    "replicas": [{"model": "ctr", "part": "dense", "region": "north", "hardware": "cpu", "count": 2}],
    "traffic": [{"model": "ctr", "from": "north", "to": "north", "fraction": 0.8}],
    "unmet": [{"model": "ctr", "region": "north", "qps": 50.0, "rules": ["supply north/cpu"]}],
    "solver": {"method": "highs", "seconds": 0.0, "iterations": 1},
}
OLD_DIFF = {"replicas": [], "traffic": [], "moves": 2, "cost_per_hour_before": 0.0, "cost_per_hour_after": 6.0}
OLD_DEPLOYMENT = {
    "key": {"model": "ctr", "part": "dense", "region": "north", "hardware": "cpu"},
    "replicas": 2, "engine": "torch", "units": 2.0, "qps": 100.0,
}  # fmt: skip


@pytest.fixture
def old_store(empty_url, make):
    """A store as the first version of the tables held it: a model that runs, and two plans, one in force."""
    store = Store.open(empty_url)
    with store._engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
        at = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
        manifest = canonical_json(make.manifest())
        connection.execute(
            text(
                "INSERT INTO models (name, manifest, generation, observed_generation, version, retired, created_at,"
                " updated_at) VALUES ('ctr', :manifest, 1, 1, 1, :no, :at, :at)"
            ).bindparams(bindparam("at", type_=UtcDateTime()), bindparam("no", type_=Boolean())),
            {"manifest": manifest, "at": at, "no": False},
        )
        insert = text(
            "INSERT INTO plans (id, trigger, input_digest, problem, plan, diff, adopted, message, created_at)"
            " VALUES (:id, 'publish ctr', 'ab', :problem, :plan, :diff, :adopted, 'told', :at)"
        ).bindparams(bindparam("at", type_=UtcDateTime()), bindparam("adopted", type_=Boolean()))
        documents = {"problem": json.dumps(OLD_PROBLEM), "plan": json.dumps(OLD_PLAN), "diff": json.dumps(OLD_DIFF)}
        for name in ("p1", "p2"):
            connection.execute(insert, {"id": name, "adopted": name == "p1", "at": at, **documents})
        pointer = text("INSERT INTO plan_in_force (id, plan_id, adopted_at) VALUES (1, 'p1', :at)")
        connection.execute(pointer.bindparams(bindparam("at", type_=UtcDateTime())), {"at": at})
        row = "INSERT INTO deployments VALUES ('ctr', 'dense', 'north', 'cpu', :deployment)"
        connection.execute(text(row), {"deployment": json.dumps(OLD_DEPLOYMENT)})
    yield store
    store.close()


def test_plans_of_the_first_version_become_placements_and_nothing_is_lost(old_store):
    old_store.migrate()

    with old_store.begin() as repository:
        placed = repository.placement("ctr")
        assert placed.wishes.model_dump(mode="json") == OLD_PROBLEM["models"][0]
        assert (placed.plan_id, placed.replicas[0].count, placed.traffic[0].fraction) == ("p1", 2, 0.8)
        assert (placed.unmet[0].qps, placed.cost_per_hour) == (50.0, 6.0)
        assert repository.units_placed() == {("north", "cpu"): 4.0}
        assert repository.units_needed(but=()) == {("north", "cpu"): 4.0}
        lines = {entry.id: entry for entry in repository.plans()}
        assert (lines["p1"].outcome, lines["p2"].outcome, lines["p1"].moves) == ("adopted", "kept", 2)
        assert (lines["p1"].unmet_qps, lines["p1"].method, lines["p1"].message) == (50.0, "highs", "told")
        assert lines["p1"].created_at == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
        record = repository.plan("p1")
        assert record.plan.model_dump(mode="json", by_alias=True) == OLD_PLAN
        repository.adopt_plan(PreparedPlan.of(record.model_copy(update={"id": "p3"})), expected="p1")
        assert repository.plans()[0].id == "p3", "numbers go on"


def test_the_way_back_keeps_the_plans_that_can_be_read(old_store):
    old_store.migrate()
    with old_store._engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0001")
        found = connection.execute(text("SELECT id, plan, adopted FROM plans ORDER BY id")).all()
        assert [(name, json.loads(plan), bool(adopted)) for name, plan, adopted in found] == [
            ("p1", OLD_PLAN, True),
            ("p2", OLD_PLAN, False),
        ]
        assert connection.scalar(text("SELECT count(*) FROM deployments")) == 1
    old_store.migrate()


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
        shutil.copytree(migrating.SCRIPTS, scripts)
        head = migrating.newest_revision()
        (scripts / "versions" / "9001_next.py").write_text(NEXT.format(head=head, states=states))
        with monkeypatch.context() as patch, closing(Store.open(url)) as newer:
            patch.setattr(migrating, "SCRIPTS", scripts)
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
    found = migrating.schema_range(applied._engine)
    assert (found.version, found.own, found.compatible) == ("9001", head, True)
    assert found.min_reader <= head


def test_a_build_refuses_a_schema_whose_range_begins_beyond_it_and_touches_nothing(applied, url, next_build):
    head = next_build(url, states='min_reader = "9001"')

    expected = f"to schema 9001, which builds of schema 9001 or newer can use; this build knows {head}"
    with pytest.raises(Conflict, match=expected):
        applied.migrate()

    assert not migrating.schema_range(applied._engine).compatible
    with applied._engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9001"


def test_a_newer_schema_that_states_no_range_is_refused(store):
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Conflict, match=r"later version of IPnext to schema 9999"):
        store.migrate()


def test_the_range_is_the_newest_one_that_a_migration_states(store):
    found = migrating.schema_range(store._engine)
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
    with engines.reading(store._engine).connect() as connection:
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


def test_models_that_there_are_count_for_their_owners_and_ready_becomes_its_halves(applied):
    with applied.begin("ctr") as repository:
        repository.update_model("ctr", serving_generation=1)
        repository.set_condition("ctr", ConditionType.UP_TO_DATE, "False", Reason.GATE_FAILED, "too slow")
        repository.set_condition("ctr", ConditionType.SERVING, "True", Reason.SERVING)
    with applied._engine.begin() as connection:
        command.downgrade(alembic_config(connection), "0019-1")
        assert list(connection.execute(text("SELECT type, reason FROM conditions"))) == [("Ready", "GateFailed")]
    applied.migrate()
    with applied.read() as repository:
        found = {c.type: (c.status, c.reason) for c in repository.conditions("ctr")}
        assert found == {
            ConditionType.SERVING: ("True", Reason.SERVING),
            ConditionType.UP_TO_DATE: ("False", Reason.GATE_FAILED),
            ConditionType.READY: ("False", Reason.GATE_FAILED),
        }
        assert repository.claimed("default", but="") == {"models": 1, "requestsPerSecond": 10, "units.cpu": 2}
