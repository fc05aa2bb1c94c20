"""Loading in the background: checked content, closed when unused, failures told by code."""

import threading
from pathlib import Path

import pytest

from ipnext.errors import ArtifactMissing, LoadFailed, Unavailable
from ipnext.model.deployment import HostedSnapshot
from ipnext.model.registry import Signature, SnapshotManifest
from serving import loading
from serving.engines.base import find_engine
from serving.generations import HeldSnapshots
from serving.loading import Loader

SIGNATURE = Signature(inputs=(), outputs=())
MANIFEST = SnapshotManifest(engine="fake", signature=SIGNATURE, files=())


class FakePart:
    signature = SIGNATURE
    size_bytes = 1
    rows_are_independent = True

    def __init__(self):
        self.warmed = False
        self.closed = threading.Event()

    def infer(self, _inputs):
        return {}

    def warm_up(self):
        self.warmed = True

    def close(self):
        self.closed.set()


class FakeEngine:
    def __init__(self, error=None):
        self.parts = []
        self.error = error

    def load(self, _directory, _manifest, _settings):
        if self.error is not None:
            raise self.error
        self.parts.append(FakePart())
        return self.parts[-1]


class FakeStore:
    """The part of the store's port that a host uses."""

    def __init__(self, manifest=MANIFEST, errors=()):
        self.manifest = manifest
        self.errors = list(errors)

    def fetch(self, _uri, directory: Path) -> Path:
        if self.errors:
            raise self.errors.pop(0)
        target = directory / self.manifest.digest
        target.mkdir(parents=True, exist_ok=True)
        (target / "snapshot.json").write_text(self.manifest.model_dump_json())
        return target


def hold(digest=MANIFEST.digest, engine="fake"):
    return HostedSnapshot(
        model="m", part="p", engine=engine, snapshot=1, digest=digest, uri="u", generations=(1,), settings={}
    )


@pytest.fixture
async def loader(tmp_path):
    loaders = []

    def make(store=None, engine=None):
        held = HeldSnapshots()
        engine = engine or FakeEngine()
        chosen = store or FakeStore()
        made = Loader(held, lambda: chosen, tmp_path, lambda _: engine)
        loaders.append(made)
        return made, held

    yield make
    for made in loaders:
        made.close()


async def test_a_snapshot_is_ready_once_loaded_and_warm(loader, toolbox):
    engine = FakeEngine()
    made, held = loader(engine=engine)
    made.hold([hold()])
    assert len(held.loading) == 1
    await toolbox.eventually(lambda: held.ready)
    assert engine.parts[0].warmed


async def test_a_dropped_snapshot_is_closed(loader, toolbox):
    engine = FakeEngine()
    made, held = loader(engine=engine)
    made.hold([hold()])
    await toolbox.eventually(lambda: held.ready)
    made.hold([])
    await toolbox.eventually(engine.parts[0].closed.is_set)


@pytest.mark.parametrize(
    ("store", "engine", "wanted", "code"),
    [
        (FakeStore(errors=[ArtifactMissing("gone")]), FakeEngine(), hold(), "ArtifactMissing"),
        (FakeStore(), FakeEngine(), hold(digest="0" * 64), "ArtifactDigestMismatch"),
        (FakeStore(), FakeEngine(), hold(engine="other"), "LoadFailed"),
        (FakeStore(), FakeEngine(LoadFailed("bad weights")), hold(), "LoadFailed"),
        (FakeStore(), FakeEngine(MemoryError()), hold(), "LoadFailed"),
    ],
)
async def test_a_load_that_fails_is_told_with_its_code(loader, toolbox, store, engine, wanted, code):
    made, held = loader(store, engine)
    made.hold([wanted])
    await toolbox.eventually(lambda: held.failures)
    assert [failure.code for failure in held.failures] == [code]
    assert not held.ready


async def test_a_store_that_is_down_for_a_moment_is_asked_again(loader, monkeypatch, toolbox):
    monkeypatch.setattr(loading, "_RETRY_SECONDS", (0.001, 0.001))
    made, held = loader(FakeStore(errors=[Unavailable("down"), Unavailable("down")]))
    made.hold([hold()])
    await toolbox.eventually(lambda: held.ready)


async def test_a_store_that_stays_down_is_a_failure(loader, monkeypatch, toolbox):
    monkeypatch.setattr(loading, "_RETRY_SECONDS", (0.001,))
    made, held = loader(FakeStore(errors=[Unavailable("down")] * 2))
    made.hold([hold()])
    await toolbox.eventually(lambda: held.failures)
    assert held.failures[0].code == "Unavailable"


def test_an_unknown_engine_is_refused_and_the_known_are_named():
    with pytest.raises(LoadFailed, match="'tnsorflow' is not installed; known: torch"):
        find_engine("tnsorflow")
