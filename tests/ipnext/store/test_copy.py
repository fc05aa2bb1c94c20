"""From one database to another, of the same engine or the other."""

from collections.abc import Iterator

import pytest

from ipnext.errors import Conflict
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.store.copy import move
from ipnext.store.store import Store


@pytest.fixture
def filled(tmp_path, make) -> Iterator[Store]:
    """A SQLite store with a history."""
    store = Store.open(f"sqlite:///{tmp_path}/old.db")
    store.migrate()
    with store.begin() as repository:
        repository.put_model(make.manifest(), expected_version=None)
        sources = {"dense": make.source("d"), "sparse": make.source("s")}
        repository.publish("ctr", sources, change_id="c1")
        repository.add_event("ctr", "Published", "🙂", detail={"generation": 1})
        held = AssignedSnapshot(snapshot=1, digest="ab" * 32, uri="file:///store/snapshots/abc", generations=(1,))
        key = DeploymentKey(model="ctr", part="dense", region="north", hardware="cpu")
        repository.put_deployment(Deployment(key=key, replicas=1, engine="torch", units=1, qps=1, holds=(held,)))
    yield store
    store.close()


def test_everything_is_there_and_numbers_go_on(filled, store, make):
    assert move(filled, store) == 7
    with filled.read() as old, store.read() as new:
        for look in (
            lambda repository: repository.models(),
            lambda repository: repository.snapshots("ctr"),
            lambda repository: repository.generations("ctr"),
            lambda repository: repository.changes("ctr"),
            lambda repository: repository.events(),
            lambda repository: repository.deployments(),
        ):
            assert look(new) == look(old) != ()
    with store.begin() as repository:
        repository.publish("ctr", {"dense": make.source("d2")}, change_id="c2")
        assert repository.add_change("ctr", ChangeKind.ROLLBACK, change_id="c3", generation=1).sequence == 3
        repository.add_event("ctr", "Later", "")
        assert [change.id for change in repository.unsubmitted_changes()] == ["c1", "c2", "c3"]
        assert [event.kind for event in repository.events()] == ["Later", "Published"]


def test_names_of_snapshots_follow_the_artifacts(filled, store):
    move(filled, store, old_artifacts="file:///store", new_artifacts="s3://bucket/prefix")
    with store.read() as repository:
        assert all(s.uri == f"s3://bucket/prefix/snapshots/{s.digest}" for s in repository.snapshots("ctr"))
        assert repository.deployments()[0].holds[0].uri == "s3://bucket/prefix/snapshots/abc"


def test_a_database_that_holds_rows_is_not_overwritten(filled, applied):
    with pytest.raises(Conflict, match="models of the new database"):
        move(filled, applied)
