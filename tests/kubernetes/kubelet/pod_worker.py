"""One pod on a node: runs its first container, probes it, restarts it, ends it and reports how it is."""

import asyncio
from collections.abc import Awaitable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.kubernetes.kubelet.api import STRATEGIC, Gone, NodeApi
from tests.kubernetes.kubelet.container import Container, time_text
from tests.kubernetes.kubelet.environment import ConfigMissing, command_of, environment_of, fields_of
from tests.kubernetes.kubelet.probes import Surroundings, Teller, follow, handled
from tests.kubernetes.server.errors import Json

BACK_OFF_SECONDS, LONGEST_BACK_OFF_SECONDS = 10.0, 300.0


@dataclass(frozen=True)
class Settings:
    """What a node does in its own way."""

    logs: Path
    images: Collection[str] | None = None
    """Images that can be pulled; None: all."""
    pace: float = 1.0
    """Factor of the pauses between probes and between restarts."""


@dataclass
class PodState:
    """What is reported of the container."""

    phase: str = "Pending"
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last: Json = field(default_factory=dict)
    is_started: bool = False
    is_ready: bool = False
    restarts: int = 0


class PodWorker:
    """The life of one pod, as a task."""

    def __init__(self, api: NodeApi, node: str, pod: Json, address: str, settings: Settings) -> None:
        self._api, self._node, self._pod, self._settings = api, node, pod, settings
        self.address, self.state = address, PodState()
        self.uid: str = pod["metadata"]["uid"]
        self._spec: Json = pod["spec"]["containers"][0]
        self._container: Container | None = None
        self._at: Surroundings | None = None
        self._changed = asyncio.Event()
        self._conditions: dict[str, Json] = {}
        self._begun = time_text()
        self._running = asyncio.create_task(self._run())
        self._reporting = asyncio.create_task(self._report())
        self._ending: asyncio.Task[None] | None = None

    @property
    def log(self) -> Path:
        """Output of all runs of the container."""
        return self._settings.logs / f"{self.uid}.log"

    @property
    def path(self) -> str:
        """Where the API has the pod."""
        metadata = self._pod["metadata"]
        return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"

    def _tell(self) -> None:
        self._changed.set()

    async def _run(self) -> None:
        """Run the container, again and again as its restart policy says."""
        policy = self._pod["spec"].get("restartPolicy", "Always")
        pause = BACK_OFF_SECONDS
        while True:
            code = await self._run_once()
            if self._ending is not None:
                return
            if policy == "Never" or (policy == "OnFailure" and code == 0):
                self.state.phase = "Failed" if code else "Succeeded"
                self._tell()
                return
            if self.state.restarts or code is None:
                await self._back_off(pause)
                pause = min(2 * pause, LONGEST_BACK_OFF_SECONDS)
            self.state.restarts += code is not None

    async def _back_off(self, seconds: float) -> None:
        if "terminated" in self.state.state:
            self.state.last = self.state.state
            message = f"back-off {seconds:g}s restarting failed container={self._spec['name']}"
            self.state.state = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
            self._tell()
        await asyncio.sleep(seconds * self._settings.pace)

    async def _run_once(self) -> int | None:
        """Return the exit code; None if the container could not be started."""
        images = self._settings.images
        if images is not None and self._spec["image"] not in images:
            self._wait("ErrImagePull", f'failed to pull image "{self._spec["image"]}": not found')
            return None
        try:
            await self._start()
        except (ConfigMissing, Gone, httpx2.HTTPError) as error:
            self._wait("CreateContainerConfigError", str(error) or type(error).__name__)
            return None
        except OSError as error:
            self._wait("RunContainerError", str(error))
            return None
        return await self._follow()

    def _wait(self, reason: str, message: str) -> None:
        self.state.state = {"waiting": {"reason": reason, "message": message}}
        self._tell()

    async def _start(self) -> None:
        fields = fields_of(self._pod, self.address, self._node)
        namespace = self._pod["metadata"]["namespace"]
        environment = await environment_of(
            self._spec, fields, lambda kind, name: self._api.entries(namespace, kind, name)
        )
        words = command_of(self._spec, environment)
        if not words:
            msg = "no command specified: the node double has no images that could have one"
            raise OSError(msg)
        self._at = Surroundings(self.address, self._spec, environment)
        self._container = await Container.start(words, environment, self.log)

    async def _follow(self) -> int:
        """Probe the running container until it ends, and return its exit code."""
        assert self._container
        self.state.phase = "Running"
        self.state.state = {"running": {"startedAt": self._container.started_at}}
        self.state.is_started = "startupProbe" not in self._spec
        self.state.is_ready = self.state.is_started and "readinessProbe" not in self._spec
        self._tell()
        probing = asyncio.create_task(self._probe())
        try:
            code = await self._container.wait()
        finally:
            probing.cancel()
        self._note_end(code)
        return code

    def _note_end(self, code: int) -> None:
        assert self._container
        self.state.is_started = self.state.is_ready = False
        reason = "Completed" if code == 0 else "Error"
        times = {"startedAt": self._container.started_at, "finishedAt": time_text()}
        self.state.state = {"terminated": {"exitCode": code, "reason": reason, **times}}
        self._tell()

    async def _probe(self) -> None:
        started = asyncio.Event()
        if self.state.is_started:
            started.set()
        async with asyncio.TaskGroup() as group:
            if "startupProbe" in self._spec:
                group.create_task(self._probe_startup(started))
            await started.wait()
            if "readinessProbe" in self._spec:
                group.create_task(self._follow_probe("readinessProbe", self._note_readiness))
            if "livenessProbe" in self._spec:
                group.create_task(self._follow_probe("livenessProbe", self._restart_if))

    async def _follow_probe(self, name: str, tell: Teller) -> None:
        assert self._at
        await follow(self._spec[name], self._at, tell, pace=self._settings.pace)

    async def _probe_startup(self, started: asyncio.Event) -> None:
        following = asyncio.create_task(
            self._follow_probe("startupProbe", lambda error: self._restart() if error else started.set())
        )
        try:
            await started.wait()
        finally:
            following.cancel()
        self.state.is_started = True
        self.state.is_ready = "readinessProbe" not in self._spec
        self._tell()

    def _note_readiness(self, error: str | None) -> None:
        if self.state.is_ready != (error is None):
            self.state.is_ready = error is None
            self._tell()

    def _restart_if(self, error: str | None) -> Awaitable[None] | None:
        return None if error is None else self._restart()

    async def _restart(self) -> None:
        """End a container whose probe failed; its restart policy decides on what follows."""
        assert self._container
        await self._container.stop(self._pod["spec"].get("terminationGracePeriodSeconds", 30))

    def end(self, seconds: float) -> "asyncio.Task[None]":
        """End the pod, within so many seconds; a second call can only shorten them."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(seconds))
        elif seconds == 0:
            self.kill()
        return self._ending

    async def _end(self, seconds: float) -> None:
        """Hook, signal, kill; then the pod is removed from the API."""
        deadline = asyncio.get_running_loop().time() + seconds
        if self._container and self._container.process.returncode is None:
            hook = (self._spec.get("lifecycle") or {}).get("preStop")
            if hook and seconds and self._at:
                await handled(hook, self._at, seconds)
            await self._container.stop(max(0.0, deadline - asyncio.get_running_loop().time()))
        await self.abandon()
        precondition = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        await self._api.persist("DELETE", self.path, precondition)

    def kill(self) -> None:
        """Kill the container at once."""
        if self._container and self._container.process.returncode is None:
            self._container.signal(9)

    async def abandon(self) -> None:
        """Kill the container and report nothing more."""
        self._reporting.cancel()
        self._running.cancel()
        await asyncio.wait([self._reporting, self._running])
        self.kill()
        if self._container:
            await self._container.wait()

    async def _report(self) -> None:
        """Write the status, each time it changed, as long as it takes."""
        self._tell()
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._api.persist("PATCH", f"{self.path}/status", {"status": self._status()}, form=STRATEGIC)

    def _status(self) -> Json:
        state = self.state
        status = {
            "name": self._spec["name"],
            "image": self._spec["image"],
            "imageID": "",
            "ready": state.is_ready,
            "started": state.is_started,
            "restartCount": state.restarts,
            "state": state.state,
            "lastState": state.last,
        }
        return {
            "phase": state.phase,
            "hostIP": "127.0.0.1",
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "startTime": self._begun,
            "containerStatuses": [status],
            "conditions": [
                self._condition("Initialized", True),
                self._condition("ContainersReady", state.is_ready),
                self._condition("Ready", state.is_ready),
            ],
        }

    def _condition(self, kind: str, value: bool) -> Json:
        """Return a condition with the time since which it has its status."""
        known = self._conditions.get(kind)
        if known is None or known["status"] != str(value):
            known = {"type": kind, "status": str(value), "lastTransitionTime": time_text()}
            known |= {} if value else {"reason": "ContainersNotReady"}
            self._conditions[kind] = known
        return known
