"""Entry point of a region's agent: `python -m ipnext.infra.agent --region R --state DIR --port P ...`.

It keeps the region's processes in their desired state until SIGTERM or SIGINT; then it finishes requests under way and
ends them, and a second signal ends all at once. With `IPNEXT_AGENT_SIGTERM=leave` SIGTERM ends the agent alone. Then,
and if it dies, the processes continue under the region's supervisor, and the next agent on the same state directory
adopts them.
"""

import argparse
import asyncio
import fcntl
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import structlog
from aiohttp import web

from ipnext.components.certificates import CertificateFiles
from ipnext.components.client_contexts import contexts_for
from ipnext.components.http_sessions import HttpSessions
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.private_files import keep_new_files_private
from ipnext.components.settings import ComponentSettings, component_settings
from ipnext.errors import Conflict, InvalidInput, IPnextError
from ipnext.infra.agent.http_api import agent_app
from ipnext.infra.agent.listener import AgentListener, agent_limits, listener_files
from ipnext.infra.agent.peers import PeersFile
from ipnext.infra.agent.reconciler import Region
from ipnext.infra.agent.supervisor_client import SupervisorClient
from ipnext.infra.context import RegionContext
from ipnext.infra.envoy.public_listener import public_listener
from ipnext.infra.envoy.tls import PeerTls
from ipnext.infra.host.local_runtime import LocalHosts
from ipnext.infra.host.runtime import HostRuntime
from ipnext.infra.process.host_user import HostUser, host_user
from ipnext.infra.process.identity import ProcessIdentity, identify, open_process
from ipnext.infra.process.places import ProcessAddresses
from ipnext.infra.process.ports import LOOPBACK, PortBook
from ipnext.infra.settings import AgentSettings

GATEWAY_PORT_NAME = "gateway"
PEER_PORT_NAME = "gateway for peers"


@dataclass(frozen=True, kw_only=True)
class AgentArguments:
    """Arguments of the command line."""

    region: str
    state: Path
    host: str
    port: int
    gateway_port: int
    peer_port: int
    artifacts: str
    peers: Path | None
    owner: int | None


def read_arguments(arguments: Sequence[str] | None = None) -> AgentArguments:
    """Parse the command line; ends with status 2 and a usage text on a bad one."""
    parser = argparse.ArgumentParser(prog="python -m ipnext.infra.agent", description="The agent of one region.")
    parser.add_argument("--region", required=True, help="name of the region")
    parser.add_argument("--state", required=True, type=Path, help="directory for wanted state, logs and caches")
    parser.add_argument("--host", default=LOOPBACK, help=f"address of the agent (default {LOOPBACK})")
    parser.add_argument("--port", required=True, type=int, help="port of the agent")
    parser.add_argument("--gateway-port", required=True, type=int, help="loopback port of Envoy; 0 picks and remembers")
    parser.add_argument(
        "--peer-port",
        type=int,
        default=0,
        help="loopback port of Envoy for the gateways of other regions; 0 picks and remembers",
    )
    parser.add_argument("--artifacts", required=True, help="uri of the artifact store")
    parser.add_argument("--peers", type=Path, help="JSON file: region -> URL of its gateway for other gateways")
    parser.add_argument("--owner", type=int, help="process id: all that the agent started ends with this process")
    return AgentArguments(**vars(parser.parse_args(arguments)))


async def run_agent(arguments: AgentArguments, settings: AgentSettings, user: HostUser | None = None) -> None:
    """Run until SIGTERM or SIGINT, then end everything in order; a second signal ends it at once.

    After SIGTERM the processes are left to the next agent instead if the settings say so.
    """
    ended, hurry, left = asyncio.Event(), asyncio.Event(), asyncio.Event()
    components = component_settings()
    files = listener_files(components, arguments.host, insecure_bind=settings.insecure_bind)
    limits = agent_limits(settings)
    owner = _owner(arguments.owner)

    def handle_signal(number: signal.Signals) -> None:
        if number == signal.SIGTERM and settings.sigterm == "leave" and not ended.is_set():
            left.set()
        (hurry if ended.is_set() else ended).set()

    def end_at_once() -> None:  # the owner's end has ended all processes that this agent could still finish
        ended.set()
        hurry.set()

    if owner is not None and (descriptor := open_process(owner)) is not None:
        asyncio.get_running_loop().add_reader(descriptor, end_at_once)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, handle_signal, number)
    hosts = ComponentIdentity(components.trust_domain, Component.HOST, arguments.region)
    contexts = None if files is None else contexts_for(hosts, components)
    async with aclosing(HttpSessions(contexts)) as session:
        site = _site(arguments, settings, session, components, user)
        site.keep_store_environment()
        supervisor = SupervisorClient(
            site.directory,
            settings=settings,
            environment=site.environment(),
            modules=_list_fork_modules(settings),
            owner=owner,
        )
        await supervisor.connect()
        supervised = replace(site, processes=supervisor)
        region = Region(supervised, PeersFile(arguments.peers), _hosts(supervised, components))
        await region.start()
        app = agent_app(
            region, region_name=arguments.region, allowed=site.allowed_hosts, authenticated=files is not None
        )
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, keepalive_timeout=settings.keep_alive_seconds
        )
        await runner.setup()
        listener = AgentListener(_protocols(runner), files, trust_domain=components.trust_domain, limits=limits)
        await listener.start(arguments.host, arguments.port)
        structlog.get_logger().info(
            "agent runs", region=arguments.region, port=arguments.port, adopted=len(supervisor.notes)
        )
        await ended.wait()
        await listener.stop()
        await runner.cleanup()
        if left.is_set():
            await region.leave()
            supervisor.leave()
            structlog.get_logger().info("agent leaves, its region goes on", region=arguments.region)
        else:
            await region.stop(hurry)
            await supervisor.end()
            site.places.close()


def _hosts(site: RegionContext, components: ComponentSettings) -> HostRuntime:
    """Return what starts hosts. InvalidInput."""
    if site.settings.runtime == "processes":
        return LocalHosts(site)
    _check_router(site.settings)
    try:
        kubernetes = import_module("ipnext.infra.kubernetes.region_hosts")
    except ModuleNotFoundError as error:
        msg = (
            f"IPNEXT_AGENT_RUNTIME: kubernetes needs the package {error.name}: pip install 'ipnext[kubernetes]'; "
            "allowed without it: processes"
        )
        raise InvalidInput(msg, field="runtime", value="kubernetes", allowed=["processes"]) from error
    hosts: HostRuntime = kubernetes.region_hosts(site, components)
    return hosts


def _check_router(settings: AgentSettings) -> None:
    """Raise InvalidInput unless the router has a certificate: hosts in pods are on other machines."""
    for name in ("router_certificate_file", "router_key_file", "router_ca_file"):
        if getattr(settings, name) is None:
            msg = (
                f"IPNEXT_AGENT_{name.upper()}: the router reaches hosts in pods by a certificate of its own; "
                "give certificate, key and CA"
            )
            raise InvalidInput(msg, field=name)


def _protocols(runner: web.AppRunner) -> Callable[[], asyncio.BaseProtocol]:
    if runner.server is None:
        msg = "the runner of the agent's application is not set up"
        raise RuntimeError(msg)
    return runner.server


def _owner(pid: int | None) -> ProcessIdentity | None:
    """Return the identity of the owner. InvalidInput if there is no such process."""
    if pid is None:
        return None
    owner = identify(pid)
    if owner is None:
        msg = f"--owner: must be the id of a process that runs, got {pid}"
        raise InvalidInput(msg, field="owner", value=pid)
    return owner


def _list_fork_modules(settings: AgentSettings) -> list[str]:
    """Return the modules of the fork server that a command of this agent runs."""
    commands = (settings.host_command, settings.router_command)
    return [
        module for module in settings.fork_server if any(part[:3] == ("{python}", "-m", module) for part in commands)
    ]


def _site(
    arguments: AgentArguments,
    settings: AgentSettings,
    session: HttpSessions,
    components: ComponentSettings,
    user: HostUser | None,
) -> RegionContext:
    ports = PortBook(arguments.state / "ports.json")
    gateway = _remember_port(ports, GATEWAY_PORT_NAME, arguments.gateway_port)
    tls = _peer_tls(arguments, settings, components)
    listens = tls is not None or components.component_authentication == "none"
    peers = _remember_port(ports, PEER_PORT_NAME, arguments.peer_port) if listens else 0
    return RegionContext(
        region=arguments.region,
        directory=arguments.state.resolve(),
        artifacts=arguments.artifacts,
        gateway_port=gateway,
        peer_tls=tls,
        settings=settings,
        places=ProcessAddresses(arguments.state.resolve(), ports, group=None if user is None else user.gid),
        host_user=user,
        session=session,
        peer_port=peers,
        listener=public_listener(settings),
    )


def _remember_port(ports: PortBook, name: str, given: int) -> int:
    """Return the given port, or else the port of the last run."""
    port = given or ports.recall(name) or ports.port(name)
    ports.remember(name, port)
    return port


def _peer_tls(arguments: AgentArguments, settings: AgentSettings, components: ComponentSettings) -> PeerTls | None:
    """Return the certificates for connections between gateways; None if there are none.

    InvalidInput if only some of the files are given, or none of those that requests of other regions need.
    """
    names = ("gateway_certificate_file", "gateway_key_file", "gateway_ca_file")
    certificate, key, authorities = found = [getattr(settings, name) for name in names]
    if not any(found) and not (arguments.peer_port and components.component_authentication == "required"):
        return None
    if certificate is None or key is None or authorities is None:
        missing = next(name for name, file in zip(names, found, strict=True) if file is None)
        wanted = ", ".join(f"IPNEXT_AGENT_{name.upper()}" for name in names)
        msg = (
            f"IPNEXT_AGENT_{missing.upper()}: a gateway proves itself to those of other regions (--peer-port) "
            f"by all of {wanted}; "
            "give all of them, or none and no --peer-port"
        )
        raise InvalidInput(msg, field=missing)
    files = CertificateFiles(certificate.absolute(), key.absolute(), authorities.absolute())
    files.stamp()
    return PeerTls(files=files, trust_domain=components.trust_domain, secrets=arguments.state.resolve() / "envoy")


@contextmanager
def sole_owner(directory: Path) -> Iterator[None]:
    """Lock the state directory for this process. Conflict if another agent runs on it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "agent.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            msg = f"another agent runs on {directory}; end it first, or give another --state"
            raise Conflict(msg) from None
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an agent; return the exit status."""
    keep_new_files_private()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    given = read_arguments(arguments)
    try:
        with sole_owner(given.state):
            settings = AgentSettings()
            user = host_user(settings.host_user, state=given.state)
            asyncio.run(run_agent(given, settings, user))
    except IPnextError as error:
        structlog.get_logger().error("agent ends", code=error.code, reason=error.message)
        return error.exit_status
    return 0
