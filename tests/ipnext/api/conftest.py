"""The whole API in one process: real SQLite, real file artifacts, the fakes of infrastructure and workflow engine."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ipnext.api.app import create_app
from ipnext.api.lifecycle import MemoryLifecycle
from ipnext.artifacts.file_store import FileArtifactStore
from ipnext.infra.memory import MemoryInfrastructure
from ipnext.model.deployment import Deployment, DeploymentKey, HeldSnapshot, RouteShare, RouteTable, ServedGeneration
from ipnext.model.lifecycle import ChangeState
from ipnext.model.manifest import ModelManifest
from ipnext.model.plan import Plan, PlanDiff, Problem, SolverInfo, Unmet
from ipnext.model.registry import ArtifactFile, GenerationState, Signature, SnapshotManifest, TensorSpec
from ipnext.model.status import ConditionType, Reason
from ipnext.settings import PlatformSettings
from ipnext.store.records import PlanRecord
from ipnext.store.session import Store
from ipnext.store.unit import utc_now

FLEET: dict[str, Any] = {
    "apiVersion": "ipnext/v1",
    "kind": "Fleet",
    "spec": {
        "regions": ["eu", "us"],
        "rttMs": [[1, 90], [90, 1]],
        "hardware": ["cpu", "gpu"],
        "supply": [
            {"region": "eu", "hardware": "cpu", "units": 8, "unitCost": 1},
            {"region": "us", "hardware": "cpu", "units": 4, "unitCost": 1},
        ],
    },
}


def model_document(name: str = "ranker", *, qps: float = 10) -> dict[str, Any]:
    """A model of two parts."""
    hardware = [{"kind": "cpu", "units": 1, "qps": 100}]
    return {
        "apiVersion": "ipnext/v1",
        "kind": "Model",
        "metadata": {"name": name, "owner": "search"},
        "spec": {
            "parts": [{"name": "sparse", "hardware": hardware}, {"name": "dense", "hardware": hardware}],
            "graph": {
                "nodes": [
                    {"name": "sparse", "part": "sparse", "inputs": {"ids": "request.ids"}},
                    {"name": "dense", "part": "dense", "inputs": {"x": "sparse.output"}},
                ],
                "outputs": {"score": "dense.output"},
            },
            "demand": [{"region": "eu", "qps": qps}],
        },
    }


def snapshot_manifest(*contents: bytes) -> SnapshotManifest:
    """A snapshot whose files are these bytes."""
    files = tuple(
        ArtifactFile(path=f"file-{i}", sha256=hashlib.sha256(c).hexdigest(), size_bytes=len(c))
        for i, c in enumerate(contents)
    )
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    signature = Signature(inputs=(tensor,), outputs=(tensor.model_copy(update={"name": "output"}),))
    return SnapshotManifest(engine="torch", signature=signature, files=files)


def write_snapshot(directory: Path, *contents: bytes) -> SnapshotManifest:
    """The same as a directory."""
    directory.mkdir(parents=True)
    manifest = snapshot_manifest(*contents)
    for file, content in zip(manifest.files, contents, strict=True):
        (directory / file.path).write_bytes(content)
    (directory / "snapshot.json").write_text(manifest.model_dump_json())
    return manifest


@dataclass
class World:
    """The API and everything behind it."""

    http: httpx.AsyncClient
    app: FastAPI
    store: Store
    artifacts: FileArtifactStore
    infrastructure: MemoryInfrastructure
    lifecycle: MemoryLifecycle
    settings: PlatformSettings
    directory: Path

    async def upload(self, *contents: bytes) -> str:
        """Upload a snapshot the way a client does; its digest."""
        manifest = snapshot_manifest(*contents)
        for file, content in zip(manifest.files, contents, strict=True):
            (await self.http.put(f"/v1/artifacts/blobs/{file.sha256}", content=content)).raise_for_status()
        answer = await self.http.post("/v1/artifacts/snapshots", json=manifest.model_dump(mode="json"))
        answer.raise_for_status()
        return str(answer.json()["digest"])

    async def publish(self, salt: str, *, model: str = "ranker", change_id: str | None = None) -> httpx.Response:
        """Publish both parts of the ranker."""
        parts = {part: {"digest": await self.upload(f"{part}{salt}".encode())} for part in ("sparse", "dense")}
        body = {"parts": parts} | ({"changeId": change_id} if change_id else {})
        return await self.http.post(f"/v1/models/{model}/publish", json=body)

    async def apply(self) -> "World":
        """Apply a fleet and the ranker."""
        (await self.http.put("/v1/fleet", json=FLEET)).raise_for_status()
        (await self.http.put("/v1/models/ranker", json=model_document())).raise_for_status()
        return self

    async def eventually(self, question: Callable[[], bool], *, seconds: float = 5.0) -> None:
        """Let the outbox work until the answer is yes."""
        deadline = time.monotonic() + seconds
        while not question():
            assert time.monotonic() < deadline, "it never became true"
            await asyncio.sleep(0.01)


def serve(store: Store, infrastructure: MemoryInfrastructure, *, generation: int, model: str = "ranker") -> None:
    """What the end of a rollout leaves behind: deployments, routes, conditions, a finished change."""
    with store.begin() as unit:
        snapshots = unit.generation(model, generation).snapshots
        change = next(c for c in unit.changes(model) if c.generation == generation)
        for part, number in snapshots.items():
            snapshot = unit.snapshot(model, part, number)
            key = DeploymentKey(model=model, part=part, region="eu", hardware="cpu")
            held = HeldSnapshot(snapshot=number, digest=snapshot.digest, uri=snapshot.uri, generations=(generation,))
            deployment = Deployment(key=key, replicas=2, engine="torch", units=1, qps=100, holds=(held,))
            unit.put_deployment(deployment)
            infrastructure.apply(deployment)
        graph = ModelManifest.model_validate(model_document(model)).spec.graph
        assert graph is not None
        served = ServedGeneration(generation=generation, graph=graph, snapshots=dict(snapshots))
        share = RouteShare(to="eu", generation=generation, fraction=1.0)
        table = RouteTable(model=model, region="eu", revision=generation, shares=(share,), served=(served,))
        unit.put_route(table)
        infrastructure.route(table)
        unit.set_generation_state(model, generation, GenerationState.SERVING)
        unit.update_model(model, serving_generation=generation, target_generation=generation, observed_generation=1)
        for kind in ConditionType:
            reason = Reason.SERVING if kind is ConditionType.READY else Reason.SUCCEEDED
            unit.set_condition(model, kind, "True", reason)
        unit.update_change(change.id, state=ChangeState.DONE, reason=Reason.SUCCEEDED, run_id=f"run-of-{generation}")
        unit.add_event(model, "generation_serving", f"generation {generation} serves", run_id=f"run-of-{generation}")


def adopt_plan(store: Store, plan_id: str = "plan-1") -> None:
    """A plan in force that leaves some demand unserved."""
    problem = Problem(regions=("eu", "us"), rtt_ms=((1, 90), (90, 1)), hardware=("cpu",), supply=(), models=())
    unmet = Unmet(model="ranker", region="eu", qps=12.5, rules=("supply",))
    plan = Plan(
        status="feasible",
        objective=10,
        bound=9.5,
        gap=0.05,
        bound_covers="all",
        cost_per_hour=4,
        replicas=(),
        traffic=(),
        unmet=(unmet,),
        solver=SolverInfo(method="highs", seconds=0.1),
    )
    record = PlanRecord(
        id=plan_id,
        trigger="publish ranker",
        input_digest="0" * 64,
        problem=problem,
        plan=plan,
        diff=PlanDiff(moves=4, cost_per_hour_after=4),
        created_at=utc_now(),
    )
    with store.begin() as unit:
        before = unit.plan_in_force()
        unit.save_plan(record)
        unit.adopt_plan(plan_id, expected=None if before is None else before.id)


@pytest.fixture
def settings(tmp_path: Path) -> PlatformSettings:
    (tmp_path / "allowed").mkdir()
    return PlatformSettings(artifact_roots=(tmp_path / "allowed",), max_upload_bytes=4096)


@pytest.fixture
async def world(tmp_path: Path, settings: PlatformSettings) -> AsyncIterator[World]:
    store = Store.open(f"sqlite:///{tmp_path}/ipnext.db")
    store.migrate()
    artifacts = FileArtifactStore(tmp_path / "artifacts")
    infrastructure = MemoryInfrastructure(["eu", "us"])
    lifecycle = MemoryLifecycle()
    app = create_app(store, artifacts, infrastructure, lifecycle, settings)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as http,
    ):
        yield World(http, app, store, artifacts, infrastructure, lifecycle, settings, tmp_path)
    store.close()


@pytest.fixture
async def applied(world: World) -> World:
    """With a fleet and the ranker."""
    return await world.apply()
