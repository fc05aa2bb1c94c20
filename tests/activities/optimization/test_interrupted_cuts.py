"""An optimization that ends between two cuts: the next attempt makes the same bytes, and nothing half-written stays."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest
from temporalio.exceptions import CancelledError
from temporalio.testing import ActivityEnvironment

from activities.optimization.activities import OptimizationActivities
from activities.runtime.scratch import LEFT_SECONDS
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from tests.activities.optimization.in_process import SPLIT, WHOLE, cut, derive, export_ranker

MODEL = "ranker"
STAGE = StageInput(model=MODEL, change_id="c1", kind=ChangeKind.PUBLISH, generation=1)
ON_SMALL = {"quantize": {"embeddings": "int8", "hardware": ["small"]}}


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """The place of scratch directories."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture
def houses(kit, tmp_path, migrated):
    """Builds houses, each with its own store and artifacts."""
    built = []

    def build(name):
        (tmp_path / name).mkdir()
        built.append(kit.House(tmp_path / name, migrated))
        built[-1].apply_fleet()
        return built[-1]

    yield build
    for each in built:
        each.close()


def snapshots(house):
    """Part and number -> digest, hardware kinds."""
    with house.store.read() as unit:
        return {(one.part, one.number): (one.digest, one.hardware) for one in unit.snapshots(MODEL)}


def layout(house):
    with house.store.read() as unit:
        return unit.generation(MODEL, 1).layout


def stored(house):
    """The files of the artifact store."""
    root = house.root / "artifacts"
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def optimize(house, cutter, deriver, environment=None):
    activities = OptimizationActivities(house.store, house.artifacts, cutter=cutter, deriver=deriver)
    return (environment or ActivityEnvironment()).run(activities.optimize_generation, STAGE)


@pytest.fixture
def derive_once(tmp_path):
    """Derives once, and copies that for the next house: the report in the derived snapshot has measured times."""
    reports = []

    def call(source, step, out, beat):
        if not reports:
            reports.append(derive(source, step, tmp_path / "derived", beat))
        shutil.copytree(tmp_path / "derived", out)
        return reports[0]

    return call


def test_an_attempt_after_a_cancellation_between_two_cuts_stores_the_same_bytes(houses, tmp_path, scratch, derive_once):
    exported = export_ranker(tmp_path / "whole")
    environment, cuts = ActivityEnvironment(), []

    def publish(house):
        house.apply_split(MODEL, SPLIT, parts=[WHOLE], optimization=[ON_SMALL])
        with house.store.begin() as unit:
            unit.publish(MODEL, {"whole": ingest_directory(house.artifacts, exported)}, change_id="c1")
        return house

    def cancelled_at_the_second(snapshot, policy, out, beat):
        cuts.append(policy)
        if len(cuts) > 1:
            environment.cancel()
            beat("cutting")
        return cut(snapshot, policy, out, beat)

    whole, broken = publish(houses("whole-run")), publish(houses("broken-run"))
    with pytest.raises(CancelledError):
        optimize(broken, cancelled_at_the_second, derive_once, environment)
    assert [part for part, _ in snapshots(broken)].count("sparse") == 1, "the first cut is stored"
    assert (layout(broken), list(scratch.iterdir())) == (None, [])
    assert not optimize(broken, cut, derive_once).refused
    optimize(whole, cut, derive_once)
    assert layout(broken).by_hardware["small"].segments == {"sparse": 2}
    assert (layout(broken), snapshots(broken)) == (layout(whole), snapshots(whole))
    assert stored(broken) == stored(whole)
    assert list(scratch.iterdir()) == []


@pytest.fixture
def killed(houses, kit, subprocesses):
    """A house whose worker was killed between the two cuts of generation 1."""
    house = houses("killed")
    house.apply_split(MODEL, kit.BY_TABLE, parts=[WHOLE], optimization=[ON_SMALL])
    house.publish_whole(MODEL, 1, change_id="c1")
    program = [sys.executable, "-m", "tests.activities.optimization.killed_worker", house.root, MODEL, "c1"]
    assert subprocess.run(program, check=False).returncode == -signal.SIGKILL
    return house


def test_the_attempt_after_a_killed_worker_ends_as_if_nothing_had_happened(killed, houses, kit, scratch):
    assert (layout(killed), len(list(scratch.iterdir()))) == (None, 1)
    for left in scratch.iterdir():
        os.utime(left, (0, left.stat().st_mtime - LEFT_SECONDS))
    assert not optimize(killed, killed.cutter, killed.deriver).refused
    whole = houses("whole-run")
    whole.apply_split(MODEL, kit.BY_TABLE, parts=[WHOLE], optimization=[ON_SMALL])
    whole.publish_whole(MODEL, 1, change_id="c1")
    optimize(whole, whole.cutter, whole.deriver)
    assert (layout(killed), snapshots(killed)) == (layout(whole), snapshots(whole))
    assert stored(killed) == stored(whole)
    assert (killed.deriver.calls, list(scratch.iterdir())) == ([], []), "the finished step is not repeated"
