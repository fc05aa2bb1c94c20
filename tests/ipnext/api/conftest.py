"""The whole API in one process: real SQLite, real file artifacts, the fakes of infrastructure and workflow engine."""

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ipnext.api.app import create_app
from ipnext.api.lifecycle import MemoryLifecycle
from ipnext.artifacts.file_store import FileArtifactStore
from ipnext.infra.memory import MemoryInfrastructure
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest import ModelManifest
from ipnext.model.registry import ArtifactFile, Signature, SnapshotManifest, TensorSpec
from ipnext.settings import PlatformSettings
from ipnext.store.session import Store

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
    store: Store
    artifacts: FileArtifactStore
    infrastructure: MemoryInfrastructure
    lifecycle: MemoryLifecycle
    settings: PlatformSettings

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

    async def applied(self) -> "World":
        """With a fleet and the ranker."""
        (await self.http.put("/v1/fleet", json=FLEET)).raise_for_status()
        (await self.http.put("/v1/models/ranker", json=model_document())).raise_for_status()
        return self


@pytest.fixture
def settings(tmp_path: Path) -> PlatformSettings:
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
        yield World(http, store, artifacts, infrastructure, lifecycle, settings)
    store.close()


@pytest.fixture
async def applied(world: World) -> World:
    return await world.applied()


Seed = Callable[[Store], None]
__all__ = ["FLEET", "FleetManifest", "ModelManifest", "Seed", "World", "model_document", "write_snapshot"]
