"""The router process: the V2 edge of a region's models. Walks the part graph over hosts of one generation.

Started by a region's agent: `python -m serving.router --port P --region R --table FILE`.
"""

import argparse
import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from ipnext import __version__
from ipnext.errors import DeadlineExceeded, IPnextError, Unavailable
from ipnext.model.deployment import RouterState
from ipnext.names import GENERATION_HEADER, REGION_HEADER, SNAPSHOTS_HEADER
from serving.balancing import EndpointLoads
from serving.frames import Frame
from serving.graph import Tensors, run_graph
from serving.host_client import Attempt, HostClient, TryElsewhere
from serving.http import Request, Response, error_response, json_response, not_found, seconds_left
from serving.model_metadata import model_signature
from serving.protocol import (
    HEADER_LENGTH,
    Encoded,
    InferRequest,
    InferResponse,
    decode_request,
    encode_response,
    parse_header_length,
)
from serving.router_metrics import RouterMetrics
from serving.router_table import GenerationRoute, TableFollower
from serving.server import listen, log_as_json, run, serve
from serving.tensors import all_finite

DEFAULT_DEADLINE_SECONDS: Final = 10.0
ATTEMPTS: Final = 2
"""A request that meets a host without its generation, or no host, is tried once more as a whole."""

T = TypeVar("T")

_ABOUT: Final[Mapping[str, Any]] = {
    "name": "ipnext",
    "version": __version__,
    "extensions": ["binary_tensor_data"],
}


class Router:
    """The routes of the edge."""

    def __init__(self, follower: TableFollower, hosts: HostClient, metrics: RouterMetrics, *, region: str) -> None:
        self._follower = follower
        self._hosts = hosts
        self._metrics = metrics
        self._region = region

    def handle(self, request: Request) -> Response | Awaitable[Response]:
        """Route one request."""
        steps = request.path.strip("/").split("/")
        match request.method, steps:
            case "POST", ["v2", "models", model, "infer"]:
                return self._counted(request, model, request.header(GENERATION_HEADER))
            case "POST", ["v2", "models", model, "versions", version, "infer"]:
                return self._counted(request, model, version)
            case "GET", ["v2", "models", model, *rest]:
                return self._about_model(request, model, rest)
            case "GET", _:
                return self._about_server(request)
        raise not_found(request)

    def _about_server(self, request: Request) -> Response:
        follower = self._follower
        match request.path.strip("/"):
            case "v2":
                return json_response(_ABOUT)
            case "v2/health/live" | "healthz":
                return json_response({"live": True})
            case "v2/health/ready":
                return json_response({"ready": follower.found}, 200 if follower.found else 503)
            case "control/state":
                return json_response(RouterState(revision=follower.routes.revision, traffic=self._metrics.traffic))
            case "metrics":
                return Response(200, self._metrics.text(), {"content-type": "text/plain; version=0.0.4"})
        raise not_found(request)

    async def _about_model(self, request: Request, model: str, rest: list[str]) -> Response:
        pin = request.header(GENERATION_HEADER)
        if rest[:1] == ["versions"] and len(rest) > 1:
            pin, rest = rest[1], rest[2:]
        routes = self._follower.routes.model(model)
        if rest == ["ready"]:
            return self._ready(model, pin)
        if rest:
            raise not_found(request)
        route = routes.choose(pin)
        try:
            signature = await model_signature(route, self._hosts)
        except TryElsewhere as error:
            raise Unavailable(str(error)) from error
        about = {"name": model, "versions": [str(number) for number in routes.generations], "platform": "ipnext"}
        about |= signature.model_dump(mode="json")
        return json_response(about)

    def _ready(self, model: str, pin: str | None) -> Response:
        try:
            route = self._follower.routes.model(model).choose(pin)
        except Unavailable:
            return json_response({"name": model, "ready": False}, 503)
        return json_response({"name": model, "version": str(route.generation), "ready": True})

    async def _counted(self, request: Request, model: str, pin: str | None) -> Response:
        began = time.perf_counter()
        route: GenerationRoute | None = None
        asked = Attempt()
        try:
            route = self._follower.routes.model(model).choose(pin)
            response = await self._answer(request, route, asked)
            if any(route.snapshots[part] != number for part, number in asked.used.items()):
                self._metrics.note_substituted(model, route.generation)
        except IPnextError as error:
            response = error_response(error)
        known = model in self._follower.routes.models
        self._metrics.note_answer(
            model if known else "unknown",
            route.generation if route is not None else None,
            status=response.status,
            seconds=time.perf_counter() - began,
        )
        return Response(response.status, response.body, {**response.headers, **self._proof(route, asked.used)})

    async def _answer(self, request: Request, route: GenerationRoute, asked: Attempt) -> Response:
        seconds = seconds_left(request, default=DEFAULT_DEADLINE_SECONDS)
        answer = self._relay if route.only_part is not None else self._walk
        with self._metrics.in_flight(route.model, route.generation):
            try:
                async with asyncio.timeout(seconds):
                    asked.deadline = time.monotonic() + seconds
                    return await answer(request, route, asked)
            except TimeoutError as error:
                msg = f"the deadline of {seconds * 1000:.0f} ms passed"
                raise DeadlineExceeded(msg) from error

    async def _relay(self, request: Request, route: GenerationRoute, asked: Attempt) -> Response:
        """A model of one part: its host reads the request and writes the answer."""
        body = (request.content, parse_header_length(request.header(HEADER_LENGTH)))

        async def attempt(route: GenerationRoute) -> Frame:
            return await self._hosts.relay(route, str(route.only_part), body, asked)

        answer = await self._tried(route, asked, attempt)
        if not answer.header["finite"]:
            self._metrics.note_non_finite(route.model, route.generation)
        content = answer.body.data
        return Response(200, content, Encoded(b"", answer.header["header_length"]).headers)

    async def _walk(self, request: Request, route: GenerationRoute, asked: Attempt) -> Response:
        """A model of several parts: their graph."""
        wanted = decode_request(request.content, parse_header_length(request.header(HEADER_LENGTH)))
        route.plan.check_request(wanted.inputs)
        wanted.check_outputs(tuple(route.plan.outputs))

        async def attempt(route: GenerationRoute) -> Tensors:
            call = partial(self._hosts.infer, route, attempt=asked)
            return await run_graph(route.plan, wanted.inputs, call)

        outputs = await self._tried(route, asked, attempt)
        return self._encoded(route, wanted, outputs, asked.used)

    async def _tried(
        self, route: GenerationRoute, asked: Attempt, attempt: Callable[[GenerationRoute], Awaitable[T]]
    ) -> T:
        """What an attempt gives, all for one generation: when any call fails to find a host, all are made again."""
        reason = ""
        for number in range(ATTEMPTS):
            if number:
                self._metrics.note_retry(route.model, route.generation)
                route = self._fresh(route)
                asked.used.clear()
            try:
                return await attempt(route)
            except TryElsewhere as error:
                reason = str(error)
        msg = f"generation {route.generation} of {route.model}: no host answers; {reason}"
        raise Unavailable(msg)

    def _fresh(self, route: GenerationRoute) -> GenerationRoute:
        """The same generation with the endpoints known now, where it is still served."""
        models = self._follower.routes.models
        fresh = models[route.model].generations.get(route.generation) if route.model in models else None
        return fresh if fresh is not None and not fresh.missing and fresh.snapshots == route.snapshots else route

    def _encoded(
        self, route: GenerationRoute, wanted: InferRequest, outputs: Tensors, used: Mapping[str, int]
    ) -> Response:
        if not all(all_finite(tensor) for tensor in outputs.values()):
            self._metrics.note_non_finite(route.model, route.generation)
        chosen = wanted.select(outputs)
        snapshots = {**route.snapshots, **used}
        proof = {"generation": route.generation, "snapshots": snapshots, "region": self._region}
        response = InferResponse(route.model, chosen, str(route.generation), wanted.id, proof)
        encoded = encode_response(response, binary=wanted.binary_names(chosen))
        return Response(200, encoded.body, encoded.headers)

    def _proof(self, route: GenerationRoute | None, used: Mapping[str, int]) -> Mapping[str, str]:
        if route is None:
            return {REGION_HEADER: self._region}
        snapshots = {**route.snapshots, **used}
        return {
            REGION_HEADER: self._region,
            GENERATION_HEADER: str(route.generation),
            SNAPSHOTS_HEADER: ",".join(f"{part}={number}" for part, number in sorted(snapshots.items())),
        }


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.router", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--region", required=True)
    parser.add_argument("--table", type=Path, required=True, help="file to follow (a RouterTable as JSON)")
    return parser.parse_args(arguments)


def _log_out(url: str, why: str) -> None:
    structlog.get_logger().warning("host left out for a while", url=url, why=why)


async def _main(arguments: argparse.Namespace, listener: socket.socket) -> None:
    hosts = HostClient(EndpointLoads(time.monotonic, on_out=_log_out), time.monotonic)
    follower = TableFollower(
        arguments.table, region=arguments.region, on_change=lambda routes: hosts.forget(routes.urls)
    )
    follower.look()
    router = Router(follower, hosts, RouterMetrics(region=arguments.region), region=arguments.region)
    following = asyncio.create_task(follower.follow())
    structlog.get_logger().info("router listens", port=listener.getsockname()[1])
    await serve(router.handle, listener)
    following.cancel()
    hosts.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a router until SIGTERM."""
    parsed = _arguments(arguments)
    log_as_json()
    listener = listen(parsed.port)
    run(partial(_main, parsed, listener))


if __name__ == "__main__":
    main()
