"""From an MLflow registry to versions to publish: the platform's poll, with its store and promotion rules."""

import shutil
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from activities.metadata.source_poll import SourcePollActivities
from ipnext.model.lifecycle.sources import WatchInput
from ipnext.model.manifest.sources import SourceSpec
from ipnext.settings import PlatformSettings
from ipnext.sources.mlflow.kind import MlflowKind
from ipnext.store.sources.sources import WatchedSource
from ipnext.store.store import Store
from tests.ipnext.store.conftest import model_manifest
from tests.mlflow_servers import MemoryMlflow

ROUND = 4


@pytest.fixture
def store(migrated, tmp_path) -> Iterator[Store]:
    """A store that knows the model `ctr`."""
    shutil.copy(migrated, tmp_path / "ipnext.db")
    opened = Store.open(f"sqlite:///{tmp_path}/ipnext.db")
    with opened.begin() as unit:
        unit.put_model(model_manifest(), expected_version=None)
    yield opened
    opened.close()


class Platform:
    """The poll of one server, for the sources of `ctr`."""

    def __init__(self, store, server):
        self.store, self.server = store, server
        kind = MlflowKind(server.transport)
        settings = PlatformSettings(source_urls=(server.uri,), _env_file=None)
        self.activities = SourcePollActivities(store, SimpleNamespace(get=lambda _: kind), settings)

    def watch(self, **sources):
        with self.store.begin("ctr") as unit:
            unit.put_sources("ctr", [self._source(name, **given) for name, given in sources.items()])

    def _source(self, name, *, promote=None, **stream):
        given = {"name": name, "part": "dense", "mlflow": {"uri": self.server.uri, **stream}, "promote": promote or {}}
        spec = SourceSpec.model_validate(given)
        return WatchedSource(spec=spec, part="dense", upstream=self.server.uri, reach=1)

    def poll(self, times=ROUND):
        for _ in range(times):
            self.activities.poll_sources(WatchInput(kind="mlflow", upstream=self.server.uri))

    def states(self, name):
        with self.store.read() as unit:
            found = unit.version_page("ctr", name).items
        return [(version.version.place.partition("@")[0], version.state.value) for version in reversed(found)]


@pytest.fixture
def platform(store):
    server = MemoryMlflow()
    server.create_model("ranker")
    return Platform(store, server)


def test_a_held_version_is_published_once_its_tag_and_its_metric_are_set(platform):
    server = platform.server
    run = server.create_run(server.create_experiment("nightly"), auc=0.5)
    server.create_version("ranker", run=run)
    promote = {"tags": {"validated": "yes"}, "metrics": [{"name": "auc", "atLeast": 0.9}]}
    platform.watch(nightly={"model": "ranker", "promote": promote})
    platform.poll()
    assert platform.states("nightly") == [("1", "held")]
    server.set_tag("ranker", "1", "validated", "yes")
    platform.poll()
    assert platform.states("nightly") == [("1", "held")]
    server.log_metric(run, "auc", 0.95)
    platform.poll()
    assert platform.states("nightly") == [("1", "found")]


def test_an_alias_that_moves_back_is_published_again(platform):
    server = platform.server
    platform.watch(production={"model": "ranker", "alias": "production"})
    for number in (server.create_version("ranker"), server.create_version("ranker"), "1"):
        server.set_alias("ranker", "production", number)
        platform.poll()
    assert platform.states("production") == [("1", "found"), ("2", "found"), ("1", "found")]


def test_a_listing_that_was_not_recorded_is_listed_again_and_none_is_doubled(platform, monkeypatch):
    server = platform.server
    platform.watch(production={"model": "ranker", "alias": "production"}, every={"model": "ranker"})
    server.set_alias("ranker", "production", server.create_version("ranker"))

    def crash(record, listing):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(platform.activities, "_note_listing", crash)
        with pytest.raises(SystemExit):
            platform.poll()
    platform.poll(3 * ROUND)
    assert platform.states("production") == platform.states("every") == [("1", "found")]


def test_a_poll_without_news_is_one_request_for_all_sources(platform):
    server = platform.server
    run = server.create_run(server.create_experiment("nightly"), auc=0.5)
    server.set_alias("ranker", "production", server.create_version("ranker", run=run))
    platform.watch(production={"model": "ranker", "alias": "production"}, every={"model": "ranker"})
    platform.poll(3 * ROUND)
    server.take_requests()
    platform.poll(10)
    assert len(server.take_requests()) == 10
