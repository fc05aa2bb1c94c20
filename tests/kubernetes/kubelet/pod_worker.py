"""One pod on a node: its volumes, then its containers in their order, their end, and the report of how it is."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import httpx2

from tests.kubernetes.kubelet.api import PAUSE_SECONDS, STRATEGIC, Gone, NodeApi
from tests.kubernetes.kubelet.container_worker import ContainerWorker
from tests.kubernetes.kubelet.pod_status import Conditions, Role, is_reported, phase_of
from tests.kubernetes.kubelet.settings import PodContext, Settings
from tests.kubernetes.kubelet.times import time_text
from tests.kubernetes.kubelet.volumes.volumes import MountFailed, Volumes
from tests.kubernetes.server.errors import Json

MOUNT_RETRY_SECONDS = 2.0
ENDED = frozenset({"Succeeded", "Failed"})


class PodWorker:
    """The life of one pod, as a task."""

    def __init__(self, api: NodeApi, node: str, pod: Json, address: str, settings: Settings) -> None:
        self._api, self.address = api, address
        self.uid: str = pod["metadata"]["uid"]
        directory = settings.directory / address.partition(".")[2]
        self._changed = asyncio.Event()
        self._context = PodContext(api, node, pod, address, settings, directory, self._changed.set)
        (directory / "s").mkdir(parents=True)
        self._volumes = Volumes(api, pod, self._context.fields, self._context.volumes, settings.token_seconds)
        self._inits = [
            ContainerWorker(self._context, each, _role(each)) for each in pod["spec"].get("initContainers") or ()
        ]
        self._mains = [ContainerWorker(self._context, each, Role.MAIN) for each in pod["spec"]["containers"]]
        self._conditions = Conditions()
        self._begun = time_text()
        self._running = asyncio.create_task(self._run())
        self._reporting = asyncio.create_task(self._report())
        self._ending: asyncio.Task[None] | None = None

    @property
    def path(self) -> str:
        """Where the API has the pod."""
        return f"/api/v1/namespaces/{self._context.namespace}/pods/{self._context.name}"

    @property
    def _workers(self) -> list[ContainerWorker]:
        return [*self._inits, *self._mains]

    @property
    def _sidecars(self) -> list[ContainerWorker]:
        return [each for each in self._inits if each.role is Role.SIDECAR]

    def log(self, container: str, *, previous: bool) -> Path | None:
        """Return the output of a container, None if there is none."""
        found = next((each for each in self._workers if each.state.name == container), None)
        return None if found is None else found.log(previous=previous)

    def observe(self, pod: Json) -> None:
        """Take over what the API has of the pod now."""
        self._context.pod = self._volumes.pod = pod
        self._volumes.fields = self._context.fields
        self._changed.set()

    async def _run(self) -> None:
        """Run the containers: initial ones one by one, then the others together, then the end of the sidecars."""
        async with asyncio.TaskGroup() as group:
            await self._mount()
            refreshing = group.create_task(self._refresh())
            if await self._initialize(group):
                await asyncio.gather(*(each.run() for each in self._mains))
            if self._ending is None:
                await self._end_in_order(self._sidecars, self._context.grace_seconds)
                self._changed.set()
            refreshing.cancel()

    async def _mount(self) -> None:
        if self._inits:
            for each in self._mains:
                each.state.state = {"waiting": {"reason": "PodInitializing"}}
        while True:
            try:
                await self._volumes.mount()
            except MountFailed as error:
                await self._context.warn("FailedMount", str(error))
            except httpx2.HTTPError:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            else:
                return
            await asyncio.sleep(MOUNT_RETRY_SECONDS * self._context.settings.pace)

    async def _refresh(self) -> None:
        """Keep volumes as the API has their objects."""
        while True:
            await asyncio.sleep(self._context.settings.refresh_seconds)
            try:
                await self._volumes.refresh()
            except httpx2.HTTPError:
                continue

    async def _initialize(self, group: asyncio.TaskGroup) -> bool:
        """Run the initial containers; return whether the others may run."""
        for each in self._inits:
            if each.role is Role.SIDECAR:
                group.create_task(each.run())
                await each.started.wait()
                continue
            await each.run()
            if each.state.exit_code != 0:
                return False
        return True

    async def _end_in_order(
        self, sidecars: list[ContainerWorker], seconds: float, first: "asyncio.Future[Any] | None" = None
    ) -> None:
        """End sidecars, the last one first, each once its successor has ended; `first` comes before all of them."""
        turn = first
        tasks: list[asyncio.Future[Any]] = []
        for each in reversed(sidecars):
            turn = asyncio.ensure_future(each.end(seconds, turn))
            tasks.append(turn)
        await asyncio.gather(*tasks)

    def end(self, seconds: float) -> "asyncio.Task[None]":
        """End the pod, within so many seconds; a second call can only shorten them."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(seconds))
        else:
            asyncio.get_running_loop().call_later(seconds, self._kill)
        return self._ending

    def _kill(self) -> None:
        for each in self._workers:
            each.kill_soon()

    async def _end(self, seconds: float) -> None:
        """Hook, signal, kill; then the pod is removed from the API."""
        others = [each for each in self._workers if each.role is not Role.SIDECAR]
        ended = asyncio.ensure_future(asyncio.gather(*(each.end(seconds) for each in others)))
        await asyncio.gather(ended, self._end_in_order(self._sidecars, seconds, ended))
        self._running.cancel()
        await asyncio.wait([self._running])
        if seconds:
            self._reporting.cancel()
            await asyncio.wait([self._reporting])
            await self._api.persist("PATCH", f"{self.path}/status", {"status": self._status()}, form=STRATEGIC)
        await self.abandon()
        precondition = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        await self._api.persist("DELETE", self.path, precondition)

    async def abandon(self) -> None:
        """Kill the containers and report nothing more."""
        self._reporting.cancel()
        self._running.cancel()
        await asyncio.wait([self._reporting, self._running])
        await asyncio.gather(*(each.kill() for each in self._workers))
        self._volumes.remove()
        shutil.rmtree(self._context.directory, ignore_errors=True)

    async def _report(self) -> None:
        """Write the status, each time it or the API's copy changed, as long as it takes."""
        self._changed.set()
        while True:
            await self._changed.wait()
            self._changed.clear()
            status = self._status()
            if is_reported(status, self._context.pod.get("status") or {}):
                continue
            try:
                found = await self._api.send("PATCH", f"{self.path}/status", {"status": status}, form=STRATEGIC)
            except Gone:
                continue
            except httpx2.HTTPError:
                await asyncio.sleep(PAUSE_SECONDS)
                self._changed.set()
            else:
                if found["metadata"]["uid"] == self.uid:
                    self._context.pod = found

    def _status(self) -> Json:
        states = [each.state for each in self._workers]
        policy = self._context.pod["spec"].get("restartPolicy", "Always")
        phase = phase_of(states, policy, is_ending=self._ending is not None and self._ending.done() is False)
        inits = {"initContainerStatuses": [each.state.document() for each in self._inits]} if self._inits else {}
        return {
            "phase": phase,
            "hostIP": "127.0.0.1",
            "podIP": self.address,
            "podIPs": [{"ip": self.address}],
            "startTime": self._begun,
            **inits,
            "containerStatuses": [each.state.document() for each in self._mains],
            "conditions": self._conditions.of(self._context.pod, states, phase),
        }


def _role(container: Json) -> Role:
    return Role.SIDECAR if container.get("restartPolicy") == "Always" else Role.INIT
