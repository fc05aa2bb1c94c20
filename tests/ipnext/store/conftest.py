"""Both engines: SQLite in a file, and a real PostgreSQL with a database without rows for each test."""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, SnapshotSource, TensorSpec
from ipnext.store.store import Store
from tests.ipnext.store.lent_databases import LentDatabases
from tests.real_servers import PostgresServer, running_postgres


@pytest.fixture(scope="package")
def postgres_server(subprocesses) -> Iterator[PostgresServer]:
    """A real PostgreSQL."""
    with running_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="package")
def lent_databases(postgres_server) -> LentDatabases:
    """Migrated databases of it without rows."""
    return LentDatabases(postgres_server)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory) -> Path:
    """A migrated SQLite file to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    store = Store.open(f"sqlite:///{path}")
    store.migrate()
    store.close()
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine_name(request) -> str:
    """Each engine."""
    return request.param


@pytest.fixture
def empty_url(engine_name, request, tmp_path) -> Iterator[str]:
    """The URL of a database without tables."""
    if engine_name == "sqlite":
        (tmp_path / "empty.db").touch()
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    server = request.getfixturevalue("postgres_server")
    name = f"test_{uuid.uuid4().hex}"
    server.run(f"CREATE DATABASE {name} TEMPLATE template0")
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def url(engine_name, request, tmp_path) -> Iterator[str]:
    """The URL of a migrated database."""
    if engine_name == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "ipnext.db")
        yield f"sqlite:///{tmp_path}/ipnext.db"
        return
    databases = request.getfixturevalue("lent_databases")
    name = databases.lend()
    yield request.getfixturevalue("postgres_server").url(name)
    databases.take_back(name)


@pytest.fixture
def store(url) -> Iterator[Store]:
    """A migrated store on each engine."""
    opened = Store.open(url)
    yield opened
    opened.close()


def model_manifest(
    name: str = "ctr", *, parts: tuple[str, ...] = ("dense", "sparse"), qps: float = 10.0
) -> ModelManifest:
    """A manifest of a ranking model."""
    nodes = [{"name": part, "part": part, "inputs": {"x": "request.x"}} for part in parts]
    return ModelManifest.model_validate(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {
                "parts": [{"name": part, "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]} for part in parts],
                "graph": {"nodes": nodes, "outputs": {"score": f"{parts[0]}.score"}},
                "demand": [{"region": "north", "qps": qps}],
            },
        }
    )


def snapshot_source(content: str) -> SnapshotSource:
    """A source whose digest follows from `content`."""
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    file = ArtifactFile(path="weights", sha256=hashlib.sha256(content.encode()).hexdigest(), size_bytes=len(content))
    manifest = SnapshotManifest(engine="torch", signature=Signature(inputs=(spec,), outputs=(spec,)), files=(file,))
    return SnapshotSource(manifest=manifest, uri=f"file:///store/snapshots/{manifest.digest}")


def delta_source(content: str, *, parent: str) -> SnapshotSource:
    """A delta snapshot of another one's digest."""
    full = snapshot_source(content).manifest
    files = (full.files[0].model_copy(update={"path": "delta.json"}),)
    manifest = full.model_copy(update={"files": files, "parent": parent})
    return SnapshotSource(manifest=manifest, uri=f"file:///store/snapshots/{manifest.digest}")


@pytest.fixture
def make() -> SimpleNamespace:
    """Makes manifests and sources."""
    return SimpleNamespace(manifest=model_manifest, source=snapshot_source, delta=delta_source)


@pytest.fixture
def applied(store) -> Store:
    """A store that knows the model `ctr` of the parts dense and sparse."""
    with store.begin() as repository:
        repository.put_model(model_manifest(), expected_version=None)
    return store


@pytest.fixture
def publish(applied) -> Callable[..., object]:
    """Publishes parts of `ctr` by content: publish("c1", dense="a", sparse="b")."""

    def call(change_id: str, **parts: str):
        with applied.begin("ctr") as repository:
            sources = {part: snapshot_source(content) for part, content in parts.items()}
            return repository.publish("ctr", sources, change_id=change_id)

    return call
