"""`ipnext dev`: the whole platform on one machine, in one state directory.

Layout of the directory: database, artifacts, Temporal's database, one folder for each region's agent, logs, ports.json,
peers.json and, while the platform is ready, endpoints.json.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import structlog

from ipnext.components.private_files import is_own_directory, keep_new_files_private, make_private_directory
from ipnext.components.settings import component_settings
from ipnext.dev.certificates import DevCertificates
from ipnext.dev.children import Child, Family, end_orphans
from ipnext.dev.forked_program import locate_command_line, preload
from ipnext.dev.hidden_address import HiddenAddress
from ipnext.dev.ports import choose
from ipnext.dev.stores import Stores, prepare
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.errors import Conflict, InvalidInput, RegionUnreachable
from ipnext.infra.agent.desired_state import DesiredState, longest_drain
from ipnext.infra.agent_clients import AgentClients
from ipnext.infra.envoy.public_listener import public_listener
from ipnext.infra.host.limit import most_hosts
from ipnext.infra.host.log_retention import LogLimits, LogRetention
from ipnext.infra.process.atomic_file import replace_file
from ipnext.infra.process.forked_process import OrphanReaper, become_subreaper
from ipnext.infra.process.host_user import host_user
from ipnext.infra.settings import AgentSettings
from ipnext.login.credentials import forget_key_file, note_key_file, read_key
from ipnext.model.deployment.deployment import STREAM_DRAIN_SECONDS
from ipnext.platform.admin import ensure_admin_key, make_first_ticket
from ipnext.settings import DevSettings, client_settings

HOST = "127.0.0.1"
START_LIMIT_SECONDS = 90.0
PROBE_SECONDS = 0.5
PROBE_BYTES = 2**16
BEYOND_DRAINS_SECONDS = 10.0
"""Longest end of an agent in addition to drains and the grace times of Envoy and of the hosts: answers that it waits
for."""


@dataclass(frozen=True)
class StatePaths:
    """Paths below the state directory."""

    state: Path

    @property
    def endpoints(self) -> Path:
        """Written when the platform is ready, removed at the end."""
        return self.state / "endpoints.json"

    @property
    def peers(self) -> Path:
        """Gateways of all regions, for those of the others."""
        return self.state / "peers.json"

    @property
    def admin_key(self) -> Path:
        """The key of the platform's first administrator; only this user can read it."""
        return self.state / "admin-key"

    @property
    def certificates(self) -> Path:
        """The CA of the platform's components, and their certificates."""
        return self.state / "certificates"

    def region(self, name: str) -> Path:
        """Return the state directory of a region's agent."""
        return self.state / "regions" / name

    def ready(self, worker: str) -> Path:
        """Return the file that exists while a worker serves."""
        return self.state / f"{worker}.ready"

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.state / "logs" / f"{name}.log"


@contextmanager
def lock_state(state: Path) -> Iterator[None]:
    """Lock the state directory, and keep other users out of it: no mode of a file in it opens that file to them.

    Raises Conflict with the pid of the process that has locked it, or if others may write into it.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_own_directory(state):
        msg = (
            f"{state} belongs to another user, or others may write into it; choose another --state, "
            "or make it your own: chmod 700"
        )
        raise Conflict(msg)
    with (state / "dev.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            msg = f"{state} is in use by the process {lock.read().strip() or '?'}; end it, or choose another --state"
            raise Conflict(msg) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        make_private_directory(state)
        yield


class DevPlatform:
    """All processes of one state directory."""

    def __init__(  # noqa: PLR0913 - each is a choice of who starts it
        self,
        places: StatePaths,
        config_path: Path | None,
        regions: tuple[str, ...],
        *,
        stores: Stores,
        certificates: DevCertificates,
        free_ports: bool,
        workers: int,
        credentials: Path | None = None,
    ) -> None:
        config = read_devfile(config_path)
        self._places = places
        self._stores = stores
        self._certificates = certificates
        self._config = config
        self._regions = regions
        self._credentials = credentials
        self._workers = tuple(f"worker-{number}" for number in range(1, workers + 1))
        self._family = Family()
        self._agents: dict[str, Child] = {}
        wanted: dict[str, int | None] = {
            "temporal": config.temporal.port,
            "temporal_ui": config.temporal.ui_port,
            "api": config.api.port,
        }
        wanted |= {f"gateway {region}": config.gateways.first_port + i for i, region in enumerate(regions)}
        wanted |= {f"agent {region}": None for region in regions}
        wanted |= {f"gateway of {region} for peers": None for region in regions}
        wanted |= {f"metrics {worker}": None for worker in self._workers}
        self._hidden_ui = HiddenAddress.draw()
        self._ports = choose(wanted, remembered=places.state / "ports.json", free_ports=free_ports)

    def _url(self, name: str) -> str:
        return f"http://{HOST}:{self._ports[name]}"

    @property
    def gateways(self) -> Mapping[str, str]:
        """Region -> URL for requests."""
        return {region: self._url(f"gateway {region}") for region in self._regions}

    @property
    def endpoints(self) -> Mapping[str, Any]:
        """The content of endpoints.json."""
        return {
            "api": self._url("api"),
            "page": self._url("api") + "/",
            "docs": self._url("api") + "/docs",
            "temporal_ui": self._url("temporal_ui"),
            "temporal_address": f"{HOST}:{self._ports['temporal']}",
            "gateways": self.gateways,
            "admin_key_file": str(self._places.admin_key),
            "worker_metrics": {name: self._url(f"metrics {name}") + "/metrics" for name in self._workers},
            "pid": os.getpid(),
        }

    def start(self) -> None:
        """Start everything and return when it is ready; endpoints.json exists then.

        Workers beyond the first start after that: they share the work, and no start waits for them.
        """
        log = structlog.get_logger()
        self._places.endpoints.unlink(missing_ok=True)
        (self._places.state / "logs").mkdir(exist_ok=True)
        replace_file(self._places.peers, json.dumps(self._peers).encode())
        for left in self._places.state.glob("worker*.ready"):
            left.unlink()
        become_subreaper()  # a region's supervisor becomes a child of this process once its agent has died
        first, *more = self._workers
        log.info("starting Temporal and the agents", regions=list(self._regions), **self._stores.display_names)
        self._family.start(self._temporal())
        preload(["ipnext.infra.agent.__main__"])
        self._family.start(*(self._agent(region) for region in self._regions))
        preload(["ipnext.dev.temporal_ui", "ipnext.api.__main__", "workflows.worker"])
        temporal = self._ports["temporal"]
        self._family.wait_until(lambda: _listens(HOST, temporal), what="Temporal", limit_seconds=START_LIMIT_SECONDS)
        log.info("starting API and worker")
        self._family.start(self._program("api", "ipnext.api"), self._worker(first), self._ui_proxy())
        with contextlib.closing(AgentClients(self._agent_urls, self._certificates.control_plane())) as agents:
            self._family.wait_until(
                lambda: (
                    self._places.ready(first).exists()
                    and _answers(self._url("api") + "/readyz")
                    and all(self._agent_answers(agents, region) for region in self._regions)
                    and all(map(self._gateway_listens, self._regions))
                ),
                what="the platform",
                limit_seconds=START_LIMIT_SECONDS,
            )
        ensure_admin_key(
            self._places.admin_key, self._stores.database_url
        )  # the database belongs to this platform, since it serves
        try:
            note_key_file(self._url("api"), self._places.admin_key, self._credentials)
        except InvalidInput as error:
            log.warning("CLI and SDK do not find the key by themselves: set IPNEXT_API_KEY", why=error.message)
        replace_file(self._places.endpoints, json.dumps(self.endpoints, indent=2).encode())
        ticket = make_first_ticket(self._stores.database_url, read_key(self._places.admin_key))
        link = f"{self._url('api')}/#ticket={ticket}"
        log.info("ready", **{k: v for k, v in self.endpoints.items() if k != "pid"} | {"page": link})
        self._family.start(*map(self._worker, more))

    def tend(self, stop: threading.Event) -> None:
        """Restart crashed processes, and rotate the logs, until `stop` is set."""
        logs = LogRetention(self._places.state / "logs", LogLimits.of(AgentSettings()))
        orphans = OrphanReaper()
        while not stop.wait(0.1):
            self._family.tend()
            orphans.look()
            self._certificates.renew()
            if logs.due:
                logs.look()

    def stop(self) -> None:
        """End everything in order: workers, API, agents with their data planes, Temporal.

        The data planes finish their requests, within the models' drains; an agent that takes longer is killed, and then
        its processes.
        """
        self._places.endpoints.unlink(missing_ok=True)
        with contextlib.suppress(OSError, InvalidInput):
            forget_key_file(self._url("api"), self._places.admin_key, self._credentials)
        for region, agent in self._agents.items():
            agent.grace_seconds = ending_seconds(self._places.region(region))
        self._family.stop()

    def hurry(self) -> None:
        """Give up the requests that the data planes still finish."""
        self._family.hurry()

    @property
    def _peers(self) -> Mapping[str, str]:
        """Region -> URL for requests of other regions' gateways."""
        scheme = "https" if self._certificates.secure else "http"
        ports = {region: self._ports[f"gateway of {region} for peers"] for region in self._regions}
        return {region: f"{scheme}://{HOST}:{port}" for region, port in ports.items()}

    @property
    def _client_urls(self) -> Mapping[str, str]:
        """Region -> URL of its gateway for clients, by the settings that its agent reads."""
        listener = public_listener(AgentSettings())
        return {region: listener.url_at(self._ports[f"gateway {region}"]) for region in self._regions}

    @property
    def _agent_urls(self) -> Mapping[str, str]:
        scheme = "https" if self._certificates.secure else "http"
        return {region: f"{scheme}://{HOST}:{self._ports[f'agent {region}']}" for region in self._regions}

    def _agent_answers(self, agents: AgentClients, region: str) -> bool:
        url = f"{self._agent_urls[region]}/healthz"
        try:
            found = agents.call(region, "GET", url, most_bytes=PROBE_BYTES, seconds=PROBE_SECONDS)
        except RegionUnreachable:
            return False
        return found.status == httpx.codes.OK

    def _gateway_listens(self, region: str) -> bool:
        return _listens(public_listener(AgentSettings()).local_host, self._ports[f"gateway {region}"])

    def _environment(self) -> Mapping[str, str]:
        given = {**self._config.worker_settings(), **self._config.agent_settings()}
        settings = {name: os.environ.get(name, value) for name, value in given.items()}
        most = most_hosts(regions=max(1, len(self._regions)))
        return settings | {
            "IPNEXT_AGENT_MAX_HOSTS": os.environ.get("IPNEXT_AGENT_MAX_HOSTS", str(most)),
            **self._certificates.environment(),
            "IPNEXT_DATABASE_URL": self._stores.database_url,
            "IPNEXT_ARTIFACTS_URI": self._stores.artifacts_uri,
            "IPNEXT_ARTIFACT_ROOTS": os.environ.get(
                "IPNEXT_ARTIFACT_ROOTS", json.dumps([str(self._places.state / "incoming")])
            ),
            "IPNEXT_ADMINISTRATORS_READ": os.environ.get("IPNEXT_ADMINISTRATORS_READ", "any"),
            "IPNEXT_AGENTS": json.dumps(self._agent_urls),
            "IPNEXT_GATEWAYS": os.environ.get("IPNEXT_GATEWAYS", json.dumps(self._client_urls)),
            # the platform of one user has one API: its settings replace those of an earlier start
            "IPNEXT_ACCESS_SETTINGS_VERSION": str(int(time.time())),
            "IPNEXT_TEMPORAL_UI_URL": self._url("temporal_ui"),
            "IPNEXT_API_PORT": str(self._ports["api"]),
            "TEMPORAL_ADDRESS": f"{HOST}:{self._ports['temporal']}",
            "TEMPORAL_NAMESPACE": self._config.temporal.namespace,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def _program(self, name: str, module: str, *arguments: str) -> Child:
        command = [sys.executable, "-m", module, *arguments]
        return Child(name=name, command=command, environment=self._environment(), log=self._places.log(name))

    def _ui_proxy(self) -> Child:
        """Return the proxy by which users reach Temporal's UI."""
        return self._program(
            "temporal-ui",
            "ipnext.dev.temporal_ui",
            *("--port", str(self._ports["temporal_ui"]), "--upstream", self._hidden_ui.url, "--api", self._url("api")),
        )

    def _worker(self, name: str) -> Child:
        child = self._program(name, "workflows.worker")
        metrics = f"{HOST}:{self._ports[f'metrics {name}']}"
        child.environment = {
            **child.environment,
            "IPNEXT_WORKER_READY_FILE": str(self._places.ready(name)),
            "IPNEXT_WORKER_METRICS_ADDRESS": metrics,
        }
        return child

    def _temporal(self) -> Child:
        server = self._config.temporal.model_copy(update={"port": self._ports["temporal"]})
        command = server_command(server, binary=temporal_binary(), state=self._places.state, ui=self._hidden_ui)
        return Child(name="temporal", command=command, environment={}, log=self._places.log("temporal"))

    def _agent(self, region: str) -> Child:
        directory = self._places.region(region)
        agent = self._program(
            f"agent-{region}",
            "ipnext.infra.agent",
            *("--region", region, "--state", str(directory), "--port", str(self._ports[f"agent {region}"])),
            *("--gateway-port", str(self._ports[f"gateway {region}"])),
            *("--peer-port", str(self._ports[f"gateway of {region} for peers"])),
            *("--artifacts", self._stores.artifacts_uri, "--peers", str(self._places.peers)),
            *("--owner", str(os.getpid())),
        )
        certificates = self._certificates.environment(region)
        agent.environment = {**agent.environment, **certificates, "IPNEXT_AGENT_SIGTERM": "end"}
        agent.unhurried = True
        self._agents[region] = agent
        return agent


def ending_seconds(directory: Path) -> float:
    """Return the longest end of the agent with this state directory: its longest drain, and the rest of its end."""
    try:
        settings, wanted = AgentSettings(), DesiredState(directory / "wanted").deployments.values()
    except (OSError, ValueError):
        return STREAM_DRAIN_SECONDS + BEYOND_DRAINS_SECONDS
    told = settings.shutdown_drain_seconds
    drain = longest_drain(wanted, drain_seconds=settings.drain_seconds) if told is None else told
    return drain + 2 * settings.grace_seconds + BEYOND_DRAINS_SECONDS


def let_hosts_in(places: StatePaths, regions: tuple[str, ...]) -> None:
    """Let hosts that run as another user enter the state directory, and log that user, if root starts the platform.

    Raises InvalidInput.
    """
    if os.geteuid() == 0 and regions:
        first = places.region(regions[0])
        first.mkdir(parents=True, exist_ok=True)
        host_user(AgentSettings().host_user, state=first, above=(places.state, first.parent))


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_SECONDS):
            return True
    except OSError:
        return False


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=PROBE_SECONDS, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def run(
    settings: DevSettings,
    *,
    state: Path,
    config: Path | None = None,
    fleet: Path | None = None,
    free_ports: bool = False,
) -> int:
    """Start the platform in `state` and keep it until SIGINT or SIGTERM; a second one ends it at once.

    Returns the exit status. Raises Conflict (the directory or a port is in use, or the directory belongs to other
    stores), InvalidInput (config, fleet, stores) and Unavailable (a process does not start, a store does not answer).
    """
    keep_new_files_private()
    locate_command_line()
    os.environ["OMP_NUM_THREADS"] = "1"  # numpy would start threads, and a process of several threads can't be forked
    state = state.resolve()
    stores = Stores.of(state, settings)
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            platform.hurry()
            return
        stop.set()
        raise KeyboardInterrupt

    with lock_state(state):
        places = StatePaths(state)
        regions = prepare(state, stores, fleet)
        let_hosts_in(places, regions)
        platform = DevPlatform(
            places,
            config,
            regions,
            stores=stores,
            certificates=DevCertificates(places.certificates, regions, component_settings(), settings),
            free_ports=free_ports,
            workers=settings.dev_workers,
            credentials=client_settings().credentials_file,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        try:
            platform.start()
            platform.tend(stop)
        except KeyboardInterrupt:
            pass
        finally:
            structlog.get_logger().info("ending; answers under way are finished, once more ends at once")
            platform.stop()
            end_orphans()
    return 0
