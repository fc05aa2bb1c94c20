"""Fetching in a process of its own: the same answers and errors as the store's, and an end with its host."""

import json
import os
import signal
import stat
import subprocess
import sys

import psutil
import pytest

from ipnext.errors import ArtifactDigestMismatch, ArtifactMissing, Forbidden, InsufficientStorage, Unavailable
from ipnext.process.store_environment import write_store_environment
from serving.snapshots.fetch_process import FetchingProcess
from tests.processes import runs
from tests.serving.confinement.test_landlock import needs_landlock
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.trust


@pytest.fixture
def fetching(published, subprocesses):
    process = FetchingProcess(published.store.uri)
    yield process
    process.close()


def test_a_snapshot_is_laid_out(fetching, published, tmp_path):
    source = published.sources["dense", 1]
    directory = fetching.fetch(source.uri, tmp_path)
    assert directory == tmp_path / source.manifest.digest
    assert {file.path for file in source.manifest.files} < {path.name for path in directory.iterdir()}


def test_errors_come_as_the_store_raises_them(published, damaged_store, fetching, tmp_path):
    source = published.sources["dense", 1]
    missing = source.uri.replace(source.manifest.digest, "0" * 64)
    with pytest.raises(ArtifactMissing, match="never committed"):
        fetching.fetch(missing, tmp_path)
    damaged = FetchingProcess(damaged_store)
    with pytest.raises(ArtifactDigestMismatch, match=r"weights\.safetensors"):
        damaged.fetch(source.uri.replace(published.store.uri, damaged_store), tmp_path)
    damaged.close()


@pytest.mark.usefixtures("subprocesses")
def test_what_would_leave_less_than_the_reserve_is_not_fetched(published, tmp_path):
    fetching = FetchingProcess(published.store.uri, disk_reserve_bytes=2**60)
    try:
        with pytest.raises(InsufficientStorage, match=f"reserve of {2**60} bytes"):
            fetching.fetch(published.sources["dense", 1].uri, tmp_path)
        assert list(tmp_path.iterdir()) == []
    finally:
        fetching.close()


def test_a_process_that_was_killed_is_unavailable_once_and_then_another_one(fetching, published, tmp_path):
    source = published.sources["dense", 1]
    fetching.start()
    fetching._process.kill()
    fetching._process.wait()
    with pytest.raises(Unavailable, match="ended"):
        fetching.fetch(source.uri, tmp_path)
    assert fetching.fetch(source.uri, tmp_path).name == source.manifest.digest


def test_it_steps_back_behind_requests(fetching, published, tmp_path):
    fetching.fetch(published.sources["dense", 1].uri, tmp_path)
    assert psutil.Process(fetching._process.pid).nice() > psutil.Process().nice()


def test_it_fetches_into_the_cache_of_its_host_only(published, tmp_path, subprocesses):
    source = published.sources["dense", 1]
    fetching = FetchingProcess(published.store.uri, into=tmp_path / "cache")
    with pytest.raises(Forbidden, match=r"is not the cache of this host; allowed: .*/cache'"):
        fetching.fetch(source.uri, tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()
    assert fetching.fetch(source.uri, tmp_path / "cache").parent == tmp_path / "cache"
    fetching.close()


def test_a_cache_that_is_opened_to_a_group_is_readable_to_it(published, tmp_path, fetching):
    source = published.sources["dense", 1]
    (tmp_path / "cache").mkdir(mode=0o750)
    (tmp_path / "cache").chmod(0o2750)
    directory = fetching.fetch(source.uri, tmp_path / "cache")
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o777 for path in (directory, *directory.rglob("*"))}
    assert modes == {0o750, 0o640}


FORKING = """
import sys
from pathlib import Path
from serving.snapshots.fetch_process import FetchingProcess
fetching = FetchingProcess(sys.argv[1])
fetching.fork()
first = fetching._process.pid
print(fetching.fetch(sys.argv[2], Path(sys.argv[3])).name)
fetching._process.kill()
try:
    fetching.fetch(sys.argv[2], Path(sys.argv[3]))
except Exception as error:
    print(type(error).__name__)
print(fetching.fetch(sys.argv[2], Path(sys.argv[3])).name)
print(fetching._process.pid != first)
fetching.close()
"""


@pytest.mark.usefixtures("subprocesses")
def test_one_that_is_forked_fetches_and_is_replaced_too(published, tmp_path):
    source = published.sources["dense", 1]
    command = [sys.executable, "-c", FORKING, published.store.uri, source.uri, str(tmp_path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True)
    assert answer.stdout.split() == [source.manifest.digest, "Unavailable", source.manifest.digest, "True"]


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("how", ["start", "fork"])
def test_it_ends_with_whoever_started_it(published, how):
    code = (
        "import sys, time; from serving.snapshots.fetch_process import FetchingProcess; "
        f"f = FetchingProcess(sys.argv[1]); f.{how}();"
        "print(f._process.pid, flush=True); time.sleep(60)"
    )
    host = subprocess.Popen([sys.executable, "-c", code, published.store.uri], stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(host.stdout.readline()))
    os.kill(host.pid, signal.SIGKILL)
    host.wait()
    host.stdout.close()
    until(lambda: not runs(child))


HOST_OF_FETCHES = """
import json, os, sys
from pathlib import Path
from serving.confinement.landlock import Confinement, confine
from serving.snapshots import fetch_process
from serving.snapshots.fetch_process import FetchingProcess

class Store:
    def fetch(self, uri, directory):
        return Path(os.environ.get("AWS_SECRET_ACCESS_KEY", "none"))

fetch_process.open_store = lambda *_, **__: Store()
file = Path(sys.argv[1])
fetching = FetchingProcess("s3://bucket/store", store_environment=file)
fetching.fork()
confine(Confinement.REQUIRED, readable=[])
try:
    told = file.read_text()
except OSError as error:
    told = type(error).__name__
print(json.dumps({
    "the process that fetches": str(fetching.fetch("s3://bucket/store/snapshots/1", Path("/cache"))),
    "the host": os.environ.get("AWS_SECRET_ACCESS_KEY", "none"),
    "the host reads": told,
}))
fetching.close()
"""


@needs_landlock
@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_fetches_has_the_stores_credentials_and_its_confined_host_has_none(tmp_path):
    file = tmp_path / "store-environment.json"
    write_store_environment(file, {"AWS_SECRET_ACCESS_KEY": "of-the-store"})
    command = [sys.executable, "-c", HOST_OF_FETCHES, str(file)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert json.loads(ran.stdout or "{}") == {
        "the process that fetches": "of-the-store",
        "the host": "none",
        "the host reads": "PermissionError",
    }, ran.stderr
