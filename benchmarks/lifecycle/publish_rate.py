"""Publishes of many models at once, through real Temporal, beside what the engine itself can do here.

    python -m benchmarks.lifecycle.publish_rate  (--models 40 --json out.json)

A real Temporal server with a file database, one worker in this process, a record in SQLite or PostgreSQL, real
snapshots of two torch parts in a directory, and an infrastructure in memory whose replicas are ready at once: what is
measured is the control plane. Each model serves its first generation in two regions; then a second one of all of them
is published at once. A transition has one wave. The ceiling is a move of as many models by the same workflows with
activities that answer at once and touch nothing (benchmarks/lifecycle/replan.py). All in one run, in this order:
ceiling, publishes with each engine of the store, ceiling.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import uvloop
from temporalio.client import Client
from torch import Tensor, nn

from activities.planning.policy import PlanningPolicy
from activities.planning.solver import ThreadSolver
from benchmarks.databases import ENGINES, empty_databases
from benchmarks.lifecycle.figures import report
from benchmarks.lifecycle.instant import InstantInfrastructure
from benchmarks.lifecycle.replan import AWAY, HOME, PATIENCE_SECONDS, ceiling, fleet, server
from ipnext import names
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.devfile import read_devfile
from ipnext.model.lifecycle.changes.change import Change, ChangeState
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import SnapshotSource
from ipnext.process.garbage_collection import collect_rarely
from ipnext.store.store import Store
from ipnext.temporal import submit_change
from serving.export import export_model
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

PARTS = ("sparse", "dense")
LOOK_SECONDS = 0.1
"""The driver shares its process with the worker: a look takes from what is measured, and 0.02 s took a tenth of it."""


GRAPH = {
    "nodes": [
        {"name": "sparse", "part": "sparse", "inputs": {"x": "request.x"}},
        {"name": "dense", "part": "dense", "inputs": {"x": "sparse.y"}},
    ],
    "outputs": {"score": "dense.y"},
}


class Layer(nn.Module):
    """x [B, 4] -> y [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the layer's output."""
        return {"y": self.weights(x)}


def manifest(name: str) -> ModelManifest:
    """Two parts, a replica of each in two regions, one wave."""
    parts = [{"name": part, "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]} for part in PARTS]
    return ModelManifest.model_validate(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": name, "owner": "bench"},
            "spec": {
                "parts": parts,
                "graph": GRAPH,
                "demand": [{"region": HOME, "qps": 50}, {"region": AWAY, "qps": 50}],
                "latencyToleranceMs": 50,
                "rollout": {"canary": 1, "maxStep": 1, "holdSeconds": 0},
            },
        }
    )


def exported(artifacts: FileArtifactStore, root: Path, number: int) -> dict[str, SnapshotSource]:
    """Export a snapshot of each part."""
    torch.manual_seed(number)
    found = {}
    for part in PARTS:
        directory = root / "exported" / f"{part}-{number}"
        export_model(Layer().eval(), {"x": torch.zeros(2, 4)}, directory)
        found[part] = ingest_directory(artifacts, directory)
    return found


async def published(
    client: Client, store: Store, models: Sequence[str], sources: Mapping[str, SnapshotSource]
) -> float:
    """Seconds until a publish of each model, all asked for at once, has ended."""
    changes = []
    for name in models:
        with store.begin(name) as repository:
            changes.append(repository.publish(name, dict(sources), change_id=uuid.uuid4().hex))
    began = time.monotonic()
    await asyncio.gather(*(submit_change(client, change) for change in changes))
    async with asyncio.timeout(PATIENCE_SECONDS):
        for change in changes:
            while not (state := _state(store, change)).final:  # noqa: ASYNC110 - looking costs what is measured
                await asyncio.sleep(LOOK_SECONDS)
            assert state is ChangeState.DONE, state
    return time.monotonic() - began


def _state(store: Store, change: Change) -> ChangeState:
    with store.read() as repository:
        return repository.change(change.id).state


async def rolled_out(
    client: Client, database_url: str, root: Path, models: Sequence[str], generations: int
) -> list[float]:
    """Seconds of each generation after the first: a publish of every model at once."""
    store = Store.open(database_url)
    store.migrate()
    with store.begin() as repository:
        repository.put_fleet(fleet(8 * len(models), home=1.0), expected_version=None)
        for name in models:
            repository.put_model(manifest(name), expected_version=None)
    artifacts = FileArtifactStore(root / "artifacts")
    engine = engine_of(lambda: client, asyncio.get_running_loop())
    ours = lifecycle_activities(store, artifacts, InstantInfrastructure((HOME, AWAY)), engine)
    theirs = planner_activities(store, ThreadSolver(), PlanningPolicy())
    devfile = read_devfile()
    async with (
        worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours, devfile.timing),
        worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
        worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs, devfile.timing),
    ):
        taken = [
            await published(client, store, models, exported(artifacts, root, number))
            for number in range(generations + 1)
        ]
    store.close()
    return taken[1:]


async def measured(count: int, generations: int, engines: Sequence[str]) -> dict[str, Any]:
    """All figures of one run. The models of each engine have names of their own."""
    found: dict[str, Any] = {"models": count}
    with tempfile.TemporaryDirectory() as place, empty_databases(list(engines)) as empty:
        root = Path(place)
        async with server(root) as client:
            collect_rarely()  # as a worker does
            moved = [f"model-{number:05}" for number in range(count)]
            before = await ceiling(client, moved, "before")
            taken = {}
            for engine in engines:
                models = [f"{engine.lower()}-{number:05}" for number in range(count)]
                cpu = time.process_time()
                seconds = await rolled_out(client, empty(engine, "bench"), root / engine, models, generations)
                taken[engine] = (seconds, (time.process_time() - cpu) / count / (generations + 1))
            after = await ceiling(client, moved, "after")
    found |= {"Temporal's ceiling before, moves/s": before, "Temporal's ceiling after, moves/s": after}
    for engine, (seconds, cpu) in taken.items():
        rate = count / statistics.median(seconds)
        found |= {
            f"{engine}: publishes/s, median": rate,
            f"{engine}: publishes/s, most": count / min(seconds),
            f"{engine}: publishes / ceiling": rate / max(before, after),
            f"{engine}: CPU of this process for each, ms": 1e3 * cpu,
        }
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as a worker does
        found = runner.run(measured(given.models, given.generations, given.engines))
    report("publishes of many models at once", found, given.json)


if __name__ == "__main__":
    main()
