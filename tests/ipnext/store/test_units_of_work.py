"""Units of work on both engines: all or nothing, one after another, and what a caller learns of a fault."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import event, exc, text

from ipnext.errors import Conflict, InvalidInput, NotFound, StaleWrite, Unavailable
from ipnext.store.database import dialects
from ipnext.store.database.errors import translate_errors
from ipnext.store.store import Store
from tests.waiting import PATIENCE_SECONDS, until

BEGINS_AND_HANGS = """
import sys, time
from ipnext.store.store import Store
store = Store.open(sys.argv[1])
with store.begin() as repository:
    repository.update_model("ctr", serving_generation=7)
    print("open", flush=True)
    time.sleep(600)
"""


def test_an_exception_takes_back_everything(applied, make):
    with pytest.raises(NotFound), applied.begin() as repository:  # noqa: PT012 - the whole unit fails
        repository.put_model(make.manifest("other"), expected_version=None)
        repository.update_model("ctr", serving_generation=1)
        repository.model("unknown")
    with applied.begin() as repository:
        assert [record.name for record in repository.models()] == ["ctr"]
        assert repository.model("ctr").serving_generation is None


@pytest.mark.usefixtures("subprocesses")
def test_a_writer_that_is_killed_leaves_nothing_and_blocks_nobody(applied, url):
    process = subprocess.Popen([sys.executable, "-c", BEGINS_AND_HANGS, url], stdout=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"open\n"
        process.kill()
    with applied.begin() as repository:
        assert repository.model("ctr").serving_generation is None
        repository.update_model("ctr", serving_generation=1)


def test_a_reader_sees_one_picture_and_waits_for_no_writer(applied):
    with applied.read() as before, applied.begin() as repository:
        assert before.model("ctr").serving_generation is None
        repository.update_model("ctr", serving_generation=1)
        with applied.read() as during:
            assert during.model("ctr").serving_generation is None
    with applied.read() as after:
        assert after.model("ctr").serving_generation == 1


def test_a_reader_keeps_its_picture_while_others_commit(applied):
    with applied.read() as reader:
        assert reader.changes("ctr") == ()
        with applied.begin() as repository:
            repository.put_model(repository.model("ctr").manifest.model_copy(), expected_version=1)
            repository.add_event("ctr", "Applied", "")
        assert reader.events() == ()


def test_a_unit_writes_only_what_it_has_a_turn_for(applied, make):
    with applied.read() as reader, pytest.raises(RuntimeError, match=r"Store\.begin"):
        reader.update_model("ctr", retired=True)
    with applied.begin("other") as repository:
        with pytest.raises(RuntimeError, match="writes model 'other' only, not model 'ctr'"):
            repository.update_model("ctr", retired=True)
        with pytest.raises(RuntimeError, match="what all models share"):
            repository.pause_moves("by hand")
        assert repository.model("ctr").name == "ctr"
        repository.put_model(make.manifest("other"), expected_version=0)
        repository.add_event(None, "Replanned", "")


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"], indirect=False)
def test_on_postgresql_units_of_different_models_do_not_wait_for_each_other(applied, make, monkeypatch):
    with applied.begin("ctr") as first:
        with applied.begin("other") as second:
            second.put_model(make.manifest("other"), expected_version=0)
        first.update_model("ctr", serving_generation=1)
        with applied.read() as reader:
            assert len(reader.models()) == 2


@contextmanager
def impatient(url, monkeypatch):
    """A second store on the same database that waits for a lock only a moment."""
    monkeypatch.setattr(dialects, "LOCK_SECONDS", 0.2)
    store = Store.open(url)
    yield store
    store.close()


@pytest.mark.parametrize("scope", [None, "ctr"])
def test_a_unit_that_waits_too_long_for_another_is_unavailable(applied, url, monkeypatch, scope):
    with impatient(url, monkeypatch) as other, applied.begin(scope):
        with applied.read() as reader:
            reader.models()
        with pytest.raises(Unavailable, match="try again"), other.begin() as repository:
            repository.models()
    with applied.begin() as repository:
        repository.models()


def test_a_unit_inside_a_unit_ends_with_an_error_and_not_in_a_deadlock(url, monkeypatch):
    with impatient(url, monkeypatch) as store, store.begin() as outer:
        outer.models()
        with pytest.raises(Unavailable, match="try again"), store.begin() as inner:
            inner.models()


def run_all(count: int, work) -> list[object]:
    """Run `work(number)` in so many threads that begin together; give results and errors."""
    together = threading.Barrier(count)

    def one(number: int) -> object:
        together.wait(PATIENCE_SECONDS)
        try:
            return work(number)
        except Exception as error:  # noqa: BLE001 - what happened is what the test looks at
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_many_threads_publish_and_none_is_lost(applied, publish):
    results = run_all(16, lambda number: publish(f"c{number}", dense=f"d{number}", sparse="s"))
    assert sorted(change.generation for change in results) == list(range(1, 17))
    assert sorted(change.sequence for change in results) == list(range(1, 17))
    with applied.read() as repository:
        assert [s.number for s in repository.snapshots("ctr") if s.part == "dense"] == list(range(16, 0, -1))
        assert [s.number for s in repository.snapshots("ctr") if s.part == "sparse"] == [1]
        assert len(repository.unsubmitted_changes()) == 16


PUBLISHES = """
import sys
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, SnapshotSource
from ipnext.store.store import Store

url, worker, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
store = Store.open(url)
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    producer = {"worker": worker, "number": str(number)}
    manifest = SnapshotManifest(engine="torch", signature=Signature(inputs=(), outputs=()), files=(), producer=producer)
    source = SnapshotSource(manifest=manifest, uri="file:///x")
    with store.begin("ctr") as repository:
        change = repository.publish("ctr", {"dense": source, "sparse": source}, change_id=f"{worker}-{number}")
    print(change.generation, flush=True)
store.close()
"""


@pytest.mark.usefixtures("subprocesses")
def test_several_processes_and_threads_publish_and_none_is_lost(applied, url, publish):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHES, url, f"w{number}", "8"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        worker.stdin.write("go\n")
        worker.stdin.flush()
    ours = run_all(4, lambda thread: [publish(f"t{thread}-{n}", dense=f"{thread}-{n}", sparse="s") for n in range(4)])
    acknowledged = [change.generation for changes in ours for change in changes]
    acknowledged += [
        int(line) for worker in workers for line in worker.communicate(timeout=PATIENCE_SECONDS)[0].split()
    ]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(acknowledged) == list(range(1, 33))
    with applied.read() as repository:
        assert [generation.number for generation in repository.generations("ctr")] == list(range(32, 0, -1))
        assert sorted(change.sequence for change in repository.changes("ctr")) == list(range(1, 33))


def test_of_many_that_publish_under_one_id_all_get_the_same_change(applied, publish):
    results = run_all(8, lambda _: publish("c1", dense="d", sparse="s"))
    assert len(set(map(str, results))) == 1
    with applied.read() as repository:
        assert len(repository.generations("ctr")) == 1


def test_of_many_writes_that_expect_one_version_one_wins(applied, make):
    def write(number: int) -> int:
        with applied.begin("ctr") as repository:
            return repository.put_model(make.manifest(qps=100 + number), expected_version=1).version

    results = run_all(8, write)
    assert [result for result in results if not isinstance(result, StaleWrite)] == [2]


def test_of_many_that_create_one_model_all_agree(store, make):
    def write(_: int) -> int:
        with store.begin("new") as repository:
            return repository.put_model(make.manifest("new"), expected_version=None).version

    assert run_all(8, write) == [1] * 8


def test_a_database_without_tables_says_what_to_do(empty_url):
    store = Store.open(empty_url)
    with pytest.raises(Unavailable, match="run the migrations first"), store.begin() as repository:
        repository.models()
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://u:secret@h/d",
        "oracle://",
        "postgresql://u:secret@h:x/d",
    ],
)
def test_another_database_is_refused_and_no_password_is_shown(url):
    with pytest.raises(InvalidInput, match="sqlite:///FILE") as caught:
        Store.open(url)
    assert "secret" not in caught.value.message


def test_a_server_that_is_down_is_unavailable_and_no_password_is_shown(tmp_path):
    store = Store.open(f"postgresql://user:secret@/db?host={tmp_path}")
    with pytest.raises(Unavailable, match="try again") as caught, store.begin() as repository:
        repository.models()
    assert "secret" not in caught.value.message
    store.close()


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_a_connection_that_the_server_ends_is_unavailable_and_the_next_unit_works(applied):
    with pytest.raises(Unavailable, match="try again"), applied.begin() as repository:  # noqa: PT012 - somewhere in it
        pid = repository._session.connection().scalar(text("SELECT pg_backend_pid()"))
        with applied.read() as other:
            other._session.connection().execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})

        def never() -> bool:
            repository.update_model("ctr", serving_generation=time.time_ns() % 1000)
            return False

        until(never)
    with applied.begin() as repository:
        assert repository.model("ctr").serving_generation is None


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_a_writer_that_has_stopped_loses_its_turn(applied, url, monkeypatch):
    monkeypatch.setattr(dialects, "IDLE_SECONDS", 0.3)
    stopped = Store.open(url)
    with pytest.raises(Unavailable), stopped.begin() as asleep:  # noqa: PT012 - at its next statement
        asleep.update_model("ctr", serving_generation=7)
        with applied.begin() as repository:
            assert repository.model("ctr").serving_generation is None
        asleep.update_model("ctr", serving_generation=8)
    stopped.close()


def test_a_full_disk_is_unavailable_and_takes_back_the_unit(tmp_path, make):
    store = Store.open(f"sqlite:///{tmp_path}/small.db")
    store.migrate()
    store.close()
    event.listen(store._engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count = 80"))
    with pytest.raises(Unavailable, match="full"), store.begin() as repository:  # noqa: PT012 - somewhere in it
        for number in range(1000):
            repository.put_model(make.manifest(f"m{number}"), expected_version=None)
    with store.begin() as repository:
        assert repository.models() == ()
        repository.put_model(make.manifest(), expected_version=None)
    store.close()


def test_a_constraint_that_another_writer_met_first_is_a_conflict():
    fault = exc.IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed: snapshots.number"))
    with pytest.raises(Conflict, match="another writer was first"), translate_errors("db"):
        raise fault


def test_a_key_that_points_nowhere_is_refused_by_both_engines(applied):
    with pytest.raises(Conflict), applied.begin() as repository:
        repository._session.connection().execute(
            text("INSERT INTO reports (model, generation, report) VALUES ('ctr', 99, '{}')")
        )
