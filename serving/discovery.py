"""What a V2 client may ask of the router besides inference: what is served, how often it was asked, what there is not."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from ipnext.errors import InvalidInput
from serving.http import Request, Response
from serving.router_metrics import GenerationCounts, RouterMetrics
from serving.router_table import GenerationRoute, Routes

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


def refuse_extension(steps: list[str]) -> None:
    """InvalidInput where a path (its steps) belongs to an extension of V2 that is not served; else nothing."""
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
    """Every generation of every model as `{name, version, state, reason}`; with `{"ready": true}` the ready ones."""
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


def statistics(metrics: RouterMetrics, model: str | None, generation: int | None) -> Response:
    """Requests and their time by outcome, of all models or one, of all its generations or one.

    The statistics extension of V2, as far as a router knows: times within a host are in the host's own metrics.
    """
    found = [
        _statistics(name, number, counts)
        for (name, number), counts in metrics.generations.items()
        if model in (None, name) and generation in (None, number)
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
