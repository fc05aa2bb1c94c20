"""One container of a pod: runs it, probes it, restarts it, ends it and knows how it is."""

import asyncio
import contextlib
import os
import shutil
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any

import httpx2
from lightkube.utils.quantity import parse_quantity

from tests.kubernetes.kubelet.api import Gone
from tests.kubernetes.kubelet.environment import (
    ConfigMissing,
    command_of,
    environment_of,
    expanded,
    inherited,
)
from tests.kubernetes.kubelet.pod_status import ContainerState, Role
from tests.kubernetes.kubelet.probes import Surroundings, Teller, follow, handled
from tests.kubernetes.kubelet.processes.container import KILLED, Command, Container
from tests.kubernetes.kubelet.processes.isolation import Isolation, as_user
from tests.kubernetes.kubelet.processes.memory import memory_limit
from tests.kubernetes.kubelet.settings import PodContext
from tests.kubernetes.kubelet.times import time_text
from tests.kubernetes.kubelet.volumes.mounts import Mounts, mounts_of
from tests.kubernetes.server.errors import Json

BACK_OFF_SECONDS, LONGEST_BACK_OFF_SECONDS = 10.0, 300.0
LEAST_GRACE_SECONDS = 2.0
"""So long a container has at least after SIGTERM, however short the grace is, unless it is 0."""


class CannotRun(Exception):
    """A container that cannot be started now, with the reason of its state."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ContainerWorker:
    """The life of one container."""

    def __init__(self, context: PodContext, spec: Json, role: Role) -> None:
        self._context, self.spec, self.role = context, spec, role
        self.state = ContainerState(spec["name"], spec["image"], role)
        self.started = asyncio.Event()
        """Set once its startup probe has passed."""
        self._run_now: Container | None = None
        self._at: Surroundings | None = None
        self._runs = 0
        self._ending = asyncio.Event()
        self._pause = BACK_OFF_SECONDS

    def log(self, *, previous: bool = False) -> Path:
        """Return the output of the last run, or of the one before."""
        return self._context.directory / f"{self.state.name}.{self._runs - previous}.log"

    async def run(self) -> None:
        """Run the container, again and again as its restart policy says."""
        while not self._ending.is_set():
            code = await self._run_once()
            if self._ending.is_set():
                return
            if code is not None and not self._is_restarted_after(code):
                self.state.is_done = True
                self.state.is_ready = self.role is Role.INIT and code == 0
                self._context.tell()
                return
            if self.state.restarts or code is None:
                await self._back_off()
            self.state.restarts += code is not None

    def _is_restarted_after(self, code: int) -> bool:
        policy = "Always" if self.role is Role.SIDECAR else self._context.pod["spec"].get("restartPolicy", "Always")
        if policy == "Never":
            return False
        return code != 0 or (policy == "Always" and self.role is not Role.INIT)

    async def _back_off(self) -> None:
        seconds, self._pause = self._pause, min(2 * self._pause, LONGEST_BACK_OFF_SECONDS)
        state = self.state.state
        if "terminated" in state:
            self.state.last = state
            message = f"back-off {seconds:g}s restarting failed container={self.state.name} pod={self._context.name}"
            self._wait("CrashLoopBackOff", message)
            await self._context.warn("BackOff", message)
        pause = seconds * self._context.settings.pace
        if state.get("waiting", {}).get("reason") == "ErrImagePull":
            await asyncio.sleep(pause / 2)
            pause /= 2
            self._wait("ImagePullBackOff", f'Back-off pulling image "{self.spec["image"]}"')
        await asyncio.sleep(pause)

    async def _run_once(self) -> int | None:
        """Return the exit code; None if the container could not be started."""
        try:
            await self._start()
        except CannotRun as error:
            self._wait(error.reason, str(error))
            await self._context.warn("Failed", str(error))
            return None
        return await self._follow()

    def _wait(self, reason: str, message: str = "") -> None:
        self.state.state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        self._context.tell()

    async def _start(self) -> None:
        try:
            entrypoint = self._pulled()
            command = await self._command(entrypoint)
        except (ConfigMissing, Gone, httpx2.HTTPError) as error:
            raise CannotRun("CreateContainerConfigError", str(error) or type(error).__name__) from error
        self._runs += 1
        settings = self._context.settings
        limit = ((self.spec.get("resources") or {}).get("limits") or {}).get("memory")
        number = None if limit is None else int(parse_quantity(str(limit)) or 0)
        name = f"{self._context.directory.name}-{self.state.name}-{self._runs}"
        kept = memory_limit(f"{id(self)}-{name}", number, by_groups=settings.has_memory_groups)
        try:
            self._run_now = await Container.start(command, self.log(), kept)
        except OSError as error:
            kept.close()
            raise CannotRun("RunContainerError", str(error)) from error
        self._at = Surroundings(self._context.address, self.spec, self._run_now)

    def _pulled(self) -> tuple[str, ...]:
        """Return the entry point of the image. CannotRun if the node has no such image."""
        images, image = self._context.settings.images, self.spec["image"]
        if images is None or image in images:
            return tuple(images[image]) if isinstance(images, Mapping) else ()
        if self.spec.get("imagePullPolicy") == "Never":
            raise CannotRun("ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never')
        raise CannotRun("ErrImagePull", f'failed to pull and unpack image "{image}": not found')

    async def _command(self, entrypoint: tuple[str, ...]) -> Command:
        context = self._context
        declared = await environment_of(
            self.spec,
            context.pod,
            context.fields,
            lambda kind, name: context.api.entries(context.namespace, kind, name),
        )
        variables = inherited() | self._given() | declared
        words = command_of(self.spec, variables, entrypoint)
        if not words:
            raise CannotRun("RunContainerError", "no command specified")
        mounts = mounts_of(self.spec, context.pod, context.volumes, variables)
        directory = self.spec.get("workingDir")
        _check_program(words[0], mounts, variables.get("PATH", os.defpath), mounts.rewritten(directory or "."))
        security = (context.pod["spec"].get("securityContext") or {}) | (self.spec.get("securityContext") or {})
        if context.settings.is_isolated:
            scratch = context.directory / "s"
            isolation = Isolation(mounts.all, scratch, context.name[:63], directory)
            user = as_user(security.get("runAsUser"), security.get("runAsGroup"))
            return Command(words, variables, user, isolation=isolation)
        texts = {name: mounts.rewritten(each) for name, each in declared.items()}
        place = None if directory is None else mounts.rewritten(expanded(directory, variables))
        words = [mounts.rewritten(each) for each in words]
        return Command(words, variables | texts, directory=place, rewrite=mounts.rewritten)

    def _given(self) -> dict[str, str]:
        """Return the variables that each container has."""
        server = self._context.api.server
        port = str(server.port or 443)
        names = {"KUBERNETES_SERVICE_HOST": server.hostname or "", "KUBERNETES_SERVICE_PORT": port}
        return names | {"KUBERNETES_SERVICE_PORT_HTTPS": port, "HOSTNAME": self._context.name}

    async def _follow(self) -> int:
        """Probe the running container until it ends, and return its exit code."""
        run = self._run_now
        assert run
        self.state.state = {"running": {"startedAt": run.started_at}}
        self.state.is_started = "startupProbe" not in self.spec
        self.state.is_ready = self.state.is_started and "readinessProbe" not in self.spec
        if self.state.is_started:
            self.started.set()
        else:
            self.started.clear()
        self._context.tell()
        tasks = [asyncio.create_task(self._probe()), asyncio.create_task(run.limit.watch(run.process.pid, run.kill))]
        try:
            code = await run.wait()
        finally:
            for each in tasks:
                each.cancel()
        self._note_end(code)
        run.limit.close()
        return code

    def _note_end(self, code: int) -> None:
        assert self._run_now
        self.state.is_started = self.state.is_ready = False
        is_over = code == KILLED and self._run_now.limit.was_exceeded()
        reason = "OOMKilled" if is_over else "Error" if code else "Completed"
        found = {"exitCode": code, "reason": reason, "startedAt": self._run_now.started_at, "finishedAt": time_text()}
        if code > 128:
            found["signal"] = code - 128
        self.state.state = {"terminated": found}
        self._context.tell()

    async def _probe(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_post_start())
            if "startupProbe" in self.spec:
                group.create_task(self._probe_startup())
            await self.started.wait()
            if "readinessProbe" in self.spec:
                group.create_task(self._follow_probe("readinessProbe", self._note_readiness))
            if "livenessProbe" in self.spec:
                group.create_task(self._follow_probe("livenessProbe", self._note_life))

    async def _run_post_start(self) -> None:
        hook = (self.spec.get("lifecycle") or {}).get("postStart")
        if hook and self._at and (error := await handled(hook, self._at, self._context.grace_seconds)):
            await self._context.warn("FailedPostStartHook", error)
            await self.terminate(self._context.grace_seconds)

    async def _follow_probe(self, name: str, tell: Teller) -> None:
        assert self._at
        await follow(self.spec[name], self._at, tell, pace=self._context.settings.pace)

    async def _probe_startup(self) -> None:
        following = asyncio.create_task(self._follow_probe("startupProbe", self._note_startup))
        try:
            await self.started.wait()
        finally:
            following.cancel()
        self.state.is_started = True
        self.state.is_ready = "readinessProbe" not in self.spec
        self._context.tell()

    def _note_startup(self, error: str | None) -> Awaitable[None] | None:
        if error is None:
            self.started.set()
            return None
        return self._restart("startupProbe", error)

    def _note_readiness(self, error: str | None) -> None:
        if self.state.is_ready != (error is None):
            self.state.is_ready = error is None
            self._context.tell()

    def _note_life(self, error: str | None) -> Awaitable[None] | None:
        return None if error is None else self._restart("livenessProbe", error)

    async def _restart(self, probe: str, error: str) -> None:
        """End a container whose probe failed; its restart policy decides on what follows."""
        if self._ending.is_set():
            return
        kind = probe.removesuffix("Probe").capitalize()
        await self._context.warn("Unhealthy", f"{kind} probe failed: {error}")
        grace = self.spec[probe].get("terminationGracePeriodSeconds", self._context.grace_seconds)
        await self.terminate(float(grace))

    async def terminate(self, seconds: float, turn: "asyncio.Future[Any] | None" = None) -> None:
        """Run the hook, wait for the turn, send SIGTERM, and kill what has not ended after so many seconds."""
        run, at = self._run_now, self._at
        if run is None or at is None or not run.is_running:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and seconds:
            await handled(hook, at, seconds)
        if turn is not None and seconds:
            await asyncio.wait([turn], timeout=max(0.0, deadline - loop.time()))
        await run.stop(max(LEAST_GRACE_SECONDS, deadline - loop.time()) if seconds else 0)

    async def end(self, seconds: float, turn: "asyncio.Future[Any] | None" = None) -> None:
        """End the container for good."""
        self._ending.set()
        await self.terminate(seconds, turn)

    async def kill(self) -> None:
        """Kill the container at once, and return when it has ended."""
        self._ending.set()
        if self._run_now is not None:
            self._run_now.kill()
            await self._run_now.wait()

    def kill_soon(self) -> None:
        """Kill the container at once."""
        if self._run_now is not None and self._run_now.is_running:
            self._run_now.kill()


def _check_program(program: str, mounts: Mounts, path: str, directory: str) -> None:
    """Refuse a program that the container does not have. CannotRun with the message of a runtime."""
    seen = os.pathsep.join(mounts.rewritten(each) for each in path.split(os.pathsep))
    place = mounts.rewritten(program)
    if "/" in place and not place.startswith("/"):
        place = f"{directory}/{place}"
    with contextlib.suppress(OSError):
        if shutil.which(place, path=seen):
            return
    raise CannotRun("RunContainerError", f'exec: "{program}": no such file or directory, or not in $PATH')
