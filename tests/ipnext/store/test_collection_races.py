"""Two collectors, publishes and deletions at once, on both engines: nothing that a kept snapshot names is lost."""

import hashlib
import itertools
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event

from sqlalchemy import update

from ipnext.artifacts.layout import snapshot_uri
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.errors import ArtifactMissing, Conflict, DuplicateSnapshot
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.registry.registry import ArtifactFile, GenerationState, Signature, SnapshotManifest, SnapshotSource
from ipnext.model.registry.retention import Keep, SnapshotKeep
from ipnext.platform.collection import Collection, Retention
from ipnext.platform.publication import Publisher
from ipnext.plugins import Plugins
from ipnext.store.registry.artifacts import sizes_of
from ipnext.store.store import Store
from ipnext.store.tables.row import METADATA
from tests.ipnext.store.conftest import model_manifest
from tests.waiting import PATIENCE_SECONDS

PUBLISHES, MOST_PUBLISHES = 40, 1000
PAUSE_SECONDS = 0.1
"""Between publishes, while no collector has removed anything yet: collectors may be slower than clients."""
CONTENTS = 6
"""Contents that are published in turns, so that released ones come back."""
SHARED = b"a tokenizer that all snapshots have"
LONG_AGO = time.time() - 10 * 86_400
RETENTION = Retention(unserved=timedelta(), snapshots=SnapshotKeep(Keep(1, timedelta()), 1))
"""What never served goes at once."""


def source_of(artifacts: FileArtifactStore, content: bytes) -> SnapshotSource:
    """A snapshot of a content, and of a file that all have."""
    files = tuple(
        ArtifactFile(path=path, sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body))
        for path, body in (("model.safetensors", content), ("tokenizer.json", SHARED))
    )
    manifest = SnapshotManifest(engine="vllm", signature=Signature(inputs=(), outputs=()), files=files)
    return SnapshotSource(manifest=manifest, uri=snapshot_uri(artifacts.uri, manifest.digest))


def upload(artifacts: FileArtifactStore, content: bytes) -> SnapshotSource:
    """Upload a snapshot; its files look as if that had been long ago."""
    source = source_of(artifacts, content)
    for file, body in zip(source.manifest.files, (content, SHARED), strict=True):
        artifacts.put_blob(file.sha256, iter([body]))
        age(artifacts.root / "blobs" / file.sha256)
    artifacts.commit(source.manifest)
    age(artifacts.root / "snapshots" / source.manifest.digest / "snapshot.json")
    return source


def age(path):
    try:
        os.utime(path, (LONG_AGO, LONG_AGO))
    except FileNotFoundError:
        return  # a collector was faster


class Clients:
    """Publishes and their ends, as the API and the workers record them."""

    def __init__(self, url: str, artifacts: FileArtifactStore, model: str, begun: list[int]) -> None:
        """`begun`: passes that each collector has begun."""
        self.begun, self.used = begun, dict[str, tuple[SnapshotManifest, list[int]]]()
        self.store, self.artifacts, self.model = Store.open(url), artifacts, model
        self.publisher = Publisher(self.store, artifacts, Plugins(), 2**40)
        self.random = random.Random(model)

    def publish(self, number: int) -> None:
        """Publish a content; if its bytes are gone, upload them again, as a client does."""
        content = f"{self.model} {self.random.randrange(CONTENTS)}".encode()
        source = source_of(self.artifacts, content)
        parts = {"dense": source}
        while True:
            try:
                manifest = self.artifacts.manifest(source.uri)
                self.publisher.announce("default", manifest)
                self.publisher.check_there(parts)
                with self.store.begin(self.model) as unit:
                    change = self.publisher.record(
                        unit, self.model, "default", parts, change_id=f"{self.model}-{number}"
                    )
                break
            except ArtifactMissing:
                with self.store.begin_free(()) as unit:
                    unit.touch_artifacts(sizes_of(source.manifest))
                upload(self.artifacts, content)
            except DuplicateSnapshot:
                self.let_time_pass()
                return
        with self.store.begin(self.model) as unit:
            unit.set_generation_state(self.model, change.generation, GenerationState.FAILED)
            unit.update_change(change.id, state=ChangeState.ROLLED_BACK)
        self.used[source.manifest.digest] = source.manifest, list(self.begun)
        self.let_time_pass()

    def let_time_pass(self) -> None:
        """Make uses as old as the files, each once all collectors have begun a pass since: the grace time is longer."""
        over = [
            digest
            for digest, (_, begun) in self.used.items()
            if all(now > then for now, then in zip(self.begun, begun, strict=True))
        ]
        for digest in over:
            self.age_use(self.used.pop(digest)[0])

    def age_use(self, manifest: SnapshotManifest) -> None:
        """Make the last use of what only this client has as old as its files."""
        own = {manifest.digest, manifest.files[0].sha256}
        table = METADATA.tables["artifacts"]
        with self.store.begin_free(()) as unit:
            past = datetime.fromtimestamp(LONG_AGO, UTC)
            unit.connection().execute(update(table).where(table.c.digest.in_(own)).values(touched_at=past))

    def run(self, over: Event, raced: Event) -> None:
        """Publish until collectors have released and removed something in between."""
        try:
            for number in itertools.count():
                if number >= PUBLISHES and raced.wait(PAUSE_SECONDS):
                    break
                assert number < MOST_PUBLISHES, "no collector removed anything"
                self.publish(number)
        finally:
            over.set()
            self.store.close()


def collect(
    number: int, url: str, artifacts: FileArtifactStore, over: list[Event], raced: Event, begun: list[int]
) -> None:
    """Passes until all clients have ended. `raced` is set once some snapshots and blobs went."""
    store, snapshots, blobs = Store.open(url), 0, 0
    try:
        while not all(event.is_set() for event in over):
            begun[number] += 1
            found = Collection(store, artifacts, RETENTION).run()
            snapshots, blobs = snapshots + found.snapshots, blobs + found.blobs
            if snapshots > 1 and blobs > 1:
                raced.set()
    finally:
        store.close()


def test_two_collectors_and_publishes_at_once_lose_nothing(store, url, tmp_path):
    artifacts = FileArtifactStore(tmp_path / "artifacts")
    names = ("one", "two")
    with store.begin() as unit:
        for name in names:
            unit.put_model(model_manifest(name, parts=("dense",)), expected_version=None)
    for name in names:
        for content in range(CONTENTS):
            upload(artifacts, f"{name} {content}".encode())
    over, raced, begun = [Event() for _ in names], Event(), [0, 0]
    with ThreadPoolExecutor(4) as threads:
        clients = [
            threads.submit(Clients(url, artifacts, name, begun).run, event, raced)
            for name, event in zip(names, over, strict=True)
        ]
        collectors = [threads.submit(collect, number, url, artifacts, over, raced, begun) for number in range(2)]
        for client in clients:
            client.result(PATIENCE_SECONDS)
        for collector in collectors:
            collector.result(PATIENCE_SECONDS)
    assert raced.is_set()
    kept = 0
    for name in names:
        with store.read() as unit:
            released = unit.collected_snapshots(name)
            for snapshot in unit.snapshots(name):
                if (snapshot.part, snapshot.number) not in released:
                    artifacts.check_whole(artifacts.manifest(snapshot.uri))
                    kept += 1
    assert kept >= len(names)


def test_a_hold_and_two_collectors_at_once_agree(store, url, tmp_path):
    """Each snapshot is either held with its bytes, or released and not held."""
    rounds = 12
    artifacts = FileArtifactStore(tmp_path / "artifacts")
    with store.begin() as unit:
        unit.put_model(model_manifest("one", parts=("dense",)), expected_version=None)
    for number in range(rounds + 1):
        source = upload(artifacts, f"{number}".encode())
        with store.begin("one") as unit:
            unit.touch_artifacts({source.manifest.digest: 1})
            unit.publish("one", {"dense": source}, change_id=f"c{number}")
            unit.set_generation_state("one", number + 1, GenerationState.FAILED)
            unit.update_change(f"c{number}", state=ChangeState.ROLLED_BACK)

    def hold():
        own, held = Store.open(url), set()
        for number in range(1, rounds + 1):
            try:
                with own.begin("one") as unit:
                    unit.hold_snapshot("one", "dense", number, by="alice", reason="x")
            except Conflict:
                continue  # it was released before
            else:
                held.add(("dense", number))
        own.close()
        return held

    def release():
        own = Store.open(url)
        Collection(own, artifacts, RETENTION).run()
        own.close()

    with ThreadPoolExecutor(3) as threads:
        holding = threads.submit(hold)
        for done in (threads.submit(release), threads.submit(release)):
            done.result(PATIENCE_SECONDS)
        held = holding.result(PATIENCE_SECONDS)
    with store.read() as unit:
        assert not held & unit.collected_snapshots("one")
        assert {(one.part, one.number) for one in unit.hold_page(limit=1000).items} == held


def test_history_is_deleted_by_two_collectors_once(store, url, tmp_path):
    """Both count what they deleted themselves."""
    with store.begin() as unit:
        unit.put_model(model_manifest("one", parts=("dense",)), expected_version=None)
    with store.begin("one") as unit:
        unit._now = lambda: datetime(2020, 1, 1, tzinfo=UTC)
        for _ in range(1000):
            unit.add_event("one", "K", "x")

    def run():
        own = Store.open(url)
        artifacts = FileArtifactStore(tmp_path / "artifacts")
        try:
            return sum(each.count for each in Collection(own, artifacts, Retention()).run().classes)
        finally:
            own.close()

    with ThreadPoolExecutor(2) as threads:
        counts = [done.result(PATIENCE_SECONDS) for done in [threads.submit(run), threads.submit(run)]]
    assert sum(counts) == 800
