"""The router process: the V2 edge of a region's models. Walks the part graph over hosts of one generation.

Started by a region's agent: `python -m serving.router --sockets DIR --region R --table FILE`.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog

from ipnext.components.client_contexts import ClientContexts, contexts_for
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.settings import component_settings
from ipnext.errors import DeadlineExceeded, InvalidInput, IPnextError
from ipnext.model.deployment.deployment import DRAIN_SECONDS, STREAM_DRAIN_SECONDS
from ipnext.names import GENERATION_HEADER, REGION_HEADER, SNAPSHOTS_HEADER
from serving.access.access_list import AccessFollower
from serving.access.guard import AccessGuard, Refusal
from serving.graph import Tensors, run_graph
from serving.http.compression import pack_response, unpack_request
from serving.http.dialects import V2, Dialect
from serving.http.limits import (
    MAX_BODY_BYTES,
    AnswerBudget,
    BodyBudget,
    MemoryClaim,
    OpenConnections,
    UnreadAnswers,
    add_answer_limits,
)
from serving.http.listeners import Listener, add_listener, listeners
from serving.http.messages import Answer, Request, Response, error_response, seconds_left
from serving.http.server import add_allowed_hosts, allowed_hosts, log_as_json, run, serve
from serving.metrics.prediction_sketches import SAMPLE_SECONDS, sketches_of
from serving.metrics.tallies import CANCELLED
from serving.openai.engines.registry import EngineRegistry
from serving.openai.routes import MAX_REQUEST_BYTES, ROOTS, SILENT_SECONDS, EdgeLimits, OpenAIEdge
from serving.protocol.frames import Frame
from serving.protocol.response_templates import NotFinite, not_finite_inputs
from serving.protocol.tensors import all_finite, decoded_bytes
from serving.protocol.v2 import (
    HEADER_LENGTH,
    MAX_JSON_BYTES,
    EncodedBody,
    InferRequest,
    InferResponse,
    check_json_size,
    decode_request,
    encode_response,
    parse_header_length,
    proof_parameters,
)
from serving.router.management_routes import ManagementRoutes
from serving.router.shadow_mirror import ShadowMirror, mirror_answers
from serving.router.shutdown import GracefulShutdown
from serving.routing.admission import DEFAULT_MAX_IN_FLIGHT, RequestAdmission
from serving.routing.gateway_choice import chosen_by
from serving.routing.host_call import CallState
from serving.routing.host_client import HostClient
from serving.routing.load_balancer import HostLoadBalancer
from serving.routing.lost_requests import LostRequests, Record
from serving.routing.metrics import RouterMetrics
from serving.routing.request_identity import v2_identity
from serving.routing.retries import run_with_retry
from serving.routing.table import GenerationRoute, Routes, TableFollower

CALLERS: Final = (Component.AGENT, Component.GATEWAY)
DEFAULT_DEADLINE_SECONDS: Final = 10.0
_FOREVER: Final = 1e9

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RouterLimits:
    """Limits of a router."""

    max_in_flight: int = DEFAULT_MAX_IN_FLIGHT
    """Concurrent requests of one model."""
    max_json_bytes: int = MAX_JSON_BYTES
    """Bytes of JSON in one request."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Bytes of a decompressed body."""
    max_prompt_bytes: int = MAX_REQUEST_BYTES
    """Bytes of the body of an OpenAI request."""
    silent_seconds: float = SILENT_SECONDS
    """Longest silence of an engine: within an answer, and before it if the request has no deadline."""
    budget: BodyBudget = field(default_factory=BodyBudget)
    """Counts the memory of decoded bodies: the server's budget, which also counts the bodies."""
    answers: AnswerBudget = field(default_factory=AnswerBudget)
    """Counts the answers of engines and of hosts that are kept in memory."""


class Router:
    """The routes of the V2 edge, and the dispatch to the OpenAI and management routes."""

    def __init__(  # noqa: PLR0913 - the collaborators made by the entry point
        self,
        follower: TableFollower,
        hosts: HostClient,
        metrics: RouterMetrics,
        *,
        region: str,
        limits: RouterLimits | None = None,
        hosts_walk: bool = True,
        access: AccessFollower | None = None,
        mirror: ShadowMirror | None = None,
    ) -> None:
        """`access`: the access list; if None, models that are not open refuse all callers.

        `mirror`: mirrors requests to shadows; if None, no model has a shadow.
        """
        follows = access or AccessFollower(None)
        self._guard = AccessGuard(lambda: follower.routes, lambda: follows.callers)
        self._follower = follower
        self._hosts = hosts
        self._metrics = metrics
        self._region = region
        self._limits = limits or RouterLimits()
        self._budget = self._limits.budget
        self._admission = RequestAdmission(self._limits.max_in_flight)
        self.engines = EngineRegistry(region=region, answers=self._limits.answers)
        """Engines that serve by themselves; the table's follower updates them."""
        metrics.registry.register(self.engines.foreign)
        self._mirror = mirror
        if mirror is not None:
            metrics.registry.register(mirror)
        self._lost = LostRequests()
        self._ending = GracefulShutdown(region=region)
        self._management = ManagementRoutes(
            follower,
            hosts,
            metrics,
            engines=lambda: self.engines.loads.under_way,
            ending=self._ending,
            guard=self._guard,
            access=follows,
            shadows=lambda: mirror.comparisons if mirror is not None else (),
        )
        self._openai = OpenAIEdge(
            follower,
            self.engines,
            metrics,
            hosts=hosts,
            admission=self._admission,
            guard=self._guard,
            limits=EdgeLimits(self._limits.silent_seconds, self._limits.max_prompt_bytes, self._budget),
        )
        self._hosts_walk = hosts_walk

    def handle(self, request: Request) -> Response | Awaitable[Answer]:
        """Route one request."""
        steps = request.path.strip("/").split("/")
        if self._ending.closed and request.method == "POST" and steps[0] != "control":
            return self._ending.refusal(steps[0])
        match request.method, steps:
            case "POST", ["v2", "models", model, "infer"]:
                return self._answer_guarded(request, model, request.header(GENERATION_HEADER))
            case "POST", ["v2", "models", model, "versions", version, "infer"]:
                return self._answer_guarded(request, model, version)
        if steps[0] in ROOTS:
            return self._openai.answer(request)
        return self._management.answer(request, steps)

    async def wait_drained(self) -> None:
        """Drain the router; see `GracefulShutdown.drain`."""
        routes = self._follower.routes
        limits = {name: model.drain_seconds for name, model in routes.models.items()}
        for name in routes.choices:  # a stream of another region, whose drain time this one does not know
            limits[name] = max(limits.get(name, 0.0), STREAM_DRAIN_SECONDS)
        await self._ending.drain(lambda: (limits.get(model, DRAIN_SECONDS) for model in self._admission.under_way))

    def dialect_of(self, path: str) -> Dialect:
        """Return the dialect of a path: OpenAI's, or else V2."""
        root = path.partition("?")[0].strip("/").partition("/")[0]
        return self._openai.dialect if root in ROOTS else V2

    def close(self) -> None:
        """Close the connections to engines and to the gateway, and those for mirrored requests."""
        self.engines.close()
        self._openai.close()
        if self._mirror is not None:
            self._mirror.close()

    def _answer_guarded(self, request: Request, model: str, pin: str | None) -> Response | Awaitable[Answer]:
        """Answer a request if access control admits it; a refused one is counted only as refused."""
        try:
            self._guard.admit(request, model)
        except Refusal as refused:
            self._metrics.refusals.note(model if model in self._follower.routes.models else None, refused.reason)
            return _refusal(refused, self._region)
        return self._answer_counted(request, model, pin)

    async def _answer_counted(self, request: Request, model: str, pin: str | None) -> Response:
        began = time.perf_counter()
        route: GenerationRoute | None = None
        asked = CallState(chosen_by=chosen_by(request, self._region))
        response = Response(500)
        try:
            route = self._follower.routes.model(model).choose(pin)
            self._metrics.note_chosen(route.model, route.generation, asked.chosen_by)
            response = await self._answer_admitted(request, route, asked)
            if route.is_substituted(asked.used):
                self._metrics.note_substituted(model, route.generation)
        except IPnextError as error:
            response = error_response(error)
        except asyncio.CancelledError:
            response = Response(CANCELLED)
            raise
        finally:
            self._metrics.note_answer(
                model if route is not None or model in self._follower.routes.models else "unknown",
                route.generation if route is not None else None,
                status=response.status,
                seconds=time.perf_counter() - began,
                sizes=(len(request.content), len(response.body)),
                chosen_by=asked.chosen_by,
                non_finite=asked.non_finite,
            )
        headers = {**response.headers, **self._proof(route, asked.used)}
        return Response(response.status, response.body, headers, response.after_sent)

    async def _answer_admitted(self, request: Request, route: GenerationRoute, asked: CallState) -> Response:
        claim: MemoryClaim | None = None
        with self._admission.admit(route.model):
            headers = request.headers
            try:
                if "content-encoding" in headers:
                    claim = self._budget.claim()
                    request = await unpack_request(request, limit=self._limits.max_body_bytes, claim=claim)
                check_json_size(
                    request.content, parse_header_length(request.header(HEADER_LENGTH)), self._limits.max_json_bytes
                )
                began = time.perf_counter()
                response = await self._answer(request, route, asked)
                after_sent = self._after_sent(route, request, response, time.perf_counter() - began, asked)
                if "accept-encoding" in headers:
                    response = await pack_response(response, request)
                return response if after_sent is None else replace(response, after_sent=after_sent)
            finally:
                if claim is not None:
                    claim.set(0)

    def _after_sent(
        self, route: GenerationRoute, request: Request, response: Response, seconds: float, asked: CallState
    ) -> Callable[[], None] | None:
        if self._mirror is None:
            return None
        chosen = asked.chosen_by is not None
        return self._mirror.after_answer(route.model, request, response, seconds=seconds, chosen=chosen)

    async def _answer(self, request: Request, route: GenerationRoute, asked: CallState) -> Response:
        if route.generator is not None:
            more = "" if route.before is not None else " or /v1/embeddings"
            msg = f"model {route.model} generates: ask at /v1/chat/completions, /v1/completions{more}"
            raise InvalidInput(msg, field="model", value=route.model)
        seconds = seconds_left(request, default=DEFAULT_DEADLINE_SECONDS)
        passes = route.only_part is not None or (self._hosts_walk and route.executing_part is not None)
        answer = self._relay if passes else self._walk
        asked.sampled = asked.chosen_by is not None and self._metrics.samples(route.model, route.generation)
        with self._metrics.in_flight(route.model, route.generation):
            try:
                async with asyncio.timeout(seconds):
                    asked.deadline = time.monotonic() + seconds
                    return await answer(request, route, asked)
            except TimeoutError as error:
                msg = f"the deadline of {seconds * 1000:.0f} ms passed"
                raise DeadlineExceeded(msg) from error

    async def _relay(self, request: Request, route: GenerationRoute, asked: CallState) -> Response:
        """Relay the request to a host, which reads it and writes the answer.

        It is a host of the only part, or of the last node.
        """
        body = (request.content, parse_header_length(request.header(HEADER_LENGTH)))

        async def attempt(route: GenerationRoute) -> Frame:
            if route.only_part is None:
                return await self._hosts.walk(route, body, asked)
            return await self._hosts.relay(route, route.only_part, body, asked)

        try:
            answer = await self._with_retry(route, body, asked, attempt)
        except NotFinite:
            asked.non_finite = True
            raise
        asked.non_finite = not answer.header["finite"]
        sketches = answer.header.get("sketches")
        if sketches:
            self._metrics.note_predictions(route.model, route.generation, sketches)
        content = answer.body.data
        return Response(200, content, EncodedBody(b"", answer.header["header_length"]).headers)

    async def _walk(self, request: Request, route: GenerationRoute, asked: CallState) -> Response:
        """Execute the graph in this router."""
        with self._budget.claim() as claim:
            length = parse_header_length(request.header(HEADER_LENGTH))
            wanted = decode_request(request.content, length, room=claim.set)
            claim.set(decoded_bytes(wanted.inputs.values(), beside=request.content))
            return await self._execute_graph(route, wanted, (request.content, length), asked)

    async def _execute_graph(
        self, route: GenerationRoute, wanted: InferRequest, body: tuple[bytearray, int | None], asked: CallState
    ) -> Response:
        route.plan.check_request(wanted.inputs)
        wanted.check_outputs(tuple(route.plan.outputs))
        asked.deadline = min(asked.deadline, time.monotonic() + wanted.seconds(_FOREVER))

        async def attempt(route: GenerationRoute) -> Tensors:
            call = partial(self._hosts.infer, route, attempt=asked)
            return await run_graph(route.plan, wanted.inputs, call)

        outputs = await self._with_retry(route, body, asked, attempt)
        response = self._encode(route, wanted, outputs, asked)
        if asked.sampled:
            self._metrics.note_predictions(route.model, route.generation, sketches_of(wanted.select(outputs)))
        return response

    def _with_retry(
        self,
        route: GenerationRoute,
        body: tuple[bytearray, int | None],
        asked: CallState,
        attempt: Callable[[GenerationRoute], Awaitable[T]],
    ) -> Awaitable[T]:
        """Return the result of an attempt, all for one generation: if any call finds no host, all calls are repeated.

        `body`: the request's, with the length of its JSON; its tensors identify the request if it is lost.
        """

        def again(counts: bool) -> None:
            nonlocal route
            if counts:
                self._metrics.note_retry(route.model, route.generation)
            route = self._fresh(route)
            asked.used.clear()

        subject = f"generation {route.generation} of {route.model}"
        record = Record(self._lost, route.model, lambda: v2_identity(*body))
        return run_with_retry(lambda: attempt(route), asked, again=again, subject=subject, record=record)

    def _fresh(self, route: GenerationRoute) -> GenerationRoute:
        """Return the same generation with the current endpoints, if it is still served."""
        models = self._follower.routes.models
        fresh = models[route.model].generations.get(route.generation) if route.model in models else None
        return fresh if fresh is not None and not fresh.missing and fresh.has_snapshots_of(route) else route

    def _encode(self, route: GenerationRoute, wanted: InferRequest, outputs: Tensors, asked: CallState) -> Response:
        chosen = wanted.select(outputs)
        if not all(all_finite(tensor) for tensor in outputs.values()):
            if all(all_finite(tensor) for tensor in wanted.inputs.values()):
                asked.non_finite = True
            elif len(wanted.binary_names(chosen)) < len(chosen):
                raise not_finite_inputs()
        proof = proof_parameters(route.generation, {**route.snapshots, **asked.used}, self._region)
        response = InferResponse(route.model, chosen, str(route.generation), wanted.id, proof)
        encoded = encode_response(response, binary=wanted.binary_names(chosen))
        return Response(200, encoded.body, encoded.headers)

    def _proof(self, route: GenerationRoute | None, used: Mapping[str, int]) -> Mapping[str, str]:
        if route is None:
            return {REGION_HEADER: self._region}
        return {
            REGION_HEADER: self._region,
            GENERATION_HEADER: str(route.generation),
            SNAPSHOTS_HEADER: route.snapshots_text(used),
        }


def _refusal(refused: Refusal, region: str) -> Response:
    response = error_response(refused.error)
    return Response(response.status, response.body, {**response.headers, REGION_HEADER: region})


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.router", description=__doc__)
    add_listener(parser)
    parser.add_argument("--region", required=True)
    parser.add_argument("--table", type=Path, required=True, help="file to follow (a RouterTable as JSON)")
    parser.add_argument(
        "--access",
        type=Path,
        help="file to follow (an AccessList as JSON); without it models that are not open answer nobody",
    )
    parser.add_argument(
        "--walk",
        choices=("hosts", "router"),
        default="hosts",
        help=(
            "who walks a graph of several parts: the host of the last one (default), "
            "or this router if hosts cannot reach each other"
        ),
    )
    parser.add_argument(
        "--max-in-flight", type=int, default=DEFAULT_MAX_IN_FLIGHT, help="requests of one model at once"
    )
    parser.add_argument("--max-json-bytes", type=int, default=MAX_JSON_BYTES, help="JSON in one request")
    add_answer_limits(parser)
    parser.add_argument(
        "--silent-seconds",
        type=_seconds,
        default=SILENT_SECONDS,
        help=(
            "an engine may be silent for so long, before an answer without a deadline and within one "
            f"(default {SILENT_SECONDS:.0f})"
        ),
    )
    parser.add_argument(
        "--sample-seconds",
        type=_seconds,
        default=SAMPLE_SECONDS,
        help=(
            "at least so long between two answers of a generation that are sampled for drift (default "
            f"{SAMPLE_SECONDS}; inf: none)"
        ),
    )
    add_allowed_hosts(parser)
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    number = float(text)
    if not number >= 0:
        msg = f"must be at least 0, got {text}"
        raise argparse.ArgumentTypeError(msg)
    return number


def _host_contexts(region: str) -> ClientContexts | None:
    """Return the TLS of calls to hosts at https://; None without a certificate of this router."""
    settings = component_settings()
    return contexts_for(ComponentIdentity(settings.trust_domain, Component.HOST, region), settings)


def _log_ejected(url: str, why: str) -> None:
    structlog.get_logger().warning("host left out for a while", url=url, why=why)


async def _main(arguments: argparse.Namespace, bound: Sequence[Listener], contexts: ClientContexts | None) -> None:
    answers = AnswerBudget(arguments.max_answer_bytes, arguments.answer_budget_bytes)
    loads = HostLoadBalancer(time.monotonic, on_ejected=_log_ejected)
    hosts = HostClient(loads, time.monotonic, answers=answers, contexts=contexts)

    def apply_routes(routes: Routes) -> None:
        hosts.forget(routes.urls)
        mirror.follow(routes)
        router.engines.keep(routes.engine_urls, chosen_among=routes.engine_choices)

    follower = TableFollower(arguments.table, region=arguments.region, on_change=apply_routes)
    access = AccessFollower(arguments.access)
    follower.beside = (access.look,)
    metrics = RouterMetrics(
        region=arguments.region, served=lambda: follower.routes.all, sample_seconds=arguments.sample_seconds
    )
    connections = OpenConnections(unread=UnreadAnswers(arguments.answer_budget_bytes // 2))
    limits = RouterLimits(
        arguments.max_in_flight,
        arguments.max_json_bytes,
        silent_seconds=arguments.silent_seconds,
        budget=connections.budget,
        answers=answers,
    )
    mirror = ShadowMirror(
        HostClient(
            HostLoadBalancer(time.monotonic),
            time.monotonic,
            answers=mirror_answers(),
            mirrors=True,
            contexts=contexts,
        ),
        region=arguments.region,
        hosts_walk=arguments.walk == "hosts",
    )
    router = Router(
        follower,
        hosts,
        metrics,
        region=arguments.region,
        limits=limits,
        hosts_walk=arguments.walk == "hosts",
        access=access,
        mirror=mirror,
    )
    follower.look()
    following = asyncio.create_task(follower.follow())
    structlog.get_logger().info("router listens", at=[listener.address for listener in bound])
    await serve(
        router.handle,
        bound,
        allowed=allowed_hosts(arguments),
        connections=connections,
        before_exit=router.wait_drained,
        dialect_of=router.dialect_of,
    )
    following.cancel()
    hosts.close()
    router.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a router until SIGTERM; it then finishes its requests. A second signal ends it at once."""
    parsed = _arguments(arguments)
    log_as_json()
    try:
        contexts = _host_contexts(parsed.region)
    except IPnextError as error:
        structlog.get_logger().error("router ends", code=error.code, reason=error.message)
        sys.exit(error.exit_status)
    bound = listeners(parsed, Component.ROUTER, CALLERS)
    run(partial(_main, parsed, bound, contexts))
