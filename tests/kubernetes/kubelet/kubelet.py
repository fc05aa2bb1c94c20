"""A node: registers itself, renews its lease, and runs the pods that are bound to it as local processes."""

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
from lightkube.config.kubeconfig import KubeConfig

from tests.connections import end_connections
from tests.kubernetes.kubelet.addresses import AddressPool
from tests.kubernetes.kubelet.api import STRATEGIC, Gone, NodeApi
from tests.kubernetes.kubelet.node_server import serving_logs
from tests.kubernetes.kubelet.pod_worker import ENDED, PodWorker
from tests.kubernetes.kubelet.processes import isolation, memory
from tests.kubernetes.kubelet.settings import Images, Settings
from tests.kubernetes.kubelet.times import time_text
from tests.kubernetes.server.errors import Json
from tests.waiting import PATIENCE_SECONDS

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "500"}


@dataclass(frozen=True)
class Node:
    """What a node is and how it behaves."""

    name: str
    config: KubeConfig
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Mapping[str, str] = field(default_factory=dict)
    """Beside the usual one, such as devices."""
    taints: tuple[Json, ...] = ()
    images: Images = None
    """Images that can be pulled, as a mapping with the words of their entry points; None: all."""
    pace: float = 1.0
    """Factor of the pauses between probes and between restarts."""
    lease_seconds: float = 10.0
    """Pause between two renewals of the lease."""
    refresh_seconds: float = 60.0
    """Pause between two looks at objects that volumes show."""
    token_seconds: float | None = None
    """After so many seconds a token is renewed; None: after the usual part of its life."""
    is_isolated: bool = True
    """Whether containers have namespaces of their own, if this user may make them."""
    has_memory_groups: bool = True
    """Whether memory limits are kept by groups of the kernel, if they can be made here."""

    def settings(self, directory: Path) -> Settings:
        """Return what its pods need of it."""
        has_namespaces = self.is_isolated and isolation.is_possible()
        has_groups = self.has_memory_groups and memory.has_groups()
        return Settings(
            directory,
            self.images,
            self.pace,
            self.refresh_seconds,
            self.token_seconds,
            is_isolated=has_namespaces,
            has_memory_groups=has_groups,
        )


class Kubelet:
    """One node, in the event loop that runs it."""

    def __init__(self, node: Node, directory: Path) -> None:
        self.node = node
        self.workers: dict[str, PodWorker] = {}
        self._api = NodeApi(node.config)
        self._directory, self._settings = directory, node.settings(directory)
        self._addresses = AddressPool()
        self._port = 0

    async def run(self, started: asyncio.Event) -> None:
        """Be a node until cancelled; then all its processes end, and the API keeps the pods as they are."""
        try:
            memory.sweep_groups()
            async with serving_logs(self._log, self._directory) as self._port, asyncio.TaskGroup() as group:
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
        self.workers[uid].observe(pod)
        if is_ending:
            self.workers[uid].end(pod["metadata"].get("deletionGracePeriodSeconds", 0))

    def _remove(self, uid: str) -> None:
        """End a pod that the API has no more."""
        if worker := self.workers.get(uid):
            worker.end(0).add_done_callback(lambda _: self.workers.pop(uid, None))

    def _log(self, namespace: str, name: str, container: str, is_previous: bool) -> Path | None:
        """Find the log of a container."""
        path = f"/api/v1/namespaces/{namespace}/pods/{name}"
        worker = next((each for each in self.workers.values() if each.path == path), None)
        return None if worker is None else worker.log(container, previous=is_previous)


class NodeThread:
    """A node in a thread of its own, for tests that do not run in its event loop."""

    def __init__(self, node: Node, directory: Path) -> None:
        self._node, self._directory = node, directory
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"node {node.name}", daemon=True)
        self._ready = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._live())

    async def _live(self) -> None:
        started = asyncio.Event()
        self._task = asyncio.create_task(Kubelet(self._node, self._directory).run(started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([self._task, waiting], return_when=asyncio.FIRST_COMPLETED)
        self._ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        waiting.cancel()
        await end_connections(patient_turns=1)

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
    with tempfile.TemporaryDirectory(prefix="ipnext-node-") as directory:
        Path(directory).chmod(0o755)
        thread = NodeThread(node, Path(directory))
        thread.start()
        try:
            yield thread
        finally:
            thread.stop()
