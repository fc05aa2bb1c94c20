"""The host of generative and embedding parts: runs one vLLM for each snapshot that it holds, and says where it answers.

Started by a region's agent:
`python -m serving.genai.host --sockets DIR --region R --id ID --artifacts URI --cache DIR`.
"""

import argparse
import asyncio
import os
import time
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from ipnext.components.http_sessions import HttpSessions
from ipnext.components.identity import Component
from ipnext.model.deployment.deployment import STREAM_DRAIN_SECONDS
from ipnext.model.deployment.host_control import HostHolds, HostMemoryState, HostState
from ipnext.model.settings.engine_allowances import EngineAllowances
from serving.confinement.landlock import Confinement, add_confinement, restrict, restrict_sockets
from serving.confinement.privileges import add_user, become, drop_capabilities, give_to
from serving.confinement.socket_filter import INTERFACES, LOCAL, TCP
from serving.genai.adapters import Adapters
from serving.genai.checkpoint_check import verify
from serving.genai.engine.enclosure import Enclosures, enclosures_place, forget_places, host_allowed
from serving.genai.engine.log import EngineLogs, OpenLog
from serving.genai.engine.probe import EngineProbe
from serving.genai.engine.supervisor import engine_sockets, forget_sockets
from serving.genai.engine_manager import EngineManager, log_directory, transfer_directory
from serving.genai.metrics import EngineMetrics
from serving.http.drain_lease import DrainLease
from serving.http.listeners import Listener, add_listener, listeners, share_sockets
from serving.http.messages import Request, Response, json_response, not_found, parse_model
from serving.http.server import add_allowed_hosts, allowed_hosts, log_as_json, run, serve
from serving.metrics.tallies import CONTENT_TYPE
from serving.snapshots.fetch_process import FetchingProcess, add_disk_reserve, add_store_environment

CALLERS: Final = (Component.AGENT,)
ENGINE_SOCKETS: Final = (*LOCAL, *TCP, *INTERFACES)
"""New sockets of a host and of its engines, whose processes talk by local ones."""
NOTICE_SECONDS: Final = 1.0
"""Time after the termination signal in which requests may still arrive: until the agent notices, and the router is
updated."""
DRAIN_POLL_SECONDS: Final = 0.25


class GenerativeHost:
    """The control routes of a host; routers send requests to its engines directly."""

    def __init__(self, engines: EngineManager, *, region: str) -> None:
        self._engines = engines
        self._metrics = EngineMetrics(engines, region=region)
        self._drain = DrainLease()
        self._stamped: str | None = None
        self._ending_seconds = STREAM_DRAIN_SECONDS

    async def shut_down(self) -> None:
        """Report the drain, let requests finish for at most the model's drain time, then stop the engines."""
        notice = NOTICE_SECONDS if self._engines.ready and not self._drain.on else 0.0
        self._drain.end()
        began = time.monotonic()
        while (passed := time.monotonic() - began) < self._ending_seconds:
            if passed >= notice and not await self._engines.in_flight():
                break
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        await self._engines.close()

    def handle(self, request: Request) -> Response | Awaitable[Response]:
        """Route one request."""
        match request.method, request.path.strip("/").split("/"):
            case "PUT", ["control", "holds"]:
                self._hold(parse_model(HostHolds, request.content))
                return json_response(self._state(self._engines.in_flight_before), 202)
            case "POST", ["control", "drain"]:
                self._drain.begin()
                return self._report_state()
            case "GET", ["control", "state"]:
                self._drain.renew()
                return (
                    self._report_state()
                    if self._drain.on
                    else json_response(self._state(self._engines.in_flight_before))
                )
            case "GET", ["metrics"]:
                return Response(200, self._metrics.text(), {"content-type": CONTENT_TYPE})
            case "GET", ["healthz"]:
                return json_response({"live": True})
        raise not_found(request)

    def _hold(self, told: HostHolds) -> None:
        drain = STREAM_DRAIN_SECONDS if told.drain_seconds is None else told.drain_seconds
        self._engines.hold(told.holds, told.coming, drain_seconds=drain)
        self._stamped = told.stamp_digest
        self._ending_seconds = STREAM_DRAIN_SECONDS if told.ending_seconds is None else told.ending_seconds

    async def _report_state(self) -> Response:
        """Report the state with a fresh count.

        During a drain the agent must not act on a count that is a second old.
        """
        return json_response(self._state(await self._engines.in_flight()))

    def _state(self, in_flight: int) -> HostState:
        engines = self._engines
        return HostState(
            ready=engines.ready,
            loading=engines.loading,
            failures=engines.failures,
            in_flight=in_flight,
            draining=self._drain.on,
            stamped=self._stamped,
            fetched=engines.fetched_digests,
            swaps=engines.swaps,
            starts=engines.starts,
            memory=HostMemoryState(
                used_bytes=engines.used_bytes, budget_bytes=engines.budget_bytes, snapshots=engines.snapshots
            ),
        )


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.genai.host", description=__doc__)
    add_listener(parser)
    parser.add_argument("--region", required=True)
    parser.add_argument("--id", required=True, help="name of this replica")
    parser.add_argument("--artifacts", required=True, help="uri of the artifact store: file:///... or s3://...")
    add_disk_reserve(parser)
    add_store_environment(parser)
    parser.add_argument("--cache", type=Path, required=True, help="directory that snapshots are fetched into")
    parser.add_argument("--s3-endpoint-url", default=None)
    parser.add_argument("--memory-bytes", type=int, default=None, help="an engine that would go beyond is refused")
    parser.add_argument(
        "--transfer", type=Path, default=None, help="directory where prefill and decode meet; else beside the cache"
    )
    parser.add_argument(
        "--allow-argument", action="append", default=[], metavar="NAME", help="of vLLM, for manifests; may load code"
    )
    parser.add_argument(
        "--allow-environment", action="append", default=[], metavar="NAME", help="a variable, as --allow-argument"
    )
    parser.add_argument(
        "--inherit-environment",
        action="append",
        default=[],
        metavar="NAME",
        help="a variable of its own that engines get",
    )
    add_confinement(parser)
    add_user(parser)
    add_allowed_hosts(parser)
    return parser.parse_args(arguments)


async def _main(
    arguments: argparse.Namespace,
    bound: Sequence[Listener],
    fetching: FetchingProcess,
    enclosures: Enclosures | None,
    begin_log: OpenLog,
) -> None:
    async with aclosing(HttpSessions()) as session:
        engines = EngineManager(
            fetching,
            arguments.cache,
            partial(EngineProbe, session),
            host_id=arguments.id,
            check=verify,
            adapters=Adapters(session),
            session=session,
            budget_bytes=arguments.memory_bytes,
            transfer=arguments.transfer,
            sockets=arguments.sockets,
            inherited=tuple(arguments.inherit_environment),
            allowances=EngineAllowances(tuple(arguments.allow_argument), tuple(arguments.allow_environment)),
            enclosures=enclosures,
            begin_log=begin_log,
        )
        host = GenerativeHost(engines, region=arguments.region)
        structlog.get_logger().info("host listens", id=arguments.id, at=[listener.address for listener in bound])
        await serve(host.handle, bound, allowed=allowed_hosts(arguments), before_exit=host.shut_down)
    fetching.close()


def prepare_places(arguments: argparse.Namespace) -> Sequence[Path]:
    """Create the directories that the host itself writes, and return those besides the cache.

    They are the directory for transfers between parts, and that of the engines' sockets.
    """
    transfer = arguments.transfer or transfer_directory(arguments.cache)
    for directory in (arguments.cache, transfer):
        directory.mkdir(parents=True, exist_ok=True)
    if arguments.sockets is None:
        return (transfer,)
    forget_sockets(arguments.sockets)
    return (transfer, engine_sockets(arguments.sockets))


def confine(arguments: argparse.Namespace, *, writable: Sequence[Path]) -> Enclosures | None:
    """Confine this process to the access that it and its engines need; return the engines' enclosures. Unavailable.

    None if nothing is confined. If the host runs as a separate user, which has no home, its engines get private
    directories even without confinement.
    """
    if arguments.confinement is Confinement.OFF and arguments.user is None:
        return None
    enclosures = Enclosures(
        place=_place(arguments),
        mode=arguments.confinement,
        readable=tuple(arguments.readable),
        writable=tuple(arguments.writable),
    ).prepare()
    allowed = host_allowed(enclosures, os.environ, readable=(arguments.cache,), writable=writable)
    drop_capabilities()
    if allowed is None:
        restrict_sockets(arguments.confinement, ENGINE_SOCKETS)
    else:
        restrict(arguments.confinement, allowed, sockets=ENGINE_SOCKETS)
    return enclosures


def _place(arguments: argparse.Namespace) -> Path:
    return enclosures_place(arguments.cache, arguments.id, user=_user(arguments))


def _user(arguments: argparse.Namespace) -> int:
    """Return the user that the host becomes."""
    return os.geteuid() if arguments.user is None else int(arguments.user.uid)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a host until SIGTERM; its engines then finish their requests. A second signal ends it at once."""
    parsed = _arguments(arguments)
    log_as_json()
    logs = EngineLogs(log_directory(parsed.cache), parsed.id)
    fetching = FetchingProcess(
        parsed.artifacts,
        s3_endpoint_url=parsed.s3_endpoint_url,
        into=parsed.cache,
        disk_reserve_bytes=parsed.disk_reserve_bytes,
        store_environment=parsed.store_environment,
    )
    forget_engines = partial(forget_places, _place(parsed), user=_user(parsed))
    keeper = fetching.fork(logs=logs.begin, at_end=forget_engines)  # before there are threads
    bound = listeners(parsed, Component.HOST, CALLERS)
    places = prepare_places(parsed)
    if parsed.user is not None:
        for place in places:
            give_to(place, parsed.user)
        share_sockets(bound, Component.ROUTER, group=parsed.user.gid)
        become(parsed.user)
    enclosures = confine(parsed, writable=places)
    run(partial(_main, parsed, bound, fetching, enclosures, keeper.begin_log))
    os._exit(0)  # a download that hangs in its thread must not keep the process


if __name__ == "__main__":
    main()
