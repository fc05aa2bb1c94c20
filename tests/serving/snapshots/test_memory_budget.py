"""A host's memory budget: what a load needs is known before it, and what does not fit is refused with its figures."""

import gc
import mmap
import platform
import subprocess
import sys

import pytest

from ipnext.errors import MemoryExceeded
from ipnext.model.deployment.footprint import ALLOWANCE_BYTES, PROGRAM_FACTOR, needed_bytes
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest
from serving.host.loader import Loader
from serving.snapshots.held_snapshots import HeldSnapshots
from serving.snapshots.memory_budget import HostMemory, resident_bytes, shared_bytes
from tests.waiting import eventually

MEGA = 10**6


def file(path, size):
    return ArtifactFile(path=path, sha256="0" * 64, size_bytes=size)


def test_a_load_needs_its_weights_and_a_multiple_of_its_program():
    files = (file("weights.safetensors", 100 * MEGA), file("program.json", MEGA))
    manifest = SnapshotManifest(engine="torch", signature=Signature(inputs=(), outputs=()), files=files)
    assert needed_bytes(manifest) == 100 * MEGA + PROGRAM_FACTOR * MEGA + ALLOWANCE_BYTES


def test_replay_sets_and_reports_are_not_loaded():
    files = (file("weights.safetensors", 100), file("replay.safetensors", MEGA), file("optimization.json", MEGA))
    manifest = SnapshotManifest(engine="torch", signature=Signature(inputs=(), outputs=()), files=files)
    assert needed_bytes(manifest) == 100 + ALLOWANCE_BYTES


def test_what_fits_is_let_through_and_what_does_not_is_refused_with_its_figures():
    memory = HostMemory(1000 * MEGA, resident=lambda: 300 * MEGA)
    memory.check(600 * MEGA, "snapshot 1 of m.p")
    memory.note_loaded(600 * MEGA)
    with pytest.raises(
        MemoryExceeded, match=r"snapshot 2 of m\.p needs about 200\.0 MB; 900\.0 MB of .* 1,000\.0 MB"
    ) as refused:
        memory.check(200 * MEGA, "snapshot 2 of m.p")
    assert (refused.value.needed, refused.value.used, refused.value.budget) == (200 * MEGA, 900 * MEGA, 1000 * MEGA)
    assert refused.value.retryable


def test_a_closed_snapshot_makes_room():
    memory = HostMemory(1000 * MEGA, resident=lambda: 300 * MEGA)
    memory.check(600 * MEGA, "one")
    memory.note_loaded(600 * MEGA)
    memory.note_closed(600 * MEGA)
    memory.check(600 * MEGA, "another")


def test_pages_that_the_system_dropped_for_a_while_still_count():
    resident = [300 * MEGA]
    memory = HostMemory(resident=lambda: resident[0])
    memory.check(1, "one")
    memory.note_loaded(500 * MEGA)
    resident[0] = 400 * MEGA
    assert memory.used_bytes == 800 * MEGA
    resident[0] = 900 * MEGA
    assert memory.used_bytes == 900 * MEGA


def test_pages_that_two_snapshots_share_are_counted_once_before_a_load_is_refused():
    memory = HostMemory(1000 * MEGA, resident=lambda: 1500 * MEGA, counted=lambda: 900 * MEGA)
    memory.note_loaded(1)
    memory.check(100 * MEGA, "a delta")
    with pytest.raises(MemoryExceeded, match=r"needs about 101\.0 MB; 900\.0 MB"):
        memory.check(101 * MEGA, "another")


def test_shared_pages_are_told_once_while_there_are_any_and_counted_at_loads_alone():
    resident, asked = [1000 * MEGA], []

    def counted():
        asked.append(1)
        return resident[0] - 400 * MEGA

    memory = HostMemory(resident=lambda: resident[0], counted=counted)
    memory.note_loaded(500 * MEGA)
    assert (memory.used_bytes, asked) == (1000 * MEGA, [])
    memory.note_loaded(MEGA, shares=True)
    resident[0] += 100 * MEGA
    assert [memory.used_bytes, memory.used_bytes] == [700 * MEGA] * 2
    assert asked == [1]
    memory.note_closed(MEGA)
    memory.note_closed(500 * MEGA)
    assert memory.used_bytes == resident[0]


def test_a_file_that_is_mapped_twice_is_counted_once(tmp_path):
    (tmp_path / "weights").write_bytes(bytes(64 * MEGA))
    with (tmp_path / "weights").open("rb") as file:
        one = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        assert not any(one[place] for place in range(0, len(one), mmap.PAGESIZE))
        before, before_all = shared_bytes(), resident_bytes()
        two = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
        assert not any(two[place] for place in range(0, len(two), mmap.PAGESIZE))
        assert shared_bytes() - before < 8 * MEGA
        assert resident_bytes() - before_all > 56 * MEGA
        one.close()
        two.close()


def test_without_a_budget_nothing_is_refused():
    HostMemory(resident=lambda: 10**15).check(10**15, "anything")


def test_resident_memory_grows_with_what_is_taken():
    before = resident_bytes()
    taken = bytearray(b"x") * (64 * MEGA)
    assert resident_bytes() - before > 60 * MEGA
    del taken


@pytest.mark.usefixtures("subprocesses")
def test_settled_objects_are_no_longer_walked():
    before = gc.get_freeze_count()
    code = "import gc; from serving.snapshots.memory_budget import settle; x = [[] for _ in range(10**5)]; settle()"
    walked = f"{code}; print(len(gc.get_objects()) < 10**5, gc.get_freeze_count() > 10**5)"
    done = subprocess.run([sys.executable, "-c", walked], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert gc.get_freeze_count() == before, "the tests' own process is left alone"


class Engine:
    """Makes parts whose memory a test can see."""

    def __init__(self, log):
        self.log = log

    def load(self, _directory, manifest, _settings):
        self.log.append(f"load {manifest.producer['name']}")
        return Part(self.log)


class Part:
    signature = Signature(inputs=(), outputs=())
    size_bytes = 400 * MEGA
    rows_are_independent = True

    def __init__(self, log):
        self.log = log

    def warm_up(self):
        self.log.append("warm")

    def close(self):
        self.log.append("close")

    def stage(self, _late):
        return None


class Store:
    def fetch(self, uri, directory):
        manifest = manifest_of(uri)
        target = directory / manifest.digest
        target.mkdir(parents=True, exist_ok=True)
        (target / "snapshot.json").write_text(manifest.model_dump_json())
        return target


def manifest_of(name):
    files = (file("weights.safetensors", 400 * MEGA),)
    signature = Signature(inputs=(), outputs=())
    return SnapshotManifest(engine="fake", signature=signature, files=files, producer={"name": name})


def hold(number):
    name = f"s{number}"
    return HostedSnapshot(
        model="m",
        part="p",
        engine="fake",
        snapshot=number,
        digest=manifest_of(name).digest,
        uri=name,
        generations=(number,),
    )


@pytest.fixture
async def limited(tmp_path, monkeypatch):
    """A loader whose budget has room for one snapshot; and what its engine did."""
    monkeypatch.setattr("serving.host.loader._RETRY_SECONDS", (0.01,) * 100_000)
    log, settled = [], []
    held = HeldSnapshots()
    memory = HostMemory(1000 * MEGA, resident=lambda: 200 * MEGA)
    engine = Engine(log)
    loader = Loader(held, Store, tmp_path, lambda _: engine, memory=memory, before_serving=lambda: settled.append(1))
    yield loader, held, log, settled
    loader.close()


async def test_a_snapshot_beyond_the_budget_waits_for_room_while_the_former_one_answers(limited):
    loader, held, log, settled = limited
    loader.hold([hold(1)])
    await eventually(lambda: held.ready)
    loader.hold([hold(1), hold(2)])
    await eventually(lambda: len(held.loading) == 1)
    assert [h.generation for h in held.ready] == [1]
    assert held.lease("m", "p", 1).snapshot == 1
    assert log == ["load s1", "warm"]
    assert settled == [1]


async def test_it_loads_once_the_former_one_is_gone(limited):
    loader, held, log, _ = limited
    loader.hold([hold(1)])
    await eventually(lambda: held.ready)
    loader.hold([hold(2)])
    await eventually(lambda: [h.generation for h in held.ready] == [2])
    assert log == ["load s1", "warm", "close", "load s2", "warm"]


async def test_a_snapshot_that_finds_no_room_fails_with_the_figures(limited, monkeypatch):
    monkeypatch.setattr("serving.host.loader._RETRY_SECONDS", (0.001,))
    loader, held, _, _ = limited
    loader.hold([hold(1), hold(2)])
    await eventually(lambda: held.failures)
    (failure,) = held.failures
    assert (failure.snapshot, failure.code) == (2, "MemoryExceeded")
    assert "600.0 MB of the host's 1,000.0 MB are in use" in failure.message
    assert [h.generation for h in held.ready] == [1]


PASSES = """
import resource, sys
import numpy as np
from serving.snapshots.memory_budget import keep_freed
if "keep" in sys.argv:
    keep_freed()
def a_pass():
    held = [np.ones(2**20, np.uint8) for _ in range(16)]
for _ in range(3):
    a_pass()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    a_pass()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the options")
@pytest.mark.usefixtures("subprocesses")
def test_what_a_pass_frees_serves_the_next_without_new_pages():
    def faults(*arguments):
        command = [sys.executable, "-c", PASSES, *arguments]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 50 < faults()
