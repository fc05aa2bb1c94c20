"""The router's routes besides inference: served models, statistics, state, and refusals of unsupported extensions."""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Final

import orjson

from ipnext import __version__
from ipnext.errors import InvalidInput, Unavailable
from ipnext.model.access.predictions import KeyUseReport
from ipnext.model.deployment.router_table import RouterState
from ipnext.model.gate.shadow import ShadowComparison
from ipnext.names import GENERATION_HEADER
from serving.access.access_list import AccessFollower
from serving.access.guard import AccessGuard, Refusal
from serving.http.messages import Request, Response, error_response, json_response, not_found
from serving.metrics.generation_counts import GenerationCounts
from serving.metrics.tallies import CONTENT_TYPE
from serving.router.model_metadata import model_signature
from serving.router.shutdown import GracefulShutdown
from serving.routing.host_call import RetryOnOtherHost
from serving.routing.host_client import HostClient
from serving.routing.metrics import RouterMetrics
from serving.routing.table import GenerationRoute, Routes, TableFollower

_LIFECYCLE: Final = "models come and go by `ipnext publish`, `rollback` and `delete`"
_BINARY: Final = "send tensors as binary data"
_UNSUPPORTED: Final[Mapping[str, str]] = {
    "systemsharedmemory": f"shared memory: {_BINARY}",
    "cudasharedmemory": f"shared memory: {_BINARY}",
    "xpusharedmemory": f"shared memory: {_BINARY}",
    "repository": f"loading and unloading: {_LIFECYCLE}",
    "trace": "tracing",
    "logging": "log settings",
    "config": "model configuration: GET /v2/models/{model} has the tensors",
    "generate": "generation: generative models answer at /v1/completions",
    "generate_stream": "generation: generative models answer at /v1/completions",
}
"""First steps below `/v2`, and last steps below `/v2/models/{model}`, of extensions that are not served."""


_ABOUT: Final[Mapping[str, Any]] = {
    "name": "ipnext",
    "version": __version__,
    "extensions": ["binary_tensor_data", "model_repository", "statistics"],
}


class ManagementRoutes:
    """Serves all paths of a router but inference."""

    def __init__(  # noqa: PLR0913 - the collaborators made by the router
        self,
        follower: TableFollower,
        hosts: HostClient,
        metrics: RouterMetrics,
        *,
        engines: Callable[[], Mapping[str, int]] = dict,
        ending: GracefulShutdown,
        guard: AccessGuard,
        access: AccessFollower,
        shadows: Callable[[], tuple[ShadowComparison, ...]] = tuple,
    ) -> None:
        self._follower = follower
        self._hosts = hosts
        self._metrics = metrics
        self._engines = engines
        self._ending = ending
        self._guard = guard
        self._access = access
        self._shadows = shadows

    def answer(self, request: Request, steps: list[str]) -> Response | Awaitable[Response]:
        """Route a request by the steps of its path. NotFound, or InvalidInput for a V2 extension that is not supported.

        Requests about a model that is not open are answered only if the caller may call it.
        """
        if steps[:2] == ["v2", "models"] and steps[2:] not in ([], ["stats"]):
            try:
                self._guard.admit(request, steps[2], predicts=False)
            except Refusal as refused:
                known = steps[2] in self._follower.routes.models
                self._metrics.refusals.note(steps[2] if known else None, refused.reason)
                return error_response(refused.error)
        return self._answer(request, steps)

    def _answer(self, request: Request, steps: list[str]) -> Response | Awaitable[Response]:
        match request.method, steps:
            case "POST", ["v2", "repository", "index"]:
                return repository_index(request, self._guard.visible(request))
            case "POST" | "PUT" | "DELETE", ["control", *_]:
                return self._control(request, steps)
            case "GET", ["v2", "models", *below, "stats"] if len(below) in (0, 1, 3):
                return self._statistics(request, below)
        refuse_extension(steps)
        match request.method, steps:
            case "GET", ["v2", "models", model, "versions", version, *rest]:
                return self._about_model(request, model, version, rest)
            case "GET", ["v2", "models", model, *rest]:
                return self._about_model(request, model, request.header(GENERATION_HEADER), rest)
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
                ready = follower.found and not self._ending.closed
                return json_response({"ready": ready}, 200 if ready else 503)
            case "control/state":
                self._ending.note_state_poll()
                return self._state()
            case "control/key-uses":
                return json_response(KeyUseReport(uses=self._guard.uses.last))
            case "metrics":
                return Response(200, self._metrics.text(), {"content-type": CONTENT_TYPE})
        raise not_found(request)

    def _control(self, request: Request, steps: list[str]) -> Response:
        match request.method, steps:
            case "POST", ["control", "drain"]:
                self._ending.release()
            case "PUT", ["control", "access"]:
                self._access.put(request.content)
            case "PUT", ["control", "access", "withdrawal"]:
                self._access.withdraw(request.content)
            case _:
                raise not_found(request)
        return self._state()

    def _state(self) -> Response:
        """Return the body of `GET /control/state` and of the calls that change the state."""
        return json_response(
            RouterState(
                revision=self._follower.routes.revision,
                traffic=self._metrics.traffic,
                engines=self._engines(),
                draining=self._ending.draining,
                access=self._access.in_force,
                shadows=self._shadows(),
            )
        )

    async def _about_model(self, request: Request, model: str, pin: str | None, rest: list[str]) -> Response:
        routes = self._follower.routes.model(model)
        if rest == ["ready"]:
            return self._ready(model, pin)
        if rest:
            raise not_found(request)
        route = routes.choose(pin)
        if route.generator is not None:
            msg = f"model {model} generates: GET /v1/models/{model} describes it"
            raise InvalidInput(msg, field="model", value=model)
        try:
            signature = await model_signature(route, self._hosts)
        except RetryOnOtherHost as error:
            raise Unavailable(str(error)) from error
        about = {"name": model, "versions": [str(number) for number in routes.generations], "platform": "ipnext"}
        return json_response(about | signature.model_dump(mode="json"))

    def _ready(self, model: str, pin: str | None) -> Response:
        try:
            route = self._follower.routes.model(model).choose(pin)
        except Unavailable:
            return json_response({"name": model, "ready": False}, 503)
        return json_response({"name": model, "version": str(route.generation), "ready": True})

    def _statistics(self, request: Request, below: list[str]) -> Response:
        """Answer `/v2/models/[{model}/[versions/{generation}/]]stats`."""
        if not below:
            hidden = self._guard.closed_models - self._guard.visible(request).models.keys()
            return statistics(self._metrics, None, None, hidden=hidden)
        routes = self._follower.routes.model(below[0])
        generation = routes.find_pinned(below[2]).generation if len(below) == 3 else None
        return statistics(self._metrics, routes.model, generation)


def refuse_extension(steps: list[str]) -> None:
    """Raise InvalidInput if a path (its steps) belongs to a V2 extension that is not supported."""
    if steps[:1] != ["v2"]:
        return
    below = steps[1:] if steps[1:2] != ["models"] else _below_model(steps[2:])
    if below and below[0] in _UNSUPPORTED:
        msg = f"not supported: {_UNSUPPORTED[below[0]]}"
        raise InvalidInput(msg, field="path", value="/".join(steps))


def _below_model(steps: list[str]) -> list[str]:
    rest = steps[1:]
    return rest[2:] if rest[:1] == ["versions"] else rest


def repository_index(request: Request, routes: Routes) -> Response:
    """List every generation of every model as `{name, version, state, reason}`.

    `{"ready": true}` asks for ready ones only.
    """
    only_ready = _wants_ready(request)
    entries = [
        _entry(route)
        for model in routes.models.values()
        for route in model.generations.values()
        if not (only_ready and route.missing)
    ]
    return Response(200, orjson.dumps(entries), {"content-type": "application/json"})


def _wants_ready(request: Request) -> bool:
    try:
        wanted = orjson.loads(request.content) if request.content else {}
    except ValueError as error:
        msg = f"the body is not JSON: {error}"
        raise InvalidInput(msg, field="body") from error
    ready = wanted.get("ready", False) if isinstance(wanted, dict) else None
    if not isinstance(ready, bool):
        msg = 'the body must be an object such as {"ready": true}'
        raise InvalidInput(msg, field="ready", value=ready)
    return ready


def _entry(route: GenerationRoute) -> dict[str, str]:
    reason = f"no host ready for {', '.join(route.missing)}" if route.missing else ""
    state = "UNAVAILABLE" if route.missing else "READY"
    return {"name": route.model, "version": str(route.generation), "state": state, "reason": reason}


def statistics(
    metrics: RouterMetrics, model: str | None, generation: int | None, *, hidden: Collection[str] = ()
) -> Response:
    """Return requests and their time by outcome: of one model or all but the hidden ones, of one generation or all.

    The statistics extension of V2, limited to the router's own counters: times within a host are in the host's metrics.
    """
    found = [
        _statistics(name, number, counts)
        for (name, number), counts in metrics.generations.items()
        if model in (None, name) and generation in (None, number) and name not in hidden
    ]
    return Response(200, orjson.dumps({"model_stats": found}), {"content-type": "application/json"})


def _statistics(model: str, generation: int, counts: GenerationCounts) -> dict[str, Any]:
    return {
        "name": model,
        "version": str(generation),
        "last_inference": int(counts.last_at * 1000),
        "inference_stats": {"success": _outcome(counts, good=True), "fail": _outcome(counts, good=False)},
    }


def _outcome(counts: GenerationCounts, *, good: bool) -> dict[str, int]:
    chosen = [answers.seconds for status, answers in counts.answers.items() if (status < 400) is good]
    return {"count": sum(one.count for one in chosen), "ns": int(sum(one.total for one in chosen) * 1e9)}
