"""`HostRuntime` of pods: an agent owns the pods of its region's hosts, without a Deployment between them.

A restart is a new pod, by the same rule as for processes. The note of a host is an annotation of its pod, so that the
next agent finds it wherever that runs.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Mapping
from contextlib import suppress
from secrets import token_hex
from typing import Any, Final

import structlog

from ipnext.errors import IPnextError, Unavailable
from ipnext.infra.context import RegionContext
from ipnext.infra.host.runtime import Adopted, HostIdentity
from ipnext.infra.kubernetes.budgets import DisruptionBudgets
from ipnext.infra.kubernetes.cluster import PODS, Cluster, ClusterEvent, ClusterRefused
from ipnext.infra.kubernetes.documents import (
    HOST_CONTAINER,
    HOST_URL,
    SERVING_CONDITION,
    HostPod,
    Json,
    PodTemplates,
    host_labels,
    host_paths,
    name_pod,
    pod_memory,
    render_pod,
    selector,
)
from ipnext.infra.kubernetes.latest_writes import LatestWrites
from ipnext.infra.kubernetes.pod_logs import read_pod_logs
from ipnext.infra.kubernetes.pod_notes import read_note, write_note
from ipnext.infra.kubernetes.settings import KubernetesSettings
from ipnext.infra.kubernetes.started_pod import StartedPod, describe_obstacle
from ipnext.infra.process.child import TAIL_LINES
from ipnext.infra.process.notes import HostNote
from ipnext.infra.process.spawn import StartedProcess
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.logs import LogQuery, ReplicaLog


class PodHost:
    """The host of one replica as a pod."""

    def __init__(self, hosts: "PodHosts", identity: HostIdentity, note: Callable[[], HostNote]) -> None:
        self.identity = identity
        self._hosts, self._write_note = hosts, note
        self._memory_bytes: int | None = None
        self._pod: StartedPod | None = None

    @property
    def url(self) -> str:
        """URL of its proxy; empty while the pod does not run."""
        address = None if self._pod is None else self._pod.address
        if address is None:
            return ""
        return f"https://{f'[{address}]' if ':' in address else address}:{self._hosts.settings.port}"

    @property
    def obstacle(self) -> str | None:
        """Why its pod does not run yet, in the cluster's words."""
        return None if self._pod is None else describe_obstacle(self._pod.document)

    @property
    def log(self) -> str:
        """Where its output is: the container of a pod."""
        return "" if self._pod is None else f"{self._hosts.namespace}/{self._pod.name}"

    def set_memory(self, size_bytes: int | None) -> None:
        """Set the memory limit of its next start; None: that of the settings."""
        self._memory_bytes = size_bytes

    def adopt(self, note: HostNote) -> None:
        """Continue with a pod that runs already."""
        self._memory_bytes = note.memory_bytes
        self._pod = self._hosts.take_adopted(self.identity.name)

    async def start(self) -> StartedProcess:
        """Create a pod; return before it runs. OSError if the cluster refuses it, or the agent can't describe it."""
        self._pod = None
        self._pod = await self._hosts.create(self.identity, self._write_note(), self._memory_bytes)
        return self._pod

    def describe_end(self, status: int) -> str:
        """Return how its pod ended."""
        return (self._pod.reason if self._pod else "") or f"ended with status {status}"

    def read_last_output(self) -> str:
        """Return the last lines of its output on one line."""
        return "" if self._pod is None else self._pod.last_output

    def find_excess(self, process: StartedProcess) -> str | None:  # noqa: ARG002 - the port's signature
        """Return None: the node ends a pod that takes more memory than it may."""
        return None

    def forget(self) -> None:
        """Release nothing: its pod is gone."""


class PodHosts:
    """The pods of a region's hosts."""

    shares_disk: Final = False

    def __init__(
        self,
        site: RegionContext,
        settings: KubernetesSettings,
        templates: PodTemplates,
        *,
        trust_domain: str,
    ) -> None:
        """Connect to nothing yet. InvalidInput if the cluster's address is not known."""
        self.settings = settings
        self._site, self._templates, self._trust_domain = site, templates, trust_domain
        self._cluster = Cluster(settings)
        self.namespace = self._cluster.namespace
        self._pods: dict[str, StartedPod] = {}
        """Pods that a replica has, or that may be adopted, by the name of the pod."""
        self._by_replica: dict[str, StartedPod] = {}
        self._adopted: dict[str, tuple[HostNote, StartedPod]] = {}
        self._has_adopted = False
        self._listed = asyncio.Event()
        self._listed_later: set[str] = set()
        """Pods that were there before the list that is under way: it lacks those that are gone, and maybe new ones."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes = LatestWrites(retry_seconds=settings.retry_seconds)
        self._budgets = DisruptionBudgets(self._cluster, self._writes)

    @property
    def most_hosts(self) -> int:
        """Number of hosts of the settings: the cluster has quotas of its own."""
        return self.settings.max_hosts

    async def start(self) -> None:
        """Find the pods of a former agent, and follow all of them from now on. Unavailable."""
        self._run(self._follow(), "follow pods")
        limit = self._site.settings.confirm_seconds
        try:
            async with asyncio.timeout(limit):
                await self._listed.wait()
        except TimeoutError as error:
            await self.stop()
            msg = f"the API server of the cluster lists no pods of {self.namespace!r} within {limit} s"
            raise Unavailable(msg) from error
        self._run(self._give_up_lost(), "give up lost pods")

    async def stop(self) -> None:
        """Stop following. Pods continue."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._writes.stop()
        await self._cluster.aclose()

    def program(self, identity: HostIdentity, note: Callable[[], HostNote]) -> PodHost:
        """Return the host of a replica."""
        return PodHost(self, identity, note)

    def note(self, name: str, note: HostNote) -> None:
        """Replace the annotation of a running host's pod, in the background."""
        pod = self._by_replica.get(name)
        if pod is not None and not pod.has_ended:
            self._writes.put(name, lambda: self._annotate(pod, note))

    async def wait_noted(self, name: str) -> None:
        """Return once the annotation is stored. Unavailable."""
        await self._writes.wait_written(name, seconds=self.settings.request_seconds)

    def find_adopted(self) -> Mapping[str, Adopted]:
        """Return the hosts whose pods a former agent has created. Pods without a valid note are deleted."""
        self._has_adopted = True
        for pod in set(self._pods.values()) - {pod for _, pod in self._adopted.values()}:
            self._end_stray(pod)
        return dict(self._adopted)

    def keep_available(self, key: DeploymentKey, replicas: int) -> None:
        """Let node drains leave all replicas but one."""
        self._budgets.keep(key, replicas)

    def show_serving(self, name: str, *, serving: bool) -> None:
        """Write the pod's readiness gate, by which its PodDisruptionBudget counts it."""
        pod = self._by_replica.get(name)
        if pod is not None and not pod.has_ended:
            self._writes.put(f"{name} serving", lambda: self._show_serving(pod, is_serving=serving))

    async def read_logs(self, query: LogQuery, *, running: Collection[str]) -> tuple[ReplicaLog, ...]:
        """Return the output of the pods that there are. That of former ones is with the cluster's own logs."""
        chosen = {name: pod for name, pod in self._by_replica.items() if name in running and not pod.has_ended}
        return await read_pod_logs(self._cluster, query, chosen, region=self._site.region)

    def take_adopted(self, name: str) -> StartedPod:
        """Return the adopted pod of a replica."""
        pod = self._adopted[name][1]
        self._by_replica[name] = pod
        return pod

    async def create(self, identity: HostIdentity, note: HostNote, memory_bytes: int | None) -> StartedPod:
        """Create a pod and return before it runs. OSError, LookupError."""
        if identity.engine == "vllm":
            msg = "engine: vllm does not run in pods yet; allowed: engines whose hosts have no server of their own"
            raise OSError(msg)
        known = self._templates.by_hardware
        if identity.key.hardware not in known:
            msg = (
                f"hardware: {identity.key.hardware!r} has no entry in {self.settings.hardware_file} "
                f"(IPNEXT_KUBERNETES_HARDWARE_FILE); allowed: {', '.join(sorted(known)) or 'none'}"
            )
            raise LookupError(msg)
        name = name_pod(identity, token_hex(3))
        document = render_pod(self._describe(name, identity, note, memory_bytes), self.settings, self._templates)
        pod = StartedPod(name, self._delete, lost_seconds=self.settings.lost_seconds)
        self._pods[name] = pod  # before it exists: the watch may tell of it before the answer comes
        try:
            created = await self._cluster.create(PODS, document)
        except BaseException as error:
            if pod.document:  # it was created, although the answer says otherwise or was lost
                self._end_stray(pod)
            else:
                self._pods.pop(name, None)  # if the watch tells of it later, it is a stray
            if isinstance(error, IPnextError):
                raise OSError(error.message) from error
            raise
        if not pod.document:
            pod.see(created)
        self._by_replica[identity.name] = pod
        return pod

    def _describe(self, name: str, identity: HostIdentity, note: HostNote, memory_bytes: int | None) -> HostPod:
        site = self._site
        return HostPod(
            name=name,
            identity=identity,
            annotations=write_note(note),
            command=site.host_command(
                identity.name,
                HOST_URL,
                engine=identity.engine,
                memory_bytes=memory_bytes,
                paths=host_paths(self.settings),
            ),
            environment=self._environment(),
            memory_bytes=pod_memory(memory_bytes, site.settings),
            cpu=site.settings.threads,
            grace_seconds=site.settings.drain_seconds + site.settings.grace_seconds,
            trust_domain=self._trust_domain,
        )

    def _environment(self) -> Mapping[str, str]:
        """Return the variables of a host: none of the agent's but those that the operator names."""
        named = {name: os.environ[name] for name in self._site.settings.host_environment_inherit if name in os.environ}
        return {"OMP_NUM_THREADS": str(self._site.settings.threads), "PYTHONUNBUFFERED": "1", **named}

    def _delete(self, pod: StartedPod, grace_seconds: int | None) -> None:
        self._run(self._persist_delete(pod, grace_seconds), f"delete {pod.name}")

    async def _persist_delete(self, pod: StartedPod, grace_seconds: int | None) -> None:
        """Delete a pod, again and again until the API server has heard of it."""
        while pod.name in self._pods and not pod.has_ended:
            try:
                await self._cluster.delete(PODS, pod.name, uid=pod.uid, grace_seconds=grace_seconds)
            except IPnextError as error:
                structlog.get_logger().warning("pod not deleted, tried again", pod=pod.name, reason=error.message)
                await asyncio.sleep(self.settings.retry_seconds)
            else:
                return

    async def _annotate(self, pod: StartedPod, note: HostNote) -> None:
        await self._write(pod, {"metadata": {"uid": pod.uid, "annotations": write_note(note)}})

    async def _show_serving(self, pod: StartedPod, *, is_serving: bool) -> None:
        condition = {"type": SERVING_CONDITION, "status": "True" if is_serving else "False"}
        document = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
        await self._write(pod, document, part="status")

    async def _write(self, pod: StartedPod, document: Json, *, part: str = "") -> None:
        """Merge into a pod; do nothing if it is gone."""
        try:
            await self._cluster.patch(PODS, pod.name, document, part=part)
        except ClusterRefused as error:
            if not error.is_missing and pod.name in self._pods:
                raise Unavailable(error.message) from error

    async def _follow(self) -> None:
        async for event in self._cluster.follow(PODS, selector(host_labels(self._site.region))):
            self._take(event)

    def _take(self, event: ClusterEvent) -> None:
        if event.kind == "LISTING":
            self._listed_later = {name for name, pod in self._pods.items() if pod.document}
        elif event.kind == "LIST":
            names = {each["metadata"]["name"] for each in event.objects}
            for name in self._listed_later - names:
                self._forget(name)
            for each in event.objects:
                self._see(each)
            self._listed.set()
        elif event.kind == "DELETED":
            self._forget(event.objects[0]["metadata"]["name"])
        else:
            self._see(event.objects[0])

    def _see(self, document: Json) -> None:
        name = document["metadata"]["name"]
        pod = self._pods.get(name)
        if pod is None:
            pod = StartedPod(name, self._delete, lost_seconds=self.settings.lost_seconds)
            self._pods[name] = pod
            pod.see(document)
            if self._has_adopted:
                self._end_stray(pod)
            elif not pod.is_final and (note := read_note(document)):
                self._offer(note, pod)
            return
        pod.see(document)
        if pod.is_final and not pod.has_ended:
            self._run(self._finish(pod), f"finish {name}")

    def _offer(self, note: HostNote, pod: StartedPod) -> None:
        """Let the pod be adopted, unless another one of the same replica is younger."""
        name = HostIdentity(key=note.key, number=note.number, engine=note.engine).name
        former = self._adopted.get(name)
        if former is None or _age(former[1]) < _age(pod):
            self._adopted[name] = note, pod

    def _end_stray(self, pod: StartedPod) -> None:
        """Delete a pod that no replica has."""
        structlog.get_logger().warning("pod of no replica, deleted", pod=pod.name)
        self._delete(pod, None)

    def _forget(self, name: str) -> None:
        """Record that a pod is gone."""
        if pod := self._pods.pop(name, None):
            pod.finish()
        self._adopted = {replica: found for replica, found in self._adopted.items() if found[1].name != name}

    async def _finish(self, pod: StartedPod) -> None:
        """Read the last output of a pod that has ended for good, and remove it."""
        with suppress(IPnextError):
            text = await self._cluster.read_log(pod.name, HOST_CONTAINER, tail=TAIL_LINES)
            pod.last_output = " | ".join(line.strip() for line in text.splitlines() if line.strip())
        self._run(self._remove(pod), f"remove {pod.name}")
        pod.finish()

    async def _remove(self, pod: StartedPod) -> None:
        """Delete what is left of an ended pod."""
        while pod.name in self._pods:
            try:
                await self._cluster.delete(PODS, pod.name, uid=pod.uid, grace_seconds=0)
            except IPnextError:
                await asyncio.sleep(self.settings.retry_seconds)
            else:
                return

    async def _give_up_lost(self) -> None:
        """Give up pods of nodes that do not answer: their replicas start elsewhere."""
        while True:
            await asyncio.sleep(self.settings.retry_seconds)
            for pod in [pod for pod in self._pods.values() if pod.is_lost and not pod.has_ended]:
                structlog.get_logger().error("pod given up, its node does not answer", pod=pod.name)
                pod.finish("its node does not answer since it was deleted")

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (fault := task.exception()):
            structlog.get_logger().error("work of the cluster's client ended", task=task.get_name(), exc_info=fault)


def _age(pod: StartedPod) -> tuple[bool, str]:
    """Return a key by which a pod that is not being deleted, and then the youngest, is the largest."""
    metadata = pod.document["metadata"]
    return "deletionTimestamp" not in metadata, metadata.get("creationTimestamp", "")
