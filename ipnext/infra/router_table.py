"""The table a region's router follows, made from served generations and ready endpoints. Pure functions."""

from collections.abc import Collection, Iterable, Mapping

from ipnext.model.deployment import PartEndpoint, RoutedModel, ServedGeneration

Served = Mapping[str, tuple[ServedGeneration, ...]]
"""Model -> generations that the router may answer with."""


def routed_models(
    served: Served,
    endpoints: Iterable[tuple[str, PartEndpoint]],
    coming: Iterable[tuple[str, int]] = (),
    swap: Collection[str] = (),
) -> tuple[RoutedModel, ...]:
    """Every served model with the (model, endpoint) pairs that are ready for it, in a fixed order.

    `coming` are the (model, generation) pairs that processes are going over to, `swap` the models whose processes ever do.
    """
    over = set(coming)
    by_model: dict[str, list[PartEndpoint]] = {model: [] for model in served}
    for model, endpoint in endpoints:
        if model in by_model and endpoint.generations:
            by_model[model].append(endpoint)
    return tuple(
        RoutedModel(
            model=model,
            served=served[model],
            endpoints=tuple(sorted(by_model[model], key=lambda endpoint: (endpoint.part, endpoint.url))),
            swap=model in swap,
            coming=tuple(sorted(generation for name, generation in over if name == model)),
        )
        for model in sorted(served)
    )


def with_both(old: Iterable[ServedGeneration], new: Iterable[ServedGeneration]) -> tuple[ServedGeneration, ...]:
    """Generations of either table, by number; where both have one, the new form of it."""
    merged = {served.generation: served for served in (*old, *new)}
    return tuple(merged[number] for number in sorted(merged))
