"""A host and a delta: from the held parent, along the lineage, from the full result.

Another test has its error if all is missing.
"""

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ipnext.artifacts.seen_files import note_files
from ipnext.artifacts.signing import sign_digest, write_key_pair
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, LoadFailed
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.registry.signing import SignerPolicy
from serving.deltas.export import delta_between, export_delta
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model
from serving.host import delta_loader
from serving.host.delta_loader import Chain, LocalSnapshot, fetch_chain
from serving.host.loader import Loader
from serving.host.served_part import ServedPart
from serving.snapshots.fetch import fetch_assigned, verify_snapshot
from serving.snapshots.held_snapshots import HeldSnapshots
from tests.waiting import eventually

ROWS = 5000
IDS = np.concatenate([np.arange(0, 40), [ROWS - 1]])[:, None]


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.EmbeddingBag(ROWS, 16)
        self.top = nn.Linear(16, 1)

    def forward(self, ids):
        return self.top(self.table(ids)).squeeze(1)


@dataclass(frozen=True)
class Family:
    """Snapshots 1 (full), 2 (delta on 1), 3 (delta on 2); `full` has the whole of 3."""

    root: Path
    manifests: dict[int, SnapshotManifest]
    modules: dict[int, nn.Module]

    def store(self, path: Path, *names: str) -> FileArtifactStore:
        store = FileArtifactStore(path)
        for name in names:
            ingest_directory(store, self.root / name)
        return store

    def fetched(self, number: int) -> LocalSnapshot:
        return LocalSnapshot(self.root / str(number), self.manifests[number])

    def hold(self, store: FileArtifactStore, number: int) -> HostedSnapshot:
        digest = self.manifests[number].digest
        return HostedSnapshot(
            model="click",
            part="sparse",
            engine="torch",
            snapshot=number,
            digest=digest,
            uri=f"{store.uri}/snapshots/{digest}",
            generations=(number,),
        )

    def expected(self, number: int) -> np.ndarray:
        with torch.no_grad():
            return self.modules[number](torch.from_numpy(IDS)).numpy()


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    modules = {number: Table().eval() for number in (1, 2, 3)}
    with torch.no_grad():
        for number in (2, 3):
            modules[number].load_state_dict(modules[number - 1].state_dict())
            modules[number].table.weight[number * 10 : number * 10 + 5] += number
            modules[number].top.bias += number
    example = {"ids": torch.zeros(2, 1, dtype=torch.int64)}
    manifests = {1: export_model(modules[1], example, root / "1")}
    manifests[2] = export_delta(root / "1", modules[2], root / "2")
    export_model(modules[3], example, root / "full")
    manifests[3] = delta_between(root / "2", root / "full", root / "3", bases=[root / "1"])
    return Family(root, manifests, modules)


def test_a_held_parent_is_the_ground_and_nothing_is_fetched(family, tmp_path):
    store = family.store(tmp_path / "store")
    parent = family.manifests[2].digest
    chain = fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", family.fetched(3), {parent})
    assert chain == Chain(parent, None, (family.fetched(3),))
    assert chain.made_from == f"1 delta(s) on held {parent:.12}"


def test_a_parent_that_is_not_held_comes_from_the_store_down_to_a_held_one_or_a_full_one(family, tmp_path):
    store = family.store(tmp_path / "store", "1", "2")
    digests = {number: manifest.digest for number, manifest in family.manifests.items()}
    chain = fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", family.fetched(3), {digests[1]})
    cached = LocalSnapshot(tmp_path / "cache" / digests[2], family.manifests[2])
    assert chain == Chain(digests[1], None, (cached, family.fetched(3)))
    chain = fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", family.fetched(3), ())
    assert chain.base == LocalSnapshot(tmp_path / "cache" / digests[1], family.manifests[1])
    assert chain.deltas == (cached, family.fetched(3))
    assert chain.made_from == f"2 delta(s) on fetched {digests[1]:.12}"


def test_where_the_parent_is_missing_the_full_result_is_taken_whole(family, tmp_path):
    store = family.store(tmp_path / "store", "full")
    chain = fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", family.fetched(3), ())
    assert chain.base is not None
    assert chain.base.directory.name == chain.ground
    assert chain.deltas == ()
    assert chain.made_from == f"the full result of a delta, {chain.ground:.12}"


def test_with_parent_and_full_result_missing_the_failure_names_both(family, tmp_path):
    store = family.store(tmp_path / "store")
    with pytest.raises(
        LoadFailed, match=f"parent {family.manifests[2].digest} is neither held.*; publish a full"
    ) as told:
        fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", family.fetched(3), ())
    assert isinstance(told.value.__cause__, ArtifactMissing)
    with pytest.raises(LoadFailed, match="none named"):
        fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", family.fetched(2), ())


def test_a_full_result_that_is_another_than_the_delta_states_is_refused(family, tmp_path):
    """The delta was made with this `full`; here the file is another snapshot of the same program."""
    engine = TorchEngine()
    right = Chain("d", LocalSnapshot(family.root / "full", family.manifests[1]), (), result_of=family.fetched(3))
    assert right.load(engine, {}, {}).size_bytes > ROWS * 64
    wrong = Chain("d", LocalSnapshot(family.root / "1", family.manifests[1]), (), result_of=family.fetched(3))
    with pytest.raises(LoadFailed, match="after the delta it must be"):
        wrong.load(engine, {}, {})


def test_a_base_loaded_for_a_deltas_sake_is_counted_over_all_rows(family):
    wrong = Chain("d", LocalSnapshot(family.root / "full", family.manifests[1]), (family.fetched(2),))
    with pytest.raises(LoadFailed, match="before the delta it must be"):
        wrong.load(TorchEngine(), {}, {})


def test_a_lineage_of_another_signature_is_refused(family, tmp_path):
    store = family.store(tmp_path / "store", "1")
    other = family.manifests[2].signature.model_copy(update={"outputs": ()})
    odd = LocalSnapshot(family.root / "2", family.manifests[2].model_copy(update={"signature": other}))
    with pytest.raises(LoadFailed, match="differ in engine or signature"):
        fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", odd, ())


def test_a_chain_without_end_is_refused(family, tmp_path, monkeypatch):
    monkeypatch.setattr(delta_loader, "LONGEST_CHAIN", 1)
    store = family.store(tmp_path / "store", "1", "2")
    with pytest.raises(LoadFailed, match="more than 1 deltas"):
        fetch_chain(store, f"{store.uri}/snapshots/x", tmp_path / "cache", family.fetched(3), ())


def test_an_engine_that_takes_no_deltas_says_so(family):
    class Part:
        signature = None

    with pytest.raises(LoadFailed, match="takes no deltas"):
        Chain("d", None, (family.fetched(2),)).load(None, {}, {"d": Part()})


class Watched(TorchEngine):
    """Keeps the parts that it loads from files."""

    def __init__(self):
        super().__init__()
        self.loaded = []

    def load(self, directory, manifest, settings):
        self.loaded.append(super().load(directory, manifest, settings))
        return self.loaded[-1]


@pytest.fixture
def loader(family, tmp_path):
    store, engine = family.store(tmp_path / "store", "1", "2", "3"), Watched()
    held: HeldSnapshots[ServedPart] = HeldSnapshots()
    made = Loader(held, lambda: store, tmp_path / "cache", lambda _: engine)
    yield SimpleNamespace(held=held, engine=engine, hold=lambda *n: made.hold([family.hold(store, each) for each in n]))
    made.close()


def ready(loader):
    return {held.snapshot for held in loader.held.ready}


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1)])
async def test_deltas_held_together_with_their_parents_load_one_full_snapshot(loader, order):
    loader.hold(*order)
    await eventually(lambda: ready(loader) == {1, 2, 3})
    assert len(loader.engine.loaded) == 1


async def test_a_parent_is_closed_once_nobody_wants_it_though_its_delta_lives(loader):
    loader.hold(1)
    await eventually(lambda: ready(loader) == {1})
    loader.hold(1, 2)
    await eventually(lambda: ready(loader) == {1, 2})
    loader.hold(2)
    await eventually(lambda: loader.engine.loaded[0]._program is None)
    with loader_lease(loader, 2) as part:
        part.infer({"ids": IDS})


@contextmanager
def loader_lease(loader, generation):
    lease = loader.held.lease("click", "sparse", generation)
    yield lease.value.part
    loader.held.release(lease)


def answers(host, number):
    response = host.infer("/parts/click/sparse/infer", {"ids": IDS}, **{"x-ipnext-generation": str(number)})
    assert response.headers["x-ipnext-snapshots"] == f"sparse={number}"
    return response


@pytest.fixture
def start(family, machine):
    """A real host over a store that holds the named snapshots."""

    def started(name, *names):
        store = family.store(machine.root / f"store-{name}", *names)
        machine.store_uri = store.uri
        return store, machine.start_host(name)

    return started


def test_a_host_answers_with_the_bits_of_each_generation_through_a_chain_of_deltas(family, start, toolbox):
    store, host = start("chain", "1", "2", "3")
    for held in ((1,), (1, 2), (1, 2, 3), (3,), (2, 3)):
        host.hold(*(family.hold(store, number) for number in held))
        state = host.settle()
        assert sorted(h.snapshot for h in state.ready) == list(held), state
        for number in held:
            score = toolbox.decode(answers(host, number)).outputs["output"].data
            assert score.tobytes() == family.expected(number).tobytes()


def test_a_parent_asked_for_together_with_its_delta_is_waited_for(family, start, toolbox):
    store, host = start("together", "1", "2", "3")
    host.hold(*(family.hold(store, number) for number in (3, 2, 1)))
    assert {h.snapshot for h in host.settle().ready} == {1, 2, 3}
    score = toolbox.decode(answers(host, 3)).outputs["output"].data
    assert score.tobytes() == family.expected(3).tobytes()


def test_a_fresh_host_takes_the_full_result_where_the_lineage_is_gone(family, start, toolbox):
    store, host = start("orphan", "3", "full")
    host.hold(family.hold(store, 3))
    assert [h.snapshot for h in host.settle().ready] == [3]
    score = toolbox.decode(answers(host, 3)).outputs["output"].data
    assert score.tobytes() == family.expected(3).tobytes()


def test_a_host_that_can_find_neither_fails_the_snapshot_and_keeps_answering(family, start):
    store, host = start("lost", "1", "3")
    host.hold(family.hold(store, 1))
    host.settle()
    host.hold(family.hold(store, 1), family.hold(store, 3))
    state = host.settle()
    assert [(f.snapshot, f.code) for f in state.failures] == [(3, "LoadFailed")]
    assert "publish a full snapshot" in state.failures[0].message
    assert answers(host, 1).status_code == 200


def test_a_delta_damaged_in_the_store_is_refused_by_its_digest(family, start):
    store, host = start("damaged", "1", "2")
    file = next(f for f in family.manifests[2].files if f.path == "delta.safetensors")
    blob = Path(store.uri.removeprefix("file://")) / "blobs" / file.sha256
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    shutil.copyfile(blob, blob.with_suffix(".aside"))
    blob.unlink()
    blob.write_bytes(content)
    host.hold(family.hold(store, 1), family.hold(store, 2))
    state = host.settle()
    assert [(f.snapshot, f.code) for f in state.failures] == [(2, "ArtifactDigestMismatch")]


@dataclass(frozen=True)
class Signed:
    """A store with signed snapshots, a cache that has some of them, and a loader of a model that names the signer."""

    family: Family
    store: FileArtifactStore
    cache: Path
    key: Path
    policy: SignerPolicy

    def hold(self, number: int) -> HostedSnapshot:
        return self.family.hold(self.store, number).model_copy(update={"signers": self.policy})

    def cached(self, name: str) -> tuple[Path, SnapshotManifest]:
        manifest = SnapshotManifest.model_validate_json((self.family.root / name / "snapshot.json").read_bytes())
        return self.store.fetch(f"{self.store.uri}/snapshots/{manifest.digest}", self.cache), manifest

    async def failure_of(self, *numbers: int) -> str | None:
        """Load snapshots one after the other, and return the code of the first failure."""
        held: HeldSnapshots[ServedPart] = HeldSnapshots()
        engine = TorchEngine()
        made = Loader(held, lambda: self.store, self.cache, lambda _: engine)
        try:
            for last in range(len(numbers)):
                made.hold([self.hold(number) for number in numbers[: last + 1]])
                await eventually(lambda last=last: held.failures or len(held.ready) == last + 1)
            return held.failures[0].code if held.failures else None
        finally:
            made.close()


@pytest.fixture
def signed(family, tmp_path):
    write_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    policy = SignerPolicy(public_keys=((tmp_path / "key.pub.pem").read_text(),))

    def made(*names):
        store = family.store(tmp_path / "store", *names)
        for name in names:
            digest = SnapshotManifest.model_validate_json((family.root / name / "snapshot.json").read_bytes()).digest
            store.put_signature(digest, sign_digest(digest, tmp_path / "key.pem"))
        return Signed(family, store, tmp_path / "cache", tmp_path / "key.pem", policy)

    return made


def forge(directory, manifest, path="program.json"):
    """Change a file of the cache as one who writes there can, with the record of hashed files."""
    file = directory / path
    content = file.read_bytes()
    file.write_bytes(content.replace(b"aten", b"ATEN") if path == "program.json" else content[:-1] + b"\0")
    note_files(directory, manifest)


async def test_a_chain_of_signed_snapshots_is_loaded(signed):
    assert await signed("1", "2", "3").failure_of(3) is None


@pytest.mark.parametrize("path", ["program.json", "weights.safetensors"])
async def test_a_delta_is_not_loaded_onto_a_parent_that_was_changed_in_the_cache(signed, path):
    place = signed("1", "2", "3")
    forge(*place.cached("1"), path)
    assert await place.failure_of(1) == "ArtifactDigestMismatch"
    assert await place.failure_of(2) == "ArtifactDigestMismatch"
    assert await place.failure_of(3) == "ArtifactDigestMismatch"


async def test_a_delta_between_that_was_changed_in_the_cache_is_not_applied(signed):
    place = signed("1", "2", "3")
    forge(*place.cached("2"), "delta.safetensors")
    assert await place.failure_of(1, 3) == "ArtifactDigestMismatch"


async def test_a_full_result_that_was_changed_in_the_cache_is_not_loaded(signed):
    place = signed("3", "full")
    forge(*place.cached("full"))
    assert await place.failure_of(3) == "ArtifactDigestMismatch"


async def test_a_delta_that_was_changed_in_the_cache_names_no_full_result(signed, family):
    """The changed document names the snapshot 1, which is in the store, too."""
    place = signed("1", "3")
    directory, manifest = place.cached("3")
    document = (directory / "delta.json").read_text()
    full = SnapshotManifest.model_validate_json((family.root / "full" / "snapshot.json").read_bytes()).digest
    (directory / "delta.json").write_text(document.replace(full, family.manifests[1].digest))
    note_files(directory, manifest)
    assert await place.failure_of(3) == "ArtifactDigestMismatch"


async def test_a_parent_with_another_manifest_is_not_loaded(signed):
    """The store answers for the parent with the directory of another snapshot."""
    place = signed("1", "2", "3")
    other, _ = place.cached("2")
    fetch = place.store.fetch
    place.store.fetch = lambda uri, cache: other if uri == place.hold(1).uri else fetch(uri, cache)
    assert await place.failure_of(2) == "ArtifactDigestMismatch"


@pytest.mark.parametrize("kind", ["file", "link", "directory link"])
def test_a_guarded_directory_has_no_file_that_its_manifest_does_not_name(signed, tmp_path, kind):
    directory, manifest = signed("1").cached("1")
    guarded = LocalSnapshot(directory, manifest, is_guarded=True)
    assert verify_snapshot(guarded) == directory
    foreign = directory / "extern_kernels.json"
    if kind == "file":
        foreign.write_text("{}")
    else:
        foreign.symlink_to(directory / "program.json" if kind == "link" else tmp_path)
    assert verify_snapshot(guarded._replace(is_guarded=False)) == directory
    with pytest.raises(
        ArtifactDigestMismatch, match=r"json: snapshot .* in the cache holds it, and its manifest does not"
    ):
        verify_snapshot(guarded)


@pytest.mark.parametrize("change", ["unlink", "link", "truncate", "fifo"])
def test_a_guarded_directory_has_the_files_of_its_manifest(signed, change):
    directory, manifest = signed("1").cached("1")
    file = directory / "program.json"
    content = file.read_bytes()
    if change == "truncate":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    if change == "link":
        (directory.parent / "elsewhere").write_bytes(content)
        file.symlink_to(directory.parent / "elsewhere")
    if change == "fifo":
        os.mkfifo(file)
    with pytest.raises(
        ArtifactMissing if change == "unlink" else ArtifactDigestMismatch, match=r"program\.json of snap"
    ):
        verify_snapshot(LocalSnapshot(directory, manifest, is_guarded=True))


async def test_a_segment_of_a_signed_snapshot_is_hashed_though_it_has_no_signature(signed):
    place = signed("1")
    hold = place.hold(1).model_copy(update={"signers": None, "is_cut_from_signed": True})
    forge(*place.cached("1"))
    fetched = fetch_assigned(place.store, hold, place.cache)
    with pytest.raises(ArtifactDigestMismatch):
        verify_snapshot(fetched)
