"""The host process: holds snapshots of parts and answers inference requests for their generations.

Started by a region's agent: `python -m serving.host --sockets DIR --region R --id ID --artifacts URI --cache DIR`.
"""

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

import structlog

from ipnext.components.identity import Component
from ipnext.errors import InvalidInput
from ipnext.model.deployment.host_control import HostHolds, HostMemoryState, HostState, SnapshotMemory
from ipnext.names import FRAMES, GENERATION_HEADER, REGION_HEADER, SNAPSHOTS_HEADER
from ipnext.settings import NativeCodeSettings
from serving.confinement.landlock import Confinement, add_confinement, confine, prepare
from serving.confinement.privileges import add_user, become, drop_capabilities
from serving.engines.base import find_engine
from serving.graph import Tensors
from serving.host.batching import InferenceQueue
from serving.host.frame_server import HostFrames
from serving.host.graph_executor import GraphExecutor
from serving.host.loader import LOAD_SECONDS, Loader
from serving.host.metrics import HostMetrics
from serving.host.other_hosts import reach_host
from serving.host.part_server import About, PartServer
from serving.host.served_part import ServedPart
from serving.http.limits import AnswerBudget, OpenConnections, add_answer_limits
from serving.http.listeners import Listener, add_listener, listeners, share_sockets
from serving.http.messages import Request, Response, json_response, not_found, parse_model, seconds_left
from serving.http.server import add_allowed_hosts, allowed_hosts, log_as_json, run, serve
from serving.metrics.tallies import CONTENT_TYPE
from serving.protocol.v2 import HEADER_LENGTH, EncodedBody, parse_header_length
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.snapshots.fetch_process import FetchingProcess, add_disk_reserve, add_store_environment
from serving.snapshots.fetch_starter import FetchingKeeper
from serving.snapshots.held_snapshots import HeldSnapshots
from serving.snapshots.memory_budget import HostMemory, keep_freed, settle, shared_bytes

CALLERS: Final = (Component.AGENT, Component.ROUTER)
DEFAULT_DEADLINE_SECONDS: Final = 10.0
SWITCH_SECONDS: Final = 0.0005
"""How long a loading thread may keep the interpreter while a request waits for it; Python's default of 5 ms costs two
requests."""

LONGEST_POLL_SECONDS: Final = 1.0
"""Limit of a long poll for the next end of a load; below the agent's request timeout."""

LATE_IMPORTS: Final = (
    "serving.engines.torch.engine",
    *("torch.export._trace", "torch.export._unlift", "torch._functorch.aot_autograd"),
    *("torch.fx.experimental.validator", "networkx", "sympy.combinatorics", "sympy.tensor.tensor"),
)
"""Modules that a host imports with its first torch snapshot. torch may move those whose name begins with an
underscore."""


class Host:
    """The HTTP routes of a host over its loaded snapshots."""

    def __init__(self, held: HeldSnapshots[ServedPart], loader: Loader, parts: PartServer, *, region: str) -> None:
        self._held = held
        self._loader = loader
        self._parts = parts
        self._region = region
        self._metrics = HostMetrics(held, parts.tally, region=region)
        self._stamped: str | None = None

    def handle(self, request: Request) -> Response | Awaitable[Response]:
        """Route one request."""
        steps = request.path.strip("/").split("/")
        match request.method, steps:
            case "POST", ["parts", model, part, "infer"]:
                return self._infer(request, model, part)
            case "PUT", ["control", "holds"]:
                told = parse_model(HostHolds, request.content)
                self._loader.hold(told.holds)
                self._stamped = told.stamp_digest
                return json_response(self.state, 202)
            case "POST", ["control", "drain"]:
                self._parts.drain.begin()
                return json_response(self.state)
            case "GET", ["control", "state", "after", revision] if revision.isdecimal():
                return self._wait_change(int(revision))
            case "GET", _:
                return self._about(request, steps)
        raise not_found(request)

    async def _wait_change(self, revision: int) -> Response:
        """Return the state once a load has ended since this revision, at the latest after LONGEST_POLL_SECONDS."""
        await self._held.ends.wait_change(revision, wait_seconds=LONGEST_POLL_SECONDS)
        return json_response(self.state)

    def _about(self, request: Request, steps: list[str]) -> Response:
        match steps:
            case ["parts", model, part]:
                return json_response(self._parts.signature(model, part, _generation(request)))
            case ["control", "state"]:
                self._parts.drain.renew()
                return json_response(self.state)
            case ["metrics"]:
                return Response(200, self._metrics.text(), {"content-type": CONTENT_TYPE})
            case ["healthz"]:
                return json_response({"live": True})
        raise not_found(request)

    @property
    def state(self) -> HostState:
        """The body of `GET /control/state`."""
        held = self._held
        return HostState(
            ready=held.ready,
            loading=held.loading,
            failures=held.failures,
            in_flight=self._parts.in_flight,
            draining=self._parts.drain.on,
            stamped=self._stamped,
            memory=self._memory,
            revision=held.ends.number,
        )

    @property
    def _memory(self) -> HostMemoryState:
        sizes = tuple(
            SnapshotMemory(model=h.model, part=h.part, snapshot=h.snapshot, size_bytes=served.size_bytes)
            for h, served in self._held.values
        )
        memory = self._loader.memory
        return HostMemoryState(used_bytes=memory.used_bytes, budget_bytes=memory.budget_bytes, snapshots=sizes)

    def _infer(self, request: Request, model: str, part: str) -> Response | asyncio.Future[Response]:
        generation = _generation(request)
        seconds = seconds_left(request, default=DEFAULT_DEADLINE_SECONDS)
        header_length = parse_header_length(request.header(HEADER_LENGTH))
        lease = self._parts.lease(model, part, generation)
        proof = {
            GENERATION_HEADER: str(generation),
            SNAPSHOTS_HEADER: f"{part}={lease.snapshot}",
            REGION_HEADER: self._region,
        }

        def finish(encoded: EncodedBody, finite: bool, outputs: Tensors) -> Response:  # noqa: ARG001  # only a router counts
            return Response(200, encoded.body, {**encoded.headers, **proof})

        about = About(model, part, generation)
        return self._parts.infer_v2(lease, request.content, header_length, about=about, seconds=seconds, finish=finish)


def _generation(request: Request) -> int:
    text = request.header(GENERATION_HEADER)
    if text is None or not (text.isascii() and text.isdigit() and len(text) <= 18):
        msg = f"{GENERATION_HEADER}: must be the number of a generation, got {text!r}"
        raise InvalidInput(msg, field=GENERATION_HEADER, value=text)
    return int(text)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.host", description=__doc__)
    add_listener(parser)
    parser.add_argument("--region", required=True)
    parser.add_argument("--id", required=True, help="name of this replica")
    parser.add_argument("--artifacts", required=True, help="uri of the artifact store: file:///... or s3://...")
    add_disk_reserve(parser)
    add_store_environment(parser)
    parser.add_argument("--cache", type=Path, required=True, help="directory that snapshots are fetched into")
    parser.add_argument("--s3-endpoint-url", default=None)
    parser.add_argument(
        "--memory-bytes", type=_positive, default=None, help="a load that would take the host beyond is refused"
    )
    parser.add_argument(
        "--load-seconds",
        type=_seconds,
        default=LOAD_SECONDS,
        help=f"a snapshot that takes longer to load has failed (default {LOAD_SECONDS:g})",
    )
    parser.add_argument("--threads", type=int, default=1, help="requests that run at once (default 1)")
    parser.add_argument("--queue", type=int, default=256, help="requests that may wait (default 256)")
    add_answer_limits(parser)
    add_confinement(parser)
    add_user(parser)
    add_allowed_hosts(parser)
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    number = float(text)
    if not number > 0:
        msg = f"must be above 0, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"must be at least 1, got {number}"
        raise argparse.ArgumentTypeError(msg)
    return number


async def _main(
    arguments: argparse.Namespace, bound: Sequence[Listener], fetching: FetchingProcess, keeper: FetchingKeeper
) -> None:
    held: HeldSnapshots[ServedPart] = HeldSnapshots()
    memory = HostMemory(arguments.memory_bytes, counted=shared_bytes)
    loader = Loader(held, lambda: fetching, arguments.cache, find_engine, memory=memory, before_serving=settle)
    loader.load_seconds = arguments.load_seconds
    queue = InferenceQueue(threads=arguments.threads, waiting=arguments.queue)
    connections = OpenConnections()
    parts = PartServer(held, queue, loader.dispose, region=arguments.region, budget=connections.budget)
    host = Host(held, loader, parts, region=arguments.region)
    structlog.get_logger().info("host listens", id=arguments.id, at=[listener.address for listener in bound])

    async def reach(url: str) -> tuple[socket.socket, str]:
        return await asyncio.to_thread(keeper.reach, url)

    answers = AnswerBudget(arguments.max_answer_bytes, arguments.answer_budget_bytes)
    others, mirrors = (
        HostClient(HostLoadBalancer(time.monotonic), time.monotonic, reach=reach, answers=answers) for _ in range(2)
    )
    executor = GraphExecutor(parts, others, mirrors)
    upgrades = {FRAMES: lambda transport, rest: HostFrames(parts, executor, connections).take_over(transport, rest)}
    await serve(
        host.handle,
        bound,
        upgrades=upgrades,
        allowed=allowed_hosts(arguments),
        connections=connections,
        before_exit=parts.wait_drained,
    )
    others.close()
    mirrors.close()
    loader.close()
    queue.close()
    fetching.close()


def preload() -> None:
    """Import the modules that a torch snapshot needs, so that forks of this process need not."""
    prepare()
    for name in LATE_IMPORTS:
        with suppress(ImportError):
            import_module(name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a host until SIGTERM."""
    parsed = _arguments(arguments)
    log_as_json()
    sys.setswitchinterval(SWITCH_SECONDS)
    keep_freed()
    fetching = FetchingProcess(
        parsed.artifacts,
        s3_endpoint_url=parsed.s3_endpoint_url,
        into=parsed.cache,
        disk_reserve_bytes=parsed.disk_reserve_bytes,
        store_environment=parsed.store_environment,
    )
    reaches = None if parsed.sockets is None else partial(reach_host, parsed.sockets.absolute())
    keeper = fetching.fork(reaches=reaches)  # before there are threads
    bound = listeners(parsed, Component.HOST, CALLERS)
    parsed.cache.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(parsed.cache))  # torch makes sure of it as it is imported
    keys = NativeCodeSettings().native_library_keys_file
    readable = [parsed.cache, *parsed.readable, *([] if keys is None else [keys])]
    connects = parsed.sockets is None  # hosts on sockets call others on sockets, through the keeper
    if parsed.user is not None:
        share_sockets(bound, Component.ROUTER, group=parsed.user.gid)
        become(parsed.user)
    elif parsed.confinement is not Confinement.OFF:
        drop_capabilities()
    confine(parsed.confinement, readable=readable, writable=parsed.writable, connects=connects)
    run(partial(_main, parsed, bound, fetching, keeper))
    os._exit(0)  # a forward pass or a download that hangs in its thread must not keep the process
