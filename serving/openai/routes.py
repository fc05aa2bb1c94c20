"""The OpenAI routes of a router.

A request is forwarded unchanged to one engine of one generation, its answer to the client.
"""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from ipnext.errors import (
    DeadlineExceeded,
    HostLost,
    IPnextError,
    NotFound,
    QueryOfDeath,
    Unavailable,
)
from ipnext.names import GENERATION_HEADER, REGION_HEADER, SNAPSHOTS_HEADER
from serving.access.guard import AccessGuard, Refusal
from serving.access.open_streams import OpenStreams
from serving.http.dialects import Dialect
from serving.http.limits import BodyBudget, MemoryClaim
from serving.http.messages import Answer, Request, Response, StreamedAnswer, seconds_left
from serving.metrics.in_flight import InFlight
from serving.openai.adapters import alias_of
from serving.openai.answer_headers import from_engine
from serving.openai.chat_batch import BATCH_PATH, check_batch
from serving.openai.conversation_size import check_conversation
from serving.openai.disaggregated_prefill import Prefill, Prompt
from serving.openai.engine_fields import check_fields, filter_headers
from serving.openai.engine_request import EngineRequest, hint_of, model_of, read_body
from serving.openai.engines.proof import is_proven, restore_headers
from serving.openai.engines.registry import EngineRegistry
from serving.openai.engines.response import EngineAnswer, EngineLost
from serving.openai.errors import Full, openai_error
from serving.openai.forwarding import Egress
from serving.openai.generation_selection import choose, may_wait, wait
from serving.openai.media_urls import check_media
from serving.openai.model_cards import generative, is_generative, model_card, model_list
from serving.openai.prompt.pre_generation import PreGeneration
from serving.openai.request_context import RequestContext
from serving.openai.weighted_choice import ForwardedRequest, directed
from serving.protocol.json_size import SMALL_BYTES
from serving.protocol.response_templates import NotFinite
from serving.routing.admission import RequestAdmission
from serving.routing.gateway_choice import chosen_by
from serving.routing.host_client import HostClient
from serving.routing.lost_requests import LostRequests
from serving.routing.metrics import RouterMetrics
from serving.routing.request_identity import openai_identity
from serving.routing.sync_policy import HostCandidate
from serving.routing.table import GenerationRoute, ModelRoutes, Routes, TableFollower

MAX_REQUEST_BYTES: Final = 32 * 2**20
"""Limit of a request's body: room for images in a prompt."""
SILENT_SECONDS: Final = 600.0
"""Longest silence of an engine: before its answer if the request has no deadline, and between two pieces of it."""
ATTEMPTS: Final = 2
"""Engines that are tried for one request, so that a query of death cannot end all of them."""
PATHS: Final = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"),
        *(BATCH_PATH, "/v1/messages/count_tokens"),
        *("/v1/score", "/v1/rerank", "/score", "/rerank", "/classify", "/pooling", "/tokenize", "/detokenize"),
    }
)
"""Paths forwarded to engines. Their other routes change them (adapters, weights) and are for the platform only."""
_SERVED: Final = f"GET /v1/models, /v1/models/MODEL; POST {', '.join(sorted(PATHS))}"
ROOTS: Final = frozenset({"v1", *(path[1:] for path in PATHS if path.count("/") == 1)})
"""First steps of the paths served here."""
NOT_FOUND: Final = 404
_NO_ROUTE: Final = b'{"detail":"Not Found"}'
"""vLLM's answer at a path of a task that its model is not made for, which does not help a client."""
_ENDING: Final = frozenset({500, 502, 503})
"""Statuses of an engine that ends or has no room: another one may answer."""
_FULL: Final = 503
_FAILED: Final = 500


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Limits of a request."""

    silent_seconds: float = SILENT_SECONDS
    body_bytes: int = MAX_REQUEST_BYTES
    budget: BodyBudget = field(default_factory=BodyBudget)


class OpenAIEdge:
    """Serves OpenAI's API for all generative models of the table."""

    def __init__(  # noqa: PLR0913 - the collaborators made by the router
        self,
        follower: TableFollower,
        engines: EngineRegistry,
        metrics: RouterMetrics,
        *,
        hosts: HostClient,
        admission: RequestAdmission,
        guard: AccessGuard,
        limits: EdgeLimits | None = None,
    ) -> None:
        self._lost = LostRequests()
        self._pre_generation = PreGeneration(hosts, engines, metrics, fresh=self._fresh, current=self._current)
        self._follower = follower
        self._engines = engines
        self._metrics = metrics
        self._region = metrics.region
        self._admission = admission
        self._guard = guard
        self._limits = limits or EdgeLimits()
        self._streams = OpenStreams(guard)
        self._prefill = Prefill(engines, metrics)
        self._egress = Egress(
            follower,
            engines.loads,
            admitted=self._counted,
            answers=engines.answers,
            silent_seconds=self._limits.silent_seconds,
        )

        self.dialect = Dialect(self._limits.body_bytes, openai_error)

    def close(self) -> None:
        """Close the idle connections to the gateway, and end the checks of streams."""
        self._egress.close()
        self._streams.close()

    def answer(self, request: Request) -> Response | Awaitable[Answer]:
        """Route one request whose path begins with one of ROOTS."""
        path = request.path.rstrip("/")
        if request.method == "POST" and path in PATHS:
            return self._generate(request, path)
        try:
            return self._about(request, path)
        except Refusal as refused:
            return openai_error(refused.error)
        except IPnextError as error:
            return openai_error(error)

    def _about(self, request: Request, path: str) -> Response:
        routes = self._guard.visible(request)
        match request.method, path.split("/"):
            case "GET", ["", "v1", "models"]:
                return _json(model_list(routes))
            case "GET", ["", "v1", "models", name]:
                self._check(request, name, predicts=False)
                return _json(model_card(generative(routes, name), name))
        msg = f"{request.method} {path} is not served here; served: {_SERVED}"
        raise NotFound(msg)

    async def _generate(self, request: Request, path: str) -> Answer:
        context = RequestContext(self._metrics, len(request.content))
        claim = self._limits.budget.claim()
        try:
            asked = await self._read_request(request, path, context, claim)
            if not isinstance(asked, EngineRequest):
                context.leave_out()
                claim.set(0)
                return await self._answered_elsewhere(asked, path)
            answer = await self._in_time(request, path, asked)
            _check_task(answer, asked.name, path)
        except Refusal as refused:
            return openai_error(refused.error)
        except IPnextError as error:
            return self._answer_refusal(context, error)
        except asyncio.CancelledError:
            context.note_cancel()
            raise
        except BaseException:
            context.end(500)
            raise
        finally:
            claim.set(0)
        return self._pass_on(request, asked, answer)

    def _directed(self, request: Request, name: str) -> Request | ForwardedRequest | IPnextError:
        """Return the request with its generation, for this region or another, or the reason of a refusal.

        Raises Refused by access control.
        """
        routes, model = self._follower.routes, name.partition(":")[0]
        way: Request | ForwardedRequest | IPnextError
        try:
            way = directed(request, routes.choices.get(model), routes.models.get(model), region=self._region)
        except (NotFound, Unavailable) as error:  # not before the caller is known: it says what is served
            way = error
        self._check(request, name, elsewhere=not isinstance(way, Request))
        return way

    async def _answered_elsewhere(self, way: ForwardedRequest | IPnextError, path: str) -> Answer:
        """Return the answer of another region, which counts the request, or the refusal of the choice."""
        try:
            if isinstance(way, ForwardedRequest):
                return await self._egress.answer(way, path)
            response = openai_error(way)
        except IPnextError as error:
            response = openai_error(error)
        return Response(response.status, response.body, {**response.headers, REGION_HEADER: self._region})

    async def _read_request(
        self, request: Request, path: str, context: RequestContext, claim: MemoryClaim
    ) -> EngineRequest | ForwardedRequest | IPnextError:
        """Read the request, and choose the generation that answers it, here or in another region.

        An error is one of the choice.
        """
        if len(request.content) > SMALL_BYTES:
            self._check_unread(request)
        body = read_body(request, self._limits.body_bytes, claim)
        routes = self._routes_for(request, body)
        name = model_of(body, routes)
        way = self._directed(request, name)
        if not isinstance(way, Request):
            return way
        context.chosen_by = chosen_by(way, self._region)
        model = generative(routes, name)
        context.model = model.model
        check_fields(body)
        check_conversation(body, request.content)
        if path == BATCH_PATH:
            check_batch(body)
        check_media(body, request.content)
        route = await self._await_generation(way, model, context)
        alias = alias_of(route, name)
        record = self._lost.of(model.model, lambda: (openai_identity(orjson.loads(request.content), request.content),))
        record.identify(lambda: (openai_identity(body, request.content),))
        record.check()
        if alias is None:
            return EngineRequest(route, context, record, claim, name, body, request.content)
        renamed = alias.rename(body)
        return EngineRequest(route, context, record, claim, name, renamed, orjson.dumps(renamed), alias)

    def _routes_for(self, request: Request, body: Mapping[str, Any]) -> Routes:
        """Return all routes, without the models hidden from the caller if an error may list the served ones."""
        name, routes = body.get("model"), self._follower.routes
        model = routes.models.get(name.partition(":")[0]) if isinstance(name, str) else None
        return routes if model is not None and is_generative(model) else self._guard.visible(request)

    def _check(self, request: Request, name: str, *, predicts: bool = True, elsewhere: bool = False) -> None:
        """Return if access control admits the request for a model or its adapter.

        Refused, which is counted only as such.
        """
        model = name.partition(":")[0]
        try:
            self._guard.admit(request, model, predicts=predicts, elsewhere=elsewhere)
        except Refusal as refused:
            self._metrics.refusals.note(model if self._follower.routes.knows(model) else None, refused.reason)
            raise

    def _check_unread(self, request: Request) -> None:
        """Return if the request may be for a model that its caller may ask.

        Refused, which is counted under no model.
        """
        try:
            self._guard.admit_unread(request)
        except Refusal as refused:
            self._metrics.refusals.note(None, refused.reason)
            raise

    async def _await_generation(self, request: Request, model: ModelRoutes, context: RequestContext) -> GenerationRoute:
        """Return the generation that answers.

        If its engines are in a hot swap, the request waits for them, counted as in flight.
        """
        try:
            route = choose(model, request)
        except Unavailable:
            if not may_wait(model, request):
                raise
        else:
            context.begin(route, self._admit(route.model))
            return route
        admitted = self._admit(model.model)
        try:
            seconds = seconds_left(request, default=self._limits.silent_seconds) / 2
            route = await wait(
                self._follower,
                model,
                request,
                seconds=seconds,
                under_way=lambda: self._metrics.under_way(model.model),
            )
            self._check(request, model.model, predicts=False)  # another access list may be in force by now
        except BaseException:
            admitted.__exit__(None, None, None)
            raise
        context.begin(route, admitted)
        return route

    def _admit(self, model: str) -> Any:
        admitted = self._counted(model)
        admitted.__enter__()
        return admitted

    def _counted(self, model: str) -> InFlight:
        try:
            return self._admission.admit(model)
        except Unavailable as error:
            raise Full(error.message) from error

    def _answer_refusal(self, context: RequestContext, error: IPnextError) -> Response:
        response = openai_error(error)
        context.end(response.status, size=len(response.body), non_finite=isinstance(error, NotFinite))
        return Response(response.status, response.body, {**response.headers, **self._proof(context)})

    async def _in_time(self, request: Request, path: str, asked: EngineRequest) -> EngineAnswer:
        seconds = seconds_left(request, default=self._limits.silent_seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._prepare(request, path, asked, seconds)
                asked.keep_bytes(beside=request.content)
                return await self._try_engines(request, path, asked)
        except (HostLost, QueryOfDeath) as error:
            asked.record.lost(deadly=isinstance(error, QueryOfDeath))
            raise
        except TimeoutError as error:
            msg = f"no answer has begun within the deadline of {seconds * 1000:.0f} ms"
            raise DeadlineExceeded(msg) from error

    async def _prepare(self, request: Request, path: str, asked: EngineRequest, seconds: float) -> None:
        """Run the other parts first.

        Nodes before the generator build the prompt in the body, a prefill part processes it.
        """
        if asked.route.before is not None:
            prepared = await self._pre_generation.run(asked.route, path, asked.body, seconds)
            asked.context.used = prepared.used
            asked.body, asked.content = prepared.body, orjson.dumps(prepared.body)
        if asked.route.choices and "prefix" in {asked.route.routing, asked.route.prefill_routing}:
            asked.hint = hint_of(request, asked.body)
        if asked.route.handoff is not None:
            prompt = Prompt(path, filter_headers(request.headers), asked.content, asked.body, asked.hint)
            asked.content = await self._prefill.content(asked.route, prompt, seconds=seconds)

    async def _try_engines(self, request: Request, path: str, asked: EngineRequest) -> EngineAnswer:
        """Return an answer that has begun.

        Only until then may the request be sent to another engine of the same generation.
        """
        headers = filter_headers(request.headers)
        tried: list[str] = []
        suspect: str | None = None
        reason = ""
        for number in range(ATTEMPTS):
            candidate = self._candidate(asked, tried)
            if candidate is None:
                break
            if number:
                self._metrics.note_retry(asked.route.model, asked.route.generation)
            tried.append(candidate.url)
            asked.context.ask(candidate.snapshot, self._engines.loads.calling(candidate.url))
            content = asked.content_for(candidate.url)
            answer: EngineAnswer | None = None
            try:
                answer = await self._engines.ask(candidate.url, "POST", path, headers, content)
                is_own = await is_proven(answer, path, asked.expected, asked.sent_name)
            except EngineLost as error:
                reason = str(error)
                if answer is not None:
                    answer.cancel()
                self._engines.loads.note_lost(candidate.url)
                if error.sent:
                    await self._engines.check_alive(candidate.url)
                if error.reused and self._candidate(asked, tried) is None:
                    tried.remove(candidate.url)
                continue
            if not is_own:
                answer.cancel()
                reason = self._engines.note_foreign(asked.route, candidate)
                continue
            self._convict(suspect, answer)
            if answer.status not in _ENDING or number + 1 == ATTEMPTS or self._candidate(asked, tried) is None:
                return answer
            if answer.status != _FULL and await self._engines.is_gone(candidate.url):
                asked.record.lost()
                return answer
            answer.cancel()
            suspect = self._blame(candidate.url, answer)
        route = asked.route
        msg = f"generation {route.generation} of {route.model}: no engine answers; {reason}"
        raise Unavailable(msg)

    def _blame(self, url: str, answer: EngineAnswer) -> str | None:
        """Eject an engine that has not answered.

        If its request may be the cause, return it: the next engine's answer decides.
        """
        if answer.status == _FAILED:
            return url
        self._engines.loads.note_lost(url)
        return None

    def _convict(self, suspect: str | None, answer: EngineAnswer) -> None:
        """Eject an engine that failed a request which another one answers."""
        if suspect is not None and answer.status not in _ENDING:
            self._engines.loads.note_lost(suspect)

    def _candidate(self, asked: EngineRequest, tried: list[str]) -> HostCandidate | None:
        """Return an untried engine from the current table; None if there is none."""
        route = asked.route = self._fresh(asked.route) if tried else self._current(asked.route)
        for tier in route.candidates[route.generator or ""]:
            candidates = {candidate.url: candidate for candidate in tier if candidate.url not in tried}
            if candidates:
                url = self._engines.loads.choose(list(candidates), asked.hint, policy=route.routing)
                return candidates[url]
        return None

    def _fresh(self, route: GenerationRoute) -> GenerationRoute:
        """Return the same generation with the current engines.

        If it is no longer served: unchanged; if the model's engines hot swap, without any, since they have other
        weights by now.
        """
        model = self._follower.routes.models.get(route.model)
        fresh = model.generations.get(route.generation) if model is not None else None
        if fresh is not None and fresh.snapshots == route.snapshots:
            return fresh
        return (
            replace(route, candidates=dict.fromkeys(route.candidates, ((),)))
            if model is not None and model.swap
            else route
        )

    def _current(self, route: GenerationRoute) -> GenerationRoute:
        """Return the route as it was when the request began; if the model's engines hot swap, with the current ones."""
        model = self._follower.routes.models.get(route.model)
        return self._fresh(route) if model is not None and model.swap else route

    def _pass_on(self, request: Request, asked: EngineRequest, answer: EngineAnswer) -> Answer:
        context, alias = asked.context, asked.answering
        headers = from_engine(answer.headers)
        headers |= {} if alias is None else restore_headers(headers, alias.engine, alias.asked)
        headers.update(self._proof(context))
        whole = answer.take_complete()
        if whole is not None:
            whole = whole if alias is None else alias.restore(whole)
            context.end(answer.status, size=len(whole))
            headers.pop("content-length", None)
            return Response(answer.status, whole, headers)
        context.follow(answer, self._streams.add(request, asked.route.model, answer.cut_off))
        answer.watch(self._limits.silent_seconds)
        if alias is None:
            return StreamedAnswer(answer.status, headers, answer)
        headers.pop("content-length", None)
        return StreamedAnswer(answer.status, headers, alias.follow(answer))

    def _proof(self, context: RequestContext) -> Mapping[str, str]:
        route = context.route
        if route is None:
            return {REGION_HEADER: self._region}
        used = {**context.used}
        if context.snapshot is not None and route.generator is not None:
            used[route.generator] = context.snapshot
        return {
            REGION_HEADER: self._region,
            GENERATION_HEADER: str(route.generation),
            SNAPSHOTS_HEADER: route.snapshots_text(used),
        }


def _check_task(answer: EngineAnswer, model: str, path: str) -> None:
    """Raise NotFound with an explanation if the engine has no such path."""
    if answer.status == NOT_FOUND and answer.complete == _NO_ROUTE:
        msg = (
            f"model {model[:80]} does not answer {path}: its engine is started for another task. "
            "One that generates answers "
            "/v1/chat/completions, /v1/completions, /v1/responses and /v1/messages; one that embeds (runner: "
            "pooling) /v1/embeddings"
        )
        raise NotFound(msg)


def _json(value: Any) -> Response:
    return Response(200, orjson.dumps(value), {"content-type": "application/json"})
