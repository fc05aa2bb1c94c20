"""The answer to `GET /v1/models`: the generative models of this region, each with its served generations."""

from collections.abc import Iterator
from typing import Any

from ipnext.model.registry.adapter import client_name
from serving.openai.adapters import alias_of
from serving.openai.errors import UnknownModel
from serving.routing.table import GenerationRoute, ModelRoutes, Routes

_NAMED: int = 20


def generative(routes: Routes, name: str) -> ModelRoutes:
    """Return the routes of a generative model. `MODEL:PART` belongs to MODEL.

    UnknownModel names those that are served.
    """
    found = routes.models.get(name.partition(":")[0])
    if found is not None and is_generative(found):
        return found
    other = f"; {found.model} answers at /v2/models/{found.model}/infer" if found is not None else ""
    msg = f"The model {name[:80]!r} does not exist here. Served: {generative_names(routes)}{other}"
    raise UnknownModel(msg)


def generative_names(routes: Routes) -> str:
    """Return the generative models in the form of errors."""
    known = [model for model, one in routes.models.items() if is_generative(one)]
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return f"{', '.join(known[:_NAMED]) or 'none'}{more}"


def is_generative(model: ModelRoutes) -> bool:
    """Whether any generation of the model has an engine that serves OpenAI's protocol."""
    return any(route.generator is not None for route in model.generations.values())


def model_list(routes: Routes) -> dict[str, Any]:
    """List all generative models, each followed by its adapters."""
    found = [one for one in routes.models.values() if is_generative(one)]
    return {"object": "list", "data": [card for one in found for card in (model_card(one, one.model), *_adapters(one))]}


def _adapters(model: ModelRoutes) -> Iterator[dict[str, Any]]:
    parts = dict.fromkeys(part for route in model.generations.values() for part in route.adapters)
    yield from (model_card(model, client_name(model.model, part)) for part in parts)


def model_card(model: ModelRoutes, name: str) -> dict[str, Any]:
    """Describe a model or adapter as OpenAI and vLLM do, with its served generations as `ipnext`. UnknownModel."""
    part = name.partition(":")[2]
    routes = [route for route in model.generations.values() if route.generator is not None]
    if part and not any(part in route.adapters for route in routes):
        alias_of(routes[-1], name)  # raises, and names the others
    served = [_generation(route, part or route.generator) for route in routes if not part or part in route.adapters]
    created = [one["created"] for one in served]
    lengths = [found for route in routes if (found := _context(route)) is not None]
    return {
        "id": name,
        "object": "model",
        "created": max(created, default=0),
        "owned_by": "ipnext",
        **({"root": name, "parent": model.model} if part else {}),
        **({"max_model_len": min(lengths)} if lengths else {}),
        "ipnext": {"generations": served},
    }


def _context(route: GenerationRoute) -> int | None:
    """Return the limit on tokens of a prompt and its answer together, if the manifest has one."""
    return route.routed.served[0].contexts.get(route.generator or "")


def _generation(route: GenerationRoute, part: str | None) -> dict[str, Any]:
    facts = route.routed.served[0].facts.get(part or "")
    wanted = [tensor.model_dump(mode="json") for tensor in route.inputs]
    return {
        "generation": route.generation,
        "snapshots": dict(route.snapshots),
        "ready": not route.missing,
        "created": int(facts.created_at.timestamp()) if facts is not None else 0,
        **({"inputs": wanted} if wanted else {}),
    }
