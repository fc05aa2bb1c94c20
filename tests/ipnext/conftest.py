"""The whole API in one process: real SQLite, real file artifacts, the fakes of infrastructure and workflow engine."""

import asyncio
import contextlib
import hashlib
import pickle
import shutil
import threading
from collections.abc import AsyncIterator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute, _EffectiveRouteContext, iter_route_contexts
from joserfc.jwk import RSAKey

from ipnext.access.keys import draw_key, parse_key
from ipnext.api.app import create_app
from ipnext.api.schema import Api
from ipnext.api.services.region_observer import RegionObserver
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.access.rights import ApiKey, Grant, Role
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.fleet import FleetManifest
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import (
    ModelProblem,
    PartOption,
    PartProblem,
    Plan,
    PlanDiff,
    Problem,
    RegionDemand,
    RegionSupply,
    ReplicaCount,
    SolverInfo,
    TrafficShare,
    Unmet,
)
from ipnext.model.registry.optimization import AccuracyReport, Derivatives, Measured, ReplayReport
from ipnext.model.registry.registry import (
    ArtifactFile,
    GenerationState,
    Signature,
    SnapshotManifest,
    SnapshotSource,
    SplitLayout,
    TensorSpec,
)
from ipnext.platform.admin import BY_DEV
from ipnext.settings import PlatformSettings
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import PlanEntry, PlanRecord, SolveUse
from ipnext.store.store import Store
from tests.identity_provider import Provider, rsa_key
from tests.waiting import PATIENCE_SECONDS, until


@pytest.fixture(scope="session", autouse=True)
def _routes_built_once() -> Iterator[None]:
    """FastAPI builds the models of all routes for each application: a fifth of the time of a test of the API.

    Every application includes the same routers in the same way.
    """
    build, built = _EffectiveRouteContext.from_api_route, dict[int, Any]()

    def build_once(*, original_route: APIRoute, include_context: Any) -> _EffectiveRouteContext:
        if id(original_route) not in built:
            context = build(original_route=original_route, include_context=include_context)
            built[id(original_route)] = context  # which keeps the route, too
        found: _EffectiveRouteContext = built[id(original_route)]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_EffectiveRouteContext, "from_api_route", staticmethod(build_once))
        yield


@pytest.fixture(scope="session", autouse=True)
def _schema_generated_once() -> Iterator[None]:
    """FastAPI generates the OpenAPI schema for each application: half of the time of a test that reads it.

    Applications with the same endpoints have the same schema. Each gets a copy of its own.
    """
    generate, generated = Api.openapi, dict[Hashable, bytes]()

    def generate_once(app: Api) -> dict[str, Any]:
        if app.openapi_schema is None:
            contexts = [each for each in iter_route_contexts(app.routes) if isinstance(each.original_route, APIRoute)]
            endpoints = tuple((each.path, each.endpoint) for each in contexts)
            if endpoints not in generated:
                generated[endpoints] = pickle.dumps(generate(app))
            app.openapi_schema = pickle.loads(generated[endpoints])
        return app.openapi_schema

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Api, "openapi", generate_once)
        yield


def fleet_document() -> dict[str, Any]:
    """Two regions; eu has room for eight replicas, us for four."""
    return {
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
    return {
        "apiVersion": "ipnext/v1",
        "kind": "Model",
        "metadata": {"name": name, "owner": "search"},
        "spec": {
            "parts": [
                {"name": part, "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]} for part in ("sparse", "dense")
            ],
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
        ArtifactFile(path=f"file-{i}.txt", sha256=hashlib.sha256(c).hexdigest(), size_bytes=len(c))
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
class Rooms:
    """What lies behind the API: real store and artifacts, fakes of infrastructure and workflow engine."""

    store: Store
    artifacts: FileArtifactStore
    infrastructure: MemoryInfrastructure
    lifecycle: MemoryLifecycle
    settings: PlatformSettings
    directory: Path
    admin_key: str = ""
    """Text of a key that may do everything."""

    @property
    def headers(self) -> dict[str, str]:
        """What a request of the administrator carries."""
        return {"Authorization": f"Bearer {self.admin_key}"}

    def client(self, **options: Any) -> httpx.AsyncClient:
        """A client of a new application over these rooms, which asks as the administrator."""
        transport = httpx.ASGITransport(app=self.app())
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=self.headers, **options)

    def ticket(self) -> str:
        """A ticket that logs a browser in as the administrator, as `ipnext dev` makes it."""
        parent = parse_key(self.admin_key).id
        return self.add_key("admin", Role.ADMIN, kind="ticket", parent=parent, created_by=BY_DEV)

    def add_key(
        self, name: str, role: Role, *, owner: str = "*", region: str = "*", parent: str | None = None, **fields: Any
    ) -> str:
        """Store a key; its text."""
        drawn = draw_key()
        now = datetime.now(UTC)
        given = {"created_at": now, "last_used_at": now, "created_by": "a test", "kind": "key"} | fields
        key = ApiKey(
            id=drawn.id,
            name=name,
            digest=drawn.digest,
            proof_key=drawn.proof_key,
            grants=(Grant(role=role, owner=owner, region=region),),
            **given,
        )
        with self.store.begin() as unit:
            unit.add_key(key, parent=parent)
        return drawn.text

    fleet_document = staticmethod(fleet_document)
    model_document = staticmethod(model_document)
    snapshot_manifest = staticmethod(snapshot_manifest)
    write_snapshot = staticmethod(write_snapshot)

    def app(self) -> FastAPI:
        """The application over these rooms."""
        observer = RegionObserver(self.infrastructure, keep_seconds=0)
        return create_app(
            self.store, self.artifacts, self.infrastructure, self.lifecycle, self.settings, observer=observer
        )

    def seed(self, *names: str) -> None:
        """A fleet and models, straight into the store."""
        with self.store.begin() as unit:
            unit.put_fleet(FleetManifest.model_validate(fleet_document()).spec, expected_version=None)
            for name in names:
                unit.put_model(ModelManifest.model_validate(model_document(name)), expected_version=None)

    def publish_directly(self, model: str, salt: str, *, state: ChangeState = ChangeState.QUEUED) -> int:
        """A publish past the API; the number of its generation. The outbox of a running API submits a recorded one."""
        sources = {}
        for part in ("sparse", "dense"):
            manifest = snapshot_manifest(f"{part}{salt}".encode())
            sources[part] = SnapshotSource(manifest=manifest, uri=f"file:///nowhere/{manifest.digest}")
        with self.store.begin() as unit:
            generation = unit.publish(model, sources, change_id=f"{model}-{salt}").generation or 0
            unit.update_change(f"{model}-{salt}", state=state)
            return generation

    def serve(self, generation: int, *, model: str = "ranker", replicas: int = 2) -> None:
        """What the end of a rollout leaves behind: deployments, routes, conditions, a finished change."""
        with self.store.begin() as unit:
            snapshots = dict(unit.generation(model, generation).snapshots)
            change = next(c for c in unit.changes(model) if c.generation == generation)
            for part, number in snapshots.items():
                snapshot = unit.snapshot(model, part, number)
                key = DeploymentKey(model=model, part=part, region="eu", hardware="cpu")
                held = AssignedSnapshot(
                    snapshot=number, digest=snapshot.digest, uri=snapshot.uri, generations=(generation,)
                )
                deployment = Deployment(key=key, replicas=replicas, engine="torch", units=1, qps=100, holds=(held,))
                unit.put_deployment(deployment)
                self.infrastructure.apply(deployment)
            graph = ModelManifest.model_validate(model_document(model)).spec.graph
            assert graph is not None
            served = ServedGeneration(generation=generation, graph=graph, snapshots=snapshots)
            former = unit.route(model, "eu")
            revision = 1 if former is None else former.revision + 1
            share = RouteShare(to="eu", generation=generation, fraction=1.0)
            table = RouteTable(model=model, region="eu", revision=revision, shares=(share,), served=(served,))
            unit.put_route(table)
            self.infrastructure.route(table)
            unit.set_generation_state(model, generation, GenerationState.SERVING)
            unit.update_model(model, serving_generation=generation, target_generation=generation, observed_generation=1)
            for kind in set(ConditionType) - {ConditionType.READY, ConditionType.FRESH}:
                reason = Reason.SERVING if kind is ConditionType.SERVING else Reason.SUCCEEDED
                unit.set_condition(model, kind, "True", reason)
            run = f"run-of-{generation}"
            unit.update_change(change.id, state=ChangeState.DONE, reason=Reason.SUCCEEDED, run_id=run)
            unit.add_event(model, "generation_serving", f"generation {generation} serves", run_id=run)

    def lay_out(self, generation: int, *, model: str = "ranker") -> SplitLayout:
        """What cutting leaves behind: one part of two segments. Before the generation serves."""
        segments = [
            {"name": "tower-s0", "stage": 0, "snapshot": 3, "size_bytes": 1536},
            {"name": "tower-s1", "stage": 1, "snapshot": 4, "size_bytes": 512},
        ]
        hardware = [{"kind": "cpu", "units": 1, "qps": 100}]
        names = {"name": "tower", "modules": ["bottom", "top"]}
        part = {**names, "size_bytes": 2048, "hardware": hardware, "segments": segments}
        inputs = {"ids": "request.ids"}
        nodes = [
            {"name": "tower-s0", "part": "tower-s0", "inputs": inputs},
            {"name": "tower-s1", "part": "tower-s1", "inputs": {**inputs, "x": "tower-s0.x"}},
        ]
        graph = {"nodes": nodes, "outputs": {"score": "tower-s1.score"}}
        layout = SplitLayout.model_validate(
            {
                "source": "sparse",
                "digest": "0" * 64,
                "cut": "0" * 64,
                "equal_at": [1, 64],
                "parts": [part],
                "graph": graph,
            }
        )
        with self.store.begin() as unit:
            unit.set_layout(model, generation, layout)
        return layout

    def derive(self, generation: int, part: str, *, model: str = "ranker", hardware: Sequence[str] = ()) -> None:
        """What a step leaves behind: snapshot 2 of the part, derived from its first one, for all kinds or for some."""
        measured = Measured(before=2, after=1)
        figures = {"weights_bytes": measured, "replaced_bytes": measured, "max_error": 0.1, "max_relative_error": 0.1}
        replay = ReplayReport(rows=1, source="drawn")
        with self.store.begin() as unit:
            source = unit.snapshot(model, part, 1)
            manifest = source.manifest.model_copy(update={"parent": source.digest})
            report = AccuracyReport(
                kind="quantize", settings={}, parent=source.digest, tools={}, replay=replay, **figures
            )
            derived = SnapshotSource(manifest=manifest, uri=source.uri)
            made = unit.add_derivation(source, "1" * 64, report, derived, hardware=hardware)
            numbers = {part: made.number}
            found = {"by_hardware": dict.fromkeys(hardware, numbers)} if hardware else {"parts": numbers}
            unit.set_derived(model, generation, Derivatives(steps="2" * 64, **found))

    def refuse(self, generation: int, reason: Reason, message: str, *, model: str = "ranker") -> None:
        """What a refused publish leaves behind."""
        with self.store.begin() as unit:
            change = next(c for c in unit.changes(model) if c.generation == generation)
            unit.set_generation_state(model, generation, GenerationState.REFUSED, reason=reason.value, message=message)
            unit.update_change(change.id, state=ChangeState.REFUSED, reason=reason, message=message, run_id="run-r")

    def adopt_plan(self, plan_id: str = "plan-1") -> None:
        """A plan in force that leaves some demand unserved."""
        part = PartProblem(part="dense", options=(PartOption(hardware="cpu", units=1, qps=100),))
        wishes = ModelProblem(
            model="ranker",
            owner="search",
            priority=2,
            latency_tolerance_ms=100,
            demand=(RegionDemand(region="eu", qps=400),),
            parts=(part,),
        )
        supply = (RegionSupply(region="eu", hardware="cpu", units=8, unit_cost=1),)
        problem = Problem(
            regions=("eu", "us"), rtt_ms=((1, 90), (90, 1)), hardware=("cpu",), supply=supply, models=(wishes,)
        )
        plan = Plan(
            status="feasible",
            objective=10,
            bound=9.5,
            gap=0.05,
            bound_covers="all",
            cost_per_hour=4,
            replicas=(ReplicaCount(model="ranker", part="dense", region="eu", hardware="cpu", count=4),),
            traffic=(TrafficShare(model="ranker", origin="eu", to="eu", fraction=1),),
            unmet=(Unmet(model="ranker", region="eu", qps=12.5, rules=("supply",)),),
            solver=SolverInfo(method="highs", seconds=0.1),
        )
        record = PlanRecord(
            id=plan_id,
            trigger="manual",
            input_digest="0" * 64,
            problem=problem,
            plan=plan,
            diff=PlanDiff(moves=4, cost_per_hour_after=4),
            use=SolveUse(wall_seconds=1.5, cpu_seconds=2.5, peak_memory_bytes=2**20),
            created_at=datetime.now(UTC),
        )
        with self.store.begin() as unit:
            unit.adopt_plan(PreparedPlan.of(record), expected=unit.plan_in_force_id())

    def finish_replan(
        self, replan_id: str, *, state: ReplanState = ReplanState.ADOPTED, models: Sequence[str] = (), **told: Any
    ) -> None:
        """What the workflow leaves behind: a replan that has ended, with `plan-1` as its plan."""
        with self.store.begin() as unit:
            unit.claim_replans("plan-1", run_id="run-of-replan")
            unit.list_moves("plan-1", models)
            unit.update_replans("plan-1", state=state, **told)
            assert unit.replan(replan_id).state is state

    def fail_replan(self, message: str) -> None:
        """A replan that found no plan."""
        entry = PlanEntry(
            id="replan-failed",
            trigger="schedule",
            outcome="failed",
            reason=Reason.PLANNER_FAILED,
            message=message,
            created_at=datetime.now(UTC),
        )
        with self.store.begin() as unit:
            unit.save_failure(entry)


@dataclass
class World:
    """The API in this process, asked over ASGI."""

    http: httpx.AsyncClient
    rooms: Rooms

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


@dataclass
class Live:
    """The API behind a real socket."""

    url: str
    rooms: Rooms


@pytest.fixture(scope="session")
def provider_key() -> RSAKey:
    return rsa_key("first")


@pytest.fixture
def provider(listeners: None, provider_key: RSAKey) -> Iterator[Provider]:
    """An identity provider that signs by `provider_key`."""
    found = Provider(provider_key).start()
    yield found
    found.stop()


@pytest.fixture(scope="session")
def room_settings() -> PlatformSettings:
    """To look settings up in the environment takes a fourteenth of the time of a test of the API."""
    return PlatformSettings(max_upload_bytes=4096)


def open_rooms(directory: Path, database: Path, settings: PlatformSettings) -> Rooms:
    """Rooms in an empty directory, over a copy of a database; without a key."""
    allowed = directory / "allowed"
    allowed.mkdir(parents=True)
    shutil.copy(database, directory / "ipnext.db")
    return Rooms(
        store=Store.open(f"sqlite:///{directory}/ipnext.db"),
        artifacts=FileArtifactStore(directory / "artifacts"),
        infrastructure=MemoryInfrastructure(["eu", "us"]),
        lifecycle=MemoryLifecycle(),
        settings=settings.model_copy(update={"artifact_roots": (allowed,)}),
        directory=directory,
    )


@pytest.fixture
def rooms(tmp_path: Path, migrated: Path, room_settings: PlatformSettings) -> Iterator[Rooms]:
    found = open_rooms(tmp_path, migrated, room_settings)
    found.admin_key = found.add_key("admin", Role.ADMIN)
    yield found
    found.store.close()


@pytest.fixture
async def world(rooms: Rooms) -> AsyncIterator[World]:
    app = rooms.app()
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=rooms.headers) as http,
    ):
        yield World(http, rooms)


@pytest.fixture
async def applied(world: World) -> World:
    """With a fleet and the ranker."""
    (await world.http.put("/v1/fleet", json=fleet_document())).raise_for_status()
    (await world.http.put("/v1/models/ranker", json=model_document())).raise_for_status()
    return world


class Switchboard:
    """One real server for all tests; each test puts its own application behind it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._app: FastAPI | None = None
        config = uvicorn.Config(
            self._answer,
            host="127.0.0.1",
            port=0,
            log_level="error",
            ws="none",
            lifespan="off",
            interface="asgi3",
            timeout_graceful_shutdown=10,  # as the platform's: a client that left an answer unread keeps no server
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.loop.run_until_complete, args=(self._server.serve(),), name="api")

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        assert self._app is not None, "a request between two tests"
        await self._app(scope, receive, send)

    def start(self) -> None:
        """Returns once the server listens."""
        self._thread.start()
        until(self._started, why=lambda: "the server did not start")

    def _started(self) -> bool:
        assert self._thread.is_alive(), "the server ended"
        return self._server.started

    def stop(self) -> None:
        """Returns once the server has ended."""
        self._server.should_exit = True
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    @contextlib.contextmanager
    def answering(self, app: FastAPI) -> Iterator[str]:
        """The URL, while `app` answers behind it with its background work running."""
        context = app.router.lifespan_context(app)
        asyncio.run_coroutine_threadsafe(context.__aenter__(), self.loop).result(PATIENCE_SECONDS)
        self._app = app
        yield f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), self.loop).result(PATIENCE_SECONDS)


@pytest.fixture(scope="session")
def switchboard(listeners) -> Iterator[Switchboard]:
    board = Switchboard()
    board.start()
    yield board
    board.stop()


@pytest.fixture
def live(rooms: Rooms, switchboard: Switchboard, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """The API behind a real socket of the loopback. Clients of this process ask as the administrator."""
    monkeypatch.setenv("IPNEXT_API_KEY", rooms.admin_key)
    with switchboard.answering(rooms.app()) as url:
        yield Live(url, rooms)
