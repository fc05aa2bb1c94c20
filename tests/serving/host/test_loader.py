"""Loading in the background: checked content, closed when unused, failures told by code."""

import hashlib
import threading
import time
from pathlib import Path

import pytest

from ipnext.artifacts.signing import sign_digest, write_key_pair
from ipnext.errors import ArtifactMissing, LoadFailed, Unavailable
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import SIGNATURE_FILE, ArtifactFile, Signature, SnapshotManifest
from ipnext.model.registry.signing import SignerPolicy
from serving.engines.base import find_engine
from serving.host import loader as host_loader
from serving.host.loader import Loader
from serving.snapshots.held_snapshots import HeldSnapshots
from tests.waiting import eventually

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

    def make(store=None, engine=None, load_seconds=60.0):
        held = HeldSnapshots()
        engine = engine or FakeEngine()
        chosen = store or FakeStore()
        made = Loader(held, lambda: chosen, tmp_path, lambda _: engine)
        made.load_seconds = load_seconds
        loaders.append(made)
        return made, held

    yield make
    for made in loaders:
        made.close()


async def test_a_snapshot_is_ready_once_loaded_and_warm(loader):
    engine = FakeEngine()
    made, held = loader(engine=engine)
    made.hold([hold()])
    assert len(held.loading) == 1
    await eventually(lambda: held.ready)
    assert engine.parts[0].warmed


async def test_a_dropped_snapshot_is_closed(loader):
    engine = FakeEngine()
    made, held = loader(engine=engine)
    made.hold([hold()])
    await eventually(lambda: held.ready)
    made.hold([])
    await eventually(engine.parts[0].closed.is_set)


async def test_a_load_that_takes_too_long_has_failed_and_holds_up_no_other(loader):
    stuck, entered = threading.Event(), threading.Event()

    class Slow(FakeEngine):
        def load(self, *given):
            part = super().load(*given)
            if len(self.parts) == 1:
                entered.set()
                stuck.wait()
            return part

    engine = Slow()
    made, held = loader(engine=engine, load_seconds=0.2)
    made.hold([hold()])
    await eventually(entered.is_set)
    await eventually(lambda: held.failures)
    assert held.failures[0].code == "LoadFailed"
    assert "not loaded within 0.2 s (--load-seconds, IPNEXT_AGENT_LOAD_SECONDS)" in held.failures[0].message
    made.hold([hold().model_copy(update={"part": "other"})])
    await eventually(lambda: [ready.part for ready in held.ready] == ["other"])
    stuck.set()
    await eventually(engine.parts[0].closed.is_set)
    assert not engine.parts[1].closed.is_set()


async def test_the_time_of_a_load_begins_with_its_turn(loader):
    """Ten loads of a tenth of the limit each are all in time, whatever they wait for each other."""

    class Slow(FakeEngine):
        def load(self, *given):
            time.sleep(0.1)
            return super().load(*given)

    made, held = loader(engine=Slow(), load_seconds=5.0)
    made.hold([hold().model_copy(update={"part": f"p{number}"}) for number in range(10)])
    await eventually(lambda: len(held.ready) == 10)
    assert not held.failures


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
async def test_a_load_that_fails_is_told_with_its_code(loader, store, engine, wanted, code):
    made, held = loader(store, engine)
    made.hold([wanted])
    await eventually(lambda: held.failures)
    assert [failure.code for failure in held.failures] == [code]
    assert not held.ready


async def test_a_store_that_is_down_for_a_moment_is_asked_again(loader, monkeypatch):
    monkeypatch.setattr(host_loader, "_RETRY_SECONDS", (0.001, 0.001))
    made, held = loader(FakeStore(errors=[Unavailable("down"), Unavailable("down")]))
    made.hold([hold()])
    await eventually(lambda: held.ready)


async def test_a_store_that_stays_down_is_a_failure(loader, monkeypatch):
    monkeypatch.setattr(host_loader, "_RETRY_SECONDS", (0.001,))
    made, held = loader(FakeStore(errors=[Unavailable("down")] * 2))
    made.hold([hold()])
    await eventually(lambda: held.failures)
    assert held.failures[0].code == "Unavailable"


def test_an_unknown_engine_is_refused_and_the_known_are_named():
    with pytest.raises(LoadFailed, match="'tnsorflow' is not installed; known: torch"):
        find_engine("tnsorflow")


class SignedStore(FakeStore):
    """Lays a signature and one file beside the manifest."""

    def __init__(self, manifest, signature, content=b"weights"):
        super().__init__(manifest)
        self.signature, self.content = signature, content

    def fetch(self, uri, directory):
        target = super().fetch(uri, directory)
        (target / "weights").write_bytes(self.content)
        if self.signature is not None:
            (target / SIGNATURE_FILE).write_bytes(self.signature)
        return target


@pytest.fixture
def keys(tmp_path):
    """A private key file, and the policy that allows it."""
    write_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    return tmp_path / "key.pem", SignerPolicy(public_keys=((tmp_path / "key.pub.pem").read_text(),))


WEIGHTS = ArtifactFile(path="weights", sha256=hashlib.sha256(b"weights").hexdigest(), size_bytes=7)
SIGNED = SnapshotManifest(engine="fake", signature=SIGNATURE, files=(WEIGHTS,))


async def failure_of(loader, policy, store):
    made, held = loader(store=store)
    made.hold([hold(SIGNED.digest).model_copy(update={"signers": policy})])
    await eventually(lambda: held.ready or held.failures)
    return held.failures[0] if held.failures else None


async def test_a_signed_snapshot_is_loaded(loader, keys):
    private, policy = keys
    assert await failure_of(loader, policy, SignedStore(SIGNED, sign_digest(SIGNED.digest, private).content)) is None


async def test_a_host_loads_nothing_without_the_signature_that_is_asked_for(loader, keys):
    private, policy = keys
    for signature in (None, sign_digest(MANIFEST.digest, private).content, b"garbage"):
        failure = await failure_of(loader, policy, SignedStore(SIGNED, signature))
        assert failure.code == "SignatureInvalid"


async def test_a_file_that_changed_in_the_cache_is_not_loaded_where_a_signature_is_asked_for(loader, keys):
    private, policy = keys
    store = SignedStore(SIGNED, sign_digest(SIGNED.digest, private).content, content=b"weightz")
    assert (await failure_of(loader, policy, store)).code == "ArtifactDigestMismatch"


@pytest.mark.trust
async def test_a_denied_snapshot_is_not_loaded(loader):
    made, held = loader()
    made.hold([hold().model_copy(update={"denied": "abc is denied: poisoned"})])
    await eventually(lambda: held.failures)
    assert (held.failures[0].code, held.ready) == ("SnapshotDenied", ())
    assert "poisoned" in held.failures[0].message


@pytest.mark.trust
async def test_a_snapshot_that_is_denied_after_it_was_loaded_serves_on(loader):
    engine = FakeEngine()
    made, held = loader(engine=engine)
    made.hold([hold()])
    await eventually(lambda: held.ready)
    made.hold([hold().model_copy(update={"denied": "abc is denied: poisoned"})])
    assert len(held.ready) == 1
    assert (held.failures, engine.parts[0].closed.is_set()) == ((), False)
