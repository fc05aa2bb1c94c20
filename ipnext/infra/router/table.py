"""The router's table of a region, made from served generations and ready endpoints. Pure functions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from ipnext.model.access.predictions import PredictionAccess
from ipnext.model.deployment.deployment import DRAIN_SECONDS, STREAM_DRAIN_SECONDS, Deployment
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel
from ipnext.model.deployment.served_generation import ServedGeneration

Served = Mapping[str, tuple[ServedGeneration, ...]]
"""Model -> generations that the router may answer with."""


@dataclass(frozen=True, slots=True)
class Terms:
    """Settings of a model's deployments that concern its requests."""

    drain_seconds: float = DRAIN_SECONDS
    swap_wait_seconds: float = STREAM_DRAIN_SECONDS
    swap: bool = False


TERMS: Final = tuple(field.name for field in fields(Terms))


def terms_of(deployments: Iterable[Deployment], *, drain_seconds: float) -> Mapping[str, Terms]:
    """Return, for each model, the longest times of its parts.

    `drain_seconds` is the default of a part that sets none.
    """
    found: dict[str, Terms] = {}
    for one in deployments:
        drain = drain_seconds if one.drain_seconds is None else one.drain_seconds
        wait = drain if one.swap_wait_seconds is None else one.swap_wait_seconds
        former = found.get(one.key.model, Terms(drain, wait))
        found[one.key.model] = Terms(
            max(former.drain_seconds, drain), max(former.swap_wait_seconds, wait), former.swap or one.swap
        )
    return found


def routed_models(  # noqa: PLR0913 - each of the sources of a table
    served: Served,
    endpoints: Iterable[tuple[str, PartEndpoint]],
    coming: Iterable[tuple[str, int]] = (),
    terms: Mapping[str, "Terms"] | None = None,
    access: Mapping[str, PredictionAccess] | None = None,
    *,
    shadows: Mapping[str, Shadow] | None = None,
    former: Iterable[RoutedModel] = (),
) -> tuple[RoutedModel, ...]:
    """Return every served model with the (model, endpoint) pairs that are ready for it, in a fixed order.

    `coming` are the (model, generation) pairs to which processes are being hot swapped, `terms` those of the models
    that run here. `access` and `shadows` are those of the models' own tables; a shadow is left out while its generation
    is served, as just before and after a change of the table. `former` are the models of the table before; those that
    have not changed are kept.
    """
    by_model: dict[str, list[PartEndpoint]] = {model: [] for model in served}
    for model, endpoint in endpoints:
        if model in by_model and endpoint.generations:
            by_model[model].append(endpoint)
    over: dict[str, set[int]] = {}
    for model, generation in coming:
        over.setdefault(model, set()).add(generation)
    known, before = terms or {}, {one.model: one for one in former}
    return tuple(
        _reuse_model(
            before.get(model),
            {
                "model": model,
                "served": served[model],
                "endpoints": tuple(sorted(by_model[model], key=lambda endpoint: (endpoint.part, endpoint.url))),
                "coming": tuple(sorted(over.get(model, ()))),
                "access": (access or {}).get(model, "open"),
                "shadow": _apart((shadows or {}).get(model), served[model]),
                **_fields(known.get(model, Terms())),
            },
        )
        for model in sorted(served)
    )


def models_by_hardware(served: Served, shadows: Mapping[str, Shadow]) -> frozenset[str]:
    """Return the models with a generation that answers with other snapshots on some hardware kinds.

    Their routers need the kind of each endpoint.
    """
    found = {model for model, generations in served.items() if any(one.by_hardware for one in generations)}
    return frozenset(found | {model for model, shadow in shadows.items() if shadow.served.by_hardware})


def on_hardware(endpoint: PartEndpoint, hardware: str) -> PartEndpoint:
    """Return the endpoint with the hardware kind of its host."""
    return endpoint.model_copy(update={"hardware": hardware})


def _apart(shadow: Shadow | None, served: Iterable[ServedGeneration]) -> Shadow | None:
    """Return the shadow unless its generation is served."""
    return None if shadow is None or any(one.generation == shadow.generation for one in served) else shadow


def _reuse_model(former: RoutedModel | None, given: Mapping[str, Any]) -> RoutedModel:
    """Return the former value if it has these fields: to compare them takes less time than to validate them again."""
    if former is not None and all(getattr(former, name) == value for name, value in given.items()):
        return former
    return RoutedModel(**given)


def _fields(terms: Terms) -> Mapping[str, Any]:
    return {name: getattr(terms, name) for name in TERMS}


def with_both(old: Iterable[ServedGeneration], new: Iterable[ServedGeneration]) -> tuple[ServedGeneration, ...]:
    """Merge two tables' generations by number; if both have one, take the new entry."""
    merged = {served.generation: served for served in (*old, *new)}
    return tuple(merged[number] for number in sorted(merged))
