"""Kind `mlflow` on a real server and on one in memory: versions, aliases, tags, metrics, artifacts, its requests."""

import itertools
import subprocess
from datetime import UTC, datetime

import pytest

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest
from ipnext.errors import InvalidInput, NotFound, PathNotAllowed, Unavailable
from ipnext.model.manifest.sources import MetricThreshold, MlflowStream, PromotionRule
from ipnext.model.registry.sources import FoundVersion, Reach
from ipnext.sources.access import ReadAccess
from ipnext.sources.mlflow import kind as module
from ipnext.sources.mlflow.kind import MlflowKind, Position
from ipnext.sources.port import StreamRequest
from tests.ipnext.conftest import write_snapshot
from tests.mlflow_servers import USER, MemoryMlflow, running_mlflow
from tests.waiting import PATIENCE_SECONDS

ROUND = 4
"""Polls after which everything was looked at."""
MODELS = itertools.count(1)


@pytest.fixture(scope="module")
def real(tmp_path_factory, subprocesses):
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("real", marks=pytest.mark.integration)])
def server(request):
    found = MemoryMlflow() if request.param == "memory" else request.getfixturevalue("real")
    found.take_requests()
    return found


@pytest.fixture
def model(server):
    """A model of this test's own."""
    name = f"ranker-{next(MODELS)}"
    server.create_model(name)
    return name


@pytest.fixture
def run(server):
    return server.create_run(server.create_experiment(f"nightly-{next(MODELS)}"), auc=0.5)


class Watch:
    """Polls streams of one server as the platform does: each listing's cursor is that of the next poll."""

    def __init__(self, server, *streams, kind=None):
        self.kind = kind or MlflowKind(server.transport)
        self.streams = [MlflowStream(uri=server.uri, **stream) for stream in streams]
        self.access = ReadAccess(urls=(server.uri,))
        self.cursors = [""] * len(streams)

    def connect(self):
        return self.kind.connect([StreamRequest(stream, self.access) for stream in self.streams])

    def poll(self):
        """One poll: the versions of each stream."""
        listings = [source.list_since(cursor) for source, cursor in zip(self.connect(), self.cursors, strict=True)]
        self.cursors = [listing.cursor for listing in listings]
        return [listing.versions for listing in listings]

    def round(self):
        """As many polls as look at everything: the versions of the first stream, each as it was listed last."""
        found = {}
        for _ in range(ROUND):
            found |= {version.key: version for version in self.poll()[0]}
        return found

    def settle(self):
        """Poll until nothing is new."""
        for _ in range(20):
            if not self.round():
                return
        pytest.fail("each round lists something")


def places(versions):
    return [version.place.partition("@")[0] for version in versions]


def test_every_version_is_listed_in_the_order_of_creation(server, model):
    for _ in range(3):
        server.create_version(model)
    watch = Watch(server, {"model": model})
    (first,) = watch.poll()
    server.create_version(model)
    assert places(first) == ["1", "2", "3"]
    assert places(watch.round().values())[-1] == "4"


def test_a_version_brings_its_tags_and_the_metrics_and_lineage_of_its_run(server, model):
    experiment = f"nightly-{next(MODELS)}"
    run = server.create_run(server.create_experiment(experiment), auc=0.75)
    server.create_version(model, run=run, source=f"runs:/{run}/snapshot", stage="gold")
    ((version,),) = Watch(server, {"model": model}).poll()
    assert version.tags == {"stage": "gold"}
    assert version.metrics == {"auc": 0.75}
    assert version.trained_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert version.lineage == {
        "commit": "c0ffee",
        "experiment": experiment,
        "model": model,
        "run": run,
        "run_name": "nightly",
        "source": f"runs:/{run}/snapshot",
        "version": "1",
    }


def test_the_user_of_a_run_is_listed_only_as_a_tag_of_the_version(server, model, run):
    server.create_version(model, run=run)
    watch = Watch(server, {"model": model})
    assert USER not in str(watch.poll())
    server.create_version(model, run=run, owner=USER)
    assert USER in str(watch.round())


def test_a_version_without_a_run_was_trained_when_it_was_created(server, model):
    before = datetime.now(UTC).timestamp() if not isinstance(server, MemoryMlflow) else 0.0
    server.create_version(model)
    ((version,),) = Watch(server, {"model": model}).poll()
    assert version.trained_at.timestamp() >= before - 1
    assert version.metrics == {}


def test_metrics_that_are_no_numbers_are_left_out(server, model, run):
    server.log_metric(run, "loss", "NaN")
    server.log_metric(run, "gain", "Infinity")
    server.create_version(model, run=run)
    ((version,),) = Watch(server, {"model": model}).poll()
    assert version.metrics == {"auc": 0.5}


def test_each_move_of_an_alias_is_a_version_of_its_own(server, model):
    first, second = server.create_version(model), server.create_version(model)
    watch = Watch(server, {"model": model, "alias": "production"})
    assert watch.poll() == [()]
    listed = {}
    for number in (first, second, first):
        server.set_alias(model, "production", number)
        listed |= watch.round()
    assert places(listed.values()) == ["1", "2", "1"]
    assert [key.partition(":")[0] for key in listed] == ["1", "2", "3"]


def test_the_same_cursor_gives_the_same_key(server, model):
    server.set_alias(model, "production", server.create_version(model))
    watch = Watch(server, {"model": model, "alias": "production"})
    (source,), (again,) = watch.connect(), Watch(server, {"model": model, "alias": "production"}).connect()
    assert source.list_since("") == again.list_since("")


@pytest.mark.parametrize("alias", [None, "production"])
def test_a_tag_that_is_set_later_is_seen_by_a_promotion_rule(server, model, alias, run):
    rule = PromotionRule(tags={"validated": "yes"})
    number = server.create_version(model, run=run)
    server.create_version(model)
    server.set_alias(model, "production", number)
    watch = Watch(server, {"model": model, "alias": alias})
    (found, *_) = watch.round().values()
    watch.settle()
    assert rule.describe_failure(found) == "tag 'validated' is not set; 'yes' is asked for"
    server.set_tag(model, number, "validated", "yes")
    later = watch.round()[found.key]
    assert (rule.describe_failure(later), later.metrics) == ("", {"auc": 0.5})


@pytest.mark.parametrize("alias", [None, "production"])
def test_a_metric_that_is_logged_later_is_seen_by_a_promotion_rule(server, model, alias, run):
    rule = PromotionRule(metrics=(MetricThreshold(name="auc", at_least=0.9),))
    number = server.create_version(model, run=run, stage="gold")
    server.set_alias(model, "production", number)
    watch = Watch(server, {"model": model, "alias": alias})
    (found,) = watch.round().values()
    watch.settle()
    assert rule.describe_failure(found) == "metric auc is 0.5; at least 0.9 is asked for"
    server.log_metric(run, "auc", 0.95)
    later = watch.round()[found.key]
    assert (rule.describe_failure(later), later.tags) == ("", {"stage": "gold"})


def test_another_process_sees_what_changed_since_the_cursor(server, model, run):
    number = server.create_version(model, run=run)
    watch = Watch(server, {"model": model})
    watch.settle()
    server.set_tag(model, number, "validated", "yes")
    server.log_metric(run, "auc", 0.95)
    watch.kind = MlflowKind(server.transport)
    (found,) = (*watch.round().values(), *watch.round().values())[-1:]
    assert (found.tags, found.metrics) == ({"validated": "yes"}, {"auc": 0.95})


def test_a_poll_without_news_costs_one_request_for_all_models(server, run):
    names = [f"many-{next(MODELS)}" for _ in range(20)]
    for name in names:
        server.create_model(name)
        server.set_alias(name, "production", server.create_version(name, run=run))
    watch = Watch(server, *({"model": name, "alias": alias} for name in names for alias in (None, "production")))
    watch.settle()
    watch.settle()
    counts = []
    for _ in range(2 * ROUND):
        server.take_requests()
        assert not any(watch.poll())
        counts.append(len(server.take_requests()))
    assert counts == [1] * (2 * ROUND)


def test_only_the_runs_of_new_versions_are_read(server, model):
    experiment = server.create_experiment(f"nightly-{next(MODELS)}")
    server.create_version(model, run=server.create_run(experiment))
    watch = Watch(server, {"model": model})
    watch.settle()
    watch.kind._memories[server.uri].turn = 0
    server.create_version(model, run=server.create_run(experiment))
    server.take_requests()
    assert places(watch.poll()[0]) == ["2"]
    assert [request.rpartition("mlflow/")[2] for request in server.take_requests()] == [
        "registered-models/search",
        "model-versions/search",
        "runs/get",
    ]


def test_versions_of_a_model_that_was_created_anew_are_listed(server, model):
    server.create_version(model)
    server.create_version(model)
    watch = Watch(server, {"model": model})
    old = watch.round()
    server.delete_model(model)
    server.create_model(model)
    server.create_version(model)
    assert places(version for key, version in watch.round().items() if key not in old) == ["1"]


def test_a_model_that_is_not_registered_is_named_at_every_poll(server):
    watch = Watch(server, {"model": "absent"})
    for _ in range(ROUND):
        with pytest.raises(NotFound, match="has no registered model 'absent'"):
            watch.poll()


def test_a_model_that_was_deleted_is_named_at_every_poll(server, model):
    watch = Watch(server, {"model": model})
    watch.settle()
    server.delete_model(model)
    watch.kind = MlflowKind(server.transport)
    for _ in range(ROUND):
        with pytest.raises(NotFound, match=f"has no registered model '{model}'"):
            watch.poll()


def test_the_artifacts_of_a_version_are_ingested_bit_for_bit(server, model, run, tmp_path):
    content = bytes(range(256)) * 20_000
    manifest = write_snapshot(tmp_path / "snapshot", content, b"second", b"")
    root = artifact_root(server, run)
    server.upload(f"{root}/snapshot", tmp_path / "snapshot")
    server.create_version(model, run=run, source=f"runs:/{run}/snapshot")
    watch = Watch(server, {"model": model})
    ((version,),) = watch.poll()
    (source,) = watch.connect()
    store = FileArtifactStore(tmp_path / "store")
    assert ingest(store, source.open(version)).manifest == manifest
    with source.open(version).open("file-0.txt") as stream:
        assert stream.read() == content


@pytest.mark.parametrize("form", ["mlflow-artifacts:/{root}", "runs:/{run}"])
def test_the_one_subdirectory_with_a_snapshot_is_read(server, model, run, tmp_path, form):
    write_snapshot(tmp_path / "artifacts" / "snapshot", b"content")
    (tmp_path / "artifacts" / "plots").mkdir()
    (tmp_path / "artifacts" / "plots" / "roc.txt").write_text("plot")
    root = artifact_root(server, run)
    server.upload(root, tmp_path / "artifacts")
    server.create_version(model, run=run, source=form.format(root=root, run=run))
    watch = Watch(server, {"model": model})
    ((version,),) = watch.poll()
    opened = watch.connect()[0].open(version)
    assert opened.uri.endswith(f"{root}/snapshot")
    assert opened.size_bytes("file-0.txt") == len(b"content")


def test_artifacts_of_several_snapshots_are_refused(server, model, run, tmp_path):
    for name in ("a", "b"):
        write_snapshot(tmp_path / "artifacts" / name, b"content")
    root = artifact_root(server, run)
    server.upload(root, tmp_path / "artifacts")
    server.create_version(model, run=run, source=f"runs:/{run}")
    watch = Watch(server, {"model": model})
    ((version,),) = watch.poll()
    with pytest.raises(InvalidInput, match="2 directories with a snapshot"):
        watch.connect()[0].open(version)


def artifact_root(server, run):
    uri = server.read("runs/get", run_id=run)["run"]["info"]["artifact_uri"]
    return uri.removeprefix("mlflow-artifacts:/")


def test_a_directory_is_read_only_below_the_owners_roots(tmp_path):
    server, model = MemoryMlflow(), "ranker"
    server.create_model(model)
    write_snapshot(tmp_path / "snapshot", b"content")
    server.create_version(model, source=(tmp_path / "snapshot").as_uri())
    watch = Watch(server, {"model": model})
    ((version,),) = watch.poll()
    with pytest.raises(PathNotAllowed, match="outside the directories that may be read"):
        watch.connect()[0].open(version)
    watch.access = ReadAccess(urls=(server.uri,), roots=(tmp_path,))
    assert watch.connect()[0].open(version).size_bytes("file-0.txt") == len(b"content")


def test_a_bucket_is_read_only_if_the_owner_may(server, model):
    server.create_version(model, source="s3://theirs/snapshot")
    watch = Watch(server, {"model": model})
    ((version,),) = watch.poll()
    with pytest.raises(PathNotAllowed, match="s3://theirs/snapshot' may not be read"):
        watch.connect()[0].open(version)
    watch.access = ReadAccess(urls=(server.uri,), reach=Reach.ANY)
    assert watch.connect()[0].open(version).uri == "s3://theirs/snapshot"


def test_a_server_that_is_not_allowed_gets_no_request(server, model):
    stream = MlflowStream(uri=server.uri, model=model)
    kind = MlflowKind(server.transport)
    server.take_requests()
    with pytest.raises(PathNotAllowed) as caught:
        kind.check(stream, ReadAccess())
    assert "IPNEXT_SOURCE_URLS" in caught.value.public.message
    (source,) = kind.connect([StreamRequest(stream, ReadAccess())])
    with pytest.raises(PathNotAllowed):
        source.list_since("")
    with pytest.raises(PathNotAllowed):
        source.open(FoundVersion(key="1@1", place="1@1"))
    assert server.take_requests() == []


@pytest.mark.integration
def test_a_server_that_is_killed_between_polls_makes_none_missing_and_none_double(tmp_path, subprocesses):
    with running_mlflow(tmp_path) as server:
        server.create_model("ranker")
        watch = Watch(server, {"model": "ranker"}, {"model": "ranker", "alias": "production"})
        listed, moves = [], []
        for number in range(2):
            version = server.create_version("ranker")
            server.set_alias("ranker", "production", version)
            server.kill()
            with pytest.raises(Unavailable, match=f"{server.uri} can't be reached for the"):
                watch.poll()
            if number % 2:
                watch.kind = MlflowKind(server.transport)
            server.start()
            for _ in range(2 * ROUND):
                every, moved = watch.poll()
                listed += [found.key for found in every if found.key not in listed]
                moves += [found.key for found in moved if found.key not in moves]
    assert [key.partition("@")[0] for key in listed] == ["1", "2"]
    assert [key.partition("@")[0] for key in moves] == ["1:1", "2:2"]


@pytest.mark.integration
def test_what_the_documentation_has_users_do_is_picked_up(real, tmp_path):
    """By MLflow's own client, as docs/sources.md shows it."""
    manifest = write_snapshot(tmp_path / "snapshot", b"content")
    script = f"""
import mlflow
mlflow.set_tracking_uri({real.uri!r})
mlflow.set_experiment("documented")
client = mlflow.MlflowClient()
with mlflow.start_run() as run:
    mlflow.log_metric("auc", 0.91)
    mlflow.log_artifacts({str(tmp_path / "snapshot")!r}, "snapshot")
client.create_registered_model("documented")
version = client.create_model_version("documented", f"runs:/{{run.info.run_id}}/snapshot", run.info.run_id)
client.set_model_version_tag("documented", version.version, "validated", "yes")
client.set_registered_model_alias("documented", "production", version.version)
"""
    done = subprocess.run(
        [real._python, "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    watch = Watch(real, {"model": "documented", "alias": "production"})
    ((version,),) = watch.poll()
    assert (version.tags, version.metrics, version.lineage["experiment"]) == (
        {"validated": "yes"},
        {"auc": 0.91},
        "documented",
    )
    assert ingest(FileArtifactStore(tmp_path / "store"), watch.connect()[0].open(version)).manifest == manifest


def test_many_versions_are_listed_by_several_polls(monkeypatch):
    monkeypatch.setattr(module, "NEW_AT_ONCE", 3)
    server = MemoryMlflow()
    server.create_model("ranker")
    for _ in range(8):
        server.create_version("ranker")
    watch = Watch(server, {"model": "ranker"})
    assert [places(watch.poll()[0]) for _ in range(3)] == [["1", "2", "3"], ["4", "5", "6"], ["7", "8"]]


def test_a_version_that_is_still_registered_waits_with_those_after_it():
    server = MemoryMlflow()
    server.create_model("ranker")
    for status in ("READY", "FAILED_REGISTRATION", "PENDING_REGISTRATION", "READY"):
        number = server.create_version("ranker")
        server.models["ranker"]["versions"][number]["status"] = status
    watch = Watch(server, {"model": "ranker"})
    assert places(watch.poll()[0]) == ["1"]
    server.models["ranker"]["versions"]["3"]["status"] = "READY"
    found = watch.round()
    assert [key.partition("@")[0] for key in found if not key.startswith("1@")] == ["3", "4"]


@pytest.mark.parametrize("deleted", range(5))
def test_runs_of_several_experiments_are_read(deleted):
    server = MemoryMlflow()
    server.create_model("ranker")
    runs = [server.create_run(server.create_experiment(f"e{number}"), auc=number) for number in range(5)]
    for run in runs:
        server.create_version("ranker", run=run)
    del server.runs[runs[deleted]]
    watch = Watch(server, {"model": "ranker"})
    (found,) = watch.poll()
    assert [version.metrics.get("auc") for version in found] == [
        None if number == deleted else number for number in range(5)
    ]
    watch.settle()
    watch.kind = MlflowKind(server.transport)
    changed = runs[(deleted + 1) % 5]
    server.log_metric(changed, "auc", 9)
    listed = {version.lineage["run"]: version for _ in range(3 * len(runs)) for version in watch.round().values()}
    assert listed[changed].metrics == {"auc": 9.0}


def test_a_cursor_of_another_form_is_refused():
    server = MemoryMlflow()
    watch = Watch(server, {"model": "ranker"})
    watch.cursors = ["17"]
    with pytest.raises(InvalidInput, match="SEQUENCE:VERSION:CREATED:TAGS:RUNS"):
        watch.poll()


def test_a_cursor_counts_the_moves_and_names_the_version():
    server = MemoryMlflow()
    server.create_model("ranker")
    server.set_alias("ranker", "production", server.create_version("ranker"))
    watch = Watch(server, {"model": "ranker", "alias": "production"})
    watch.settle()
    assert watch.cursors[0].startswith("1:1:")
    assert Position.parse(watch.cursors[0]).cursor == watch.cursors[0]
