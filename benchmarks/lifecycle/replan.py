"""A thousand models take their places in a new plan, through real Temporal, beside what the engine itself can do here.

    python -m benchmarks.lifecycle.replan  (--models 1000 --window 32 --json out.json)

A real Temporal server with a file database, a worker in this process, a SQLite record, an infrastructure in memory
whose replicas are ready at once: what is measured is the control plane. Every model serves in one of two regions; then
that region's supply goes, a replan is asked for, and each model moves: its entity, a lifecycle run, a transition of one
wave. The ceiling is the same workflows for a third as many models, with activities that answer at once and touch
nothing: what engine and worker take for the same commands. Both in one run, in this order: ceiling, replan, ceiling.
"""

import argparse
import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.service import RPCError

from activities.planning.policy import PlanningPolicy
from activities.planning.solver import ThreadSolver
from benchmarks.lifecycle.drawn_plan import adopt_drawn_plan
from benchmarks.lifecycle.figures import report
from benchmarks.lifecycle.instant import InstantInfrastructure
from ipnext import names
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.errors import Unavailable
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.model.fleet import FleetSpec, SupplyItem
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import ChangeBegun, Done, ProgressInput, RecordInput, StageInput
from ipnext.model.lifecycle.changes.takeover import ModelAsked, OpenChanges
from ipnext.model.lifecycle.changes.transition_run import TransitionPlanned, WaveInput, WaveResult
from ipnext.model.lifecycle.preparation import PreparationInput, PreparationResult
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.manifest.freeze import FreezeAnswer
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import ReplicaCount, TrafficShare
from ipnext.model.registry.registry import GenerationState, Signature, SnapshotManifest, SnapshotSource, TensorSpec
from ipnext.store.store import Store
from ipnext.temporal import connect, submit_change, wake_replan
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

HOME, AWAY = "us-east", "eu-west"
UNDER_WAY = 64
"""Moves that are under way at the same time while the ceiling is measured."""
PATIENCE_SECONDS = 1800.0


def fleet(models: int, *, home: float) -> FleetSpec:
    """Two regions; `home` is the share of its supply that the first one has."""
    units = float(models)
    supply = (
        SupplyItem(region=HOME, hardware="cpu", units=units * home, unit_cost=1.0),
        SupplyItem(region=AWAY, hardware="cpu", units=units, unit_cost=1.1),
    )
    return FleetSpec(regions=(HOME, AWAY), rtt_ms=((1, 76), (76, 1)), hardware=("cpu",), supply=supply)


def manifest(name: str) -> ModelManifest:
    """One part, one replica."""
    return ModelManifest.model_validate(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": name, "owner": "bench"},
            "spec": {
                "parts": [{"name": "dense", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}],
                "demand": [{"region": HOME, "qps": 50}],
                "latencyToleranceMs": 100,
                "rollout": {"canary": 1, "maxStep": 1},
            },
        }
    )


def published(store: Store, models: Sequence[str]) -> None:
    """Record generation 1 of each model, and make it desired; nothing runs yet."""
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    described = SnapshotManifest(engine="torch", signature=Signature(inputs=(tensor,), outputs=(tensor,)), files=())
    source = SnapshotSource(uri="file:///nowhere", manifest=described)
    with store.begin() as repository:
        repository.put_fleet(fleet(len(models), home=1.0), expected_version=None)
        for name in models:
            repository.put_model(manifest(name), expected_version=None)
            change = repository.publish(name, {"dense": source}, change_id=f"{name}-first")
            repository.update_change(change.id, state=ChangeState.DONE)
            repository.set_generation_state(name, 1, GenerationState.SERVING)
            repository.update_model(name, serving_generation=1, target_generation=1, observed_generation=1)
    _adopt(store, models)


def _adopt(store: Store, models: Sequence[str]) -> None:
    """Adopt a plan of the whole fleet that has every model at home."""
    rows = [ReplicaCount(model=name, part="dense", region=HOME, hardware="cpu", count=1) for name in models]
    shares = [TrafficShare.model_validate({"model": n, "from": HOME, "to": HOME, "fraction": 1.0}) for n in models]
    home = fleet(len(models), home=1.0)
    adopt_drawn_plan(store, home, [manifest(n) for n in models], rows, shares, cost_per_hour=float(len(models)))


def canned(done: Callable[[str], None]) -> list[Callable[..., Any]]:
    """Return the activities of a move that answer at once; `done` is called with the model at each end."""
    good = WaveResult(ok=True)

    def answering(name: str, given: type, answer: Any) -> Callable[..., Any]:
        def work(argument: Any) -> Any:
            if name == "finish_change":
                done(argument.model)
            return answer

        work.__annotations__ = {"argument": given, "return": type(answer)}
        return activity.defn(name=name, no_thread_cancel_exception=True)(work)

    planned = TransitionPlanned(transition_id="", waves=1)

    def plan(stage: StageInput) -> TransitionPlanned:
        return planned.model_copy(update={"transition_id": stage.change_id})

    def prepare(preparation: PreparationInput) -> PreparationResult:
        return PreparationResult(thawed=FreezeAnswer(), transition=plan(preparation.stage))

    return [
        activity.defn(name="prepare_change", no_thread_cancel_exception=True)(prepare),
        answering("open_changes", ModelAsked, OpenChanges()),
        answering("begin_change", ProgressInput, ChangeBegun(generation=1, revision=1)),
        activity.defn(name="plan_transition", no_thread_cancel_exception=True)(plan),
        answering("freeze_of", StageInput, FreezeAnswer()),
        answering("ensure_capacity", WaveInput, good),
        answering("shift_traffic", WaveInput, good),
        answering("check_gate", WaveInput, good),
        answering("release_capacity", WaveInput, good),
        answering("finish_change", RecordInput, Done()),
    ]


async def ceiling(client: Client, models: Sequence[str], turn: str) -> float:
    """Return the moves a second of the same workflows with activities that do nothing."""
    loop = asyncio.get_running_loop()
    ended = {f"{turn}-{name}": asyncio.Event() for name in models}

    def done(name: str) -> None:
        loop.call_soon_threadsafe(ended[name].set)

    async def move(name: str) -> None:
        async with slots:
            await submit_change(client, _move(name))
            await ended[name].wait()

    slots = asyncio.Semaphore(UNDER_WAY)
    async with (
        worker_of(client, read_devfile().group(names.LIFECYCLE_QUEUE), canned(done), read_devfile().timing),
        worker_of(client, read_devfile().group(names.URGENT_QUEUE), canned(done), read_devfile().timing),
    ):
        began = time.monotonic()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(move(name) for name in ended))
        return len(models) / (time.monotonic() - began)


def _move(name: str) -> Change:
    return Change(
        id=f"{name}-move", model=name, kind=ChangeKind.MOVE, sequence=1, plan_id="p", created_at=datetime.now(UTC)
    )


async def replanned(client: Client, root: Path, models: Sequence[str], window: int) -> float:
    """Seconds of the moves.

    Bring all models up at home, take home's supply away, replan, and wait until every model has moved.
    """
    store = Store.open(f"sqlite:///{root}/ipnext.db")
    store.migrate()
    published(store, models)
    infrastructure = InstantInfrastructure((HOME, AWAY))
    engine = engine_of(lambda: client, asyncio.get_running_loop())
    policy = PlanningPolicy(window=window)
    ours = lifecycle_activities(store, FileArtifactStore(root / "artifacts"), infrastructure, engine, policy=policy)
    theirs = planner_activities(store, ThreadSolver(), policy)
    devfile = read_devfile()
    async with (
        worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours, devfile.timing),
        worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing),
        worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs, devfile.timing),
    ):
        await _asked(client, store, "up")
        with store.begin() as repository:
            repository.put_fleet(fleet(len(models), home=0.0), expected_version=None)
        away = await _asked(client, store, "away")
    where = {share.to for name in models for share in _shares(store, name)}
    store.close()
    assert where == {AWAY}, where
    return away


def _shares(store: Store, name: str) -> Sequence[Any]:
    with store.read() as repository:
        return [share for table in repository.routes(name) for share in table.shares if table.region == HOME]


async def _asked(client: Client, store: Store, replan_id: str) -> float:
    """Seconds that the moves of a replan took, its planning not counted."""
    with store.begin() as repository:
        repository.add_replan(replan_id, "manual")
    await wake_replan(client)
    moving = None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with store.read() as repository:
            found = repository.replan(replan_id)
        if moving is None and found.state in {ReplanState.MOVING, ReplanState.ADOPTED}:
            moving = time.monotonic()
        if found.state.final:
            assert found.state in {ReplanState.ADOPTED, ReplanState.KEPT}, found
            return time.monotonic() - (moving or time.monotonic())
        await asyncio.sleep(0.05)
    msg = f"replan {replan_id} did not end"
    raise TimeoutError(msg)


@asynccontextmanager
async def server(root: Path) -> AsyncIterator[Client]:
    """Run a Temporal server as `ipnext dev` starts it."""
    config = read_devfile().temporal.model_copy(update={"port": free_port()})
    command = server_command(config, binary=temporal_binary(), state=root)
    with (root / "temporal.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=tether())  # noqa: ASYNC220, PLW1509
    try:
        for _ in range(300):
            try:
                client = await connect(address=f"127.0.0.1:{config.port}")
                await client.count_workflows("IPnextModel = 'x'")
                break
            except (RPCError, Unavailable):
                await asyncio.sleep(0.1)
        yield client
    finally:
        process.terminate()
        process.wait(30)


async def measured(count: int, window: int) -> dict[str, float]:
    """All figures of one run."""
    models = [f"model-{number:05}" for number in range(count)]
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        async with server(root) as client:
            some = models[: max(1, count // 3)]
            before = await ceiling(client, some, "before")
            seconds = await replanned(client, root, models, window)
            after = await ceiling(client, some, "after")
    best = max(before, after)
    rate = count / seconds
    return {
        "models": count,
        "window": window,
        "engine's ceiling before, moves/s": before,
        "engine's ceiling after, moves/s": after,
        "replan, moves/s": rate,
        "replan / ceiling": rate / best,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    found = asyncio.run(measured(given.models, given.window))
    report("a fleet takes its places in a new plan", found, given.json)


if __name__ == "__main__":
    main()
