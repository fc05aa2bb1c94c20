"""A node: registers itself, renews its lease, and runs the pods that are bound to it as local processes."""

import asyncio
import contextlib
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import uvicorn
from lightkube.config.kubeconfig import KubeConfig
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.kubernetes.kubelet.addresses import AddressPool
from tests.kubernetes.kubelet.api import STRATEGIC, Gone, NodeApi
from tests.kubernetes.kubelet.container import time_text
from tests.kubernetes.kubelet.pod_worker import PodWorker, Settings
from tests.kubernetes.server.errors import Json
from tests.waiting import PATIENCE_SECONDS

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "500"}
ENDED = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True)
class Node:
    """What a node is and how it behaves."""

    name: str
    config: KubeConfig
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, str] = field(default_factory=dict)
    """Beside the usual one, such as devices."""
    taints: tuple[Json, ...] = ()
    images: Collection[str] | None = None
    """Images that can be pulled; None: all."""
    pace: float = 1.0
    """Factor of the pauses between probes and between restarts."""
    lease_seconds: float = 10.0
    """Pause between two renewals of the lease."""


class Kubelet:
    """One node, in the event loop that runs it."""

    def __init__(self, node: Node, logs: Path) -> None:
        self.node = node
        self.workers: dict[str, PodWorker] = {}
        self._api = NodeApi(node.config)
        self._settings = Settings(logs, node.images, node.pace)
        self._addresses = AddressPool()
        self._port = 0

    async def run(self, started: asyncio.Event) -> None:
        """Be a node until cancelled; then all its processes end, and the API keeps the pods as they are."""
        try:
            async with self._serving_logs(), asyncio.TaskGroup() as group:
                await self._register()
                group.create_task(self._renew())
                started.set()
                async for kind, found in self._api.pods(self.node.name):
                    self._follow(kind, found)
        finally:
            await asyncio.gather(*(each.abandon() for each in self.workers.values()))
            await self._api.http.aclose()

    async def _register(self) -> None:
        name, node = self.node.name, self._document()
        while True:
            try:
                with contextlib.suppress(Gone):
                    await self._api.send("POST", "/api/v1/nodes", node)
                body = {"spec": {"taints": list(self.node.taints)}, "metadata": node["metadata"]}
                await self._api.send("PATCH", f"/api/v1/nodes/{name}", body, form=STRATEGIC)
                await self._api.send(
                    "PATCH", f"/api/v1/nodes/{name}/status", {"status": node["status"]}, form=STRATEGIC
                )
            except httpx2.HTTPError:
                await asyncio.sleep(self.node.lease_seconds / 10)
            else:
                return

    def _document(self) -> Json:
        name = self.node.name
        capacity = {**CAPACITY, **self.node.capacity}
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": time_text()}
        status = {
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._port}},
            "conditions": [ready],
        }
        labels = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", **self.node.labels}
        metadata = {"name": name, "labels": labels}
        return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}, "status": status}

    async def _renew(self) -> None:
        """Renew the lease for ever; after an outage the node says again that it is ready."""
        is_behind = False
        while True:
            try:
                await self._renew_once()
                if is_behind:
                    await self._register()
                is_behind = False
            except httpx2.HTTPError:
                is_behind = True
            await asyncio.sleep(self.node.lease_seconds)

    async def _renew_once(self) -> None:
        name = self.node.name
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}
        try:
            await self._api.send("PATCH", f"{LEASES}/{name}", {"spec": spec}, form=STRATEGIC)
        except Gone:
            lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
            with contextlib.suppress(Gone):
                await self._api.send("POST", LEASES, lease)

    def _follow(self, kind: str, found: object) -> None:
        if kind == "LIST":
            assert isinstance(found, list)
            listed = {pod["metadata"]["uid"] for pod in found}
            for uid in self.workers.keys() - listed:
                self._remove(uid)
            for pod in found:
                self._admit(pod)
        elif isinstance(found, dict):
            if kind == "DELETED":
                self._remove(found["metadata"]["uid"])
            else:
                self._admit(found)

    def _admit(self, pod: Json) -> None:
        """Start a pod that is new, and end one that was deleted."""
        uid = pod["metadata"]["uid"]
        is_ending = "deletionTimestamp" in pod["metadata"]
        if uid not in self.workers:
            if pod.get("status", {}).get("phase") in ENDED and not is_ending:
                return
            self.workers[uid] = PodWorker(self._api, self.node.name, pod, self._addresses.take(), self._settings)
        if is_ending:
            self.workers[uid].end(pod["metadata"].get("deletionGracePeriodSeconds", 0))

    def _remove(self, uid: str) -> None:
        """End a pod that the API has no more."""
        if worker := self.workers.get(uid):
            worker.end(0).add_done_callback(lambda _: self.workers.pop(uid, None))

    @contextlib.asynccontextmanager
    async def _serving_logs(self) -> AsyncIterator[None]:
        """Answer the API server's questions for logs."""
        app = Starlette(routes=[Route("/containerLogs/{namespace}/{name}/{container}", self._log)])
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="off"))
        listener = socket.create_server(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield
        finally:
            server.should_exit = server.force_exit = True
            await asyncio.shield(serving)

    async def _log(self, request: Request) -> PlainTextResponse:
        place = request.path_params["namespace"], request.path_params["name"]
        path = f"/api/v1/namespaces/{place[0]}/pods/{place[1]}"
        worker = next((each for each in self.workers.values() if each.path == path), None)
        if worker is None or not worker.log.exists():
            return PlainTextResponse(f"no log of {place[1]}", 404)
        lines = worker.log.read_text(errors="replace").splitlines(keepends=True)
        tail = request.query_params.get("tailLines")
        return PlainTextResponse("".join(lines[-int(tail) :] if tail else lines))


class NodeThread:
    """A node in a thread of its own, for tests that do not run in its event loop."""

    def __init__(self, node: Node, logs: Path) -> None:
        self._node, self._logs = node, logs
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"node {node.name}", daemon=True)
        self._ready = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        started = asyncio.Event()
        self._task = asyncio.create_task(Kubelet(self._node, self._logs).run(started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        waiting.cancel()

    def start(self) -> None:
        """Return once the node is registered."""
        self._thread.start()
        assert self._ready.wait(PATIENCE_SECONDS)

    def stop(self) -> None:
        """End the node with all its processes, as if its machine failed: nothing is reported to the API."""
        if self._task and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(PATIENCE_SECONDS)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running_node(node: Node) -> Iterator[NodeThread]:
    """A node that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="ipnext-node-") as logs:
        thread = NodeThread(node, Path(logs))
        thread.start()
        try:
            yield thread
        finally:
            thread.stop()
