"""Names in the two states of a transition: unknown ones are bad input. Called by `planner.transition.planner`."""

from collections import defaultdict

from ipnext.errors import InvalidInput
from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import FleetState

SLACK = 1e-6
"""Excess over 1 that the shares of one (model, from) may have."""


def check_names(problem: Problem, state: FleetState, field: str) -> None:
    """Raise InvalidInput for an unknown name, a duplicate entry or a sum above 1."""
    options = {f"{m.model}/{p.part}/{o.hardware}" for m in problem.models for p in m.parts for o in p.options}
    models, regions = {model.model for model in problem.models}, set(problem.regions)
    seen: set[tuple[str | int, ...]] = set()
    for index, item in enumerate(state.replicas):
        where = f"{field}.replicas[{index}]"
        _check_known(where, f"{item.model}/{item.part}/{item.hardware}", options)
        _check_known(f"{where}.region", item.region, regions)
        _new(where, (item.model, item.part, item.region, item.hardware, item.generation), seen)
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for index, share in enumerate(state.traffic):
        where = f"{field}.traffic[{index}]"
        _check_known(f"{where}.model", share.model, models)
        _check_known(f"{where}.from", share.origin, regions)
        _check_known(f"{where}.to", share.to, regions)
        _new(where, (share.model, share.origin, share.to, share.generation), seen)
        sums[share.model, share.origin] += share.fraction
        if sums[share.model, share.origin] > 1 + SLACK:
            msg = f"{where}: the shares of {share.model} from {share.origin} sum to more than 1"
            raise InvalidInput(msg, field=where, value=sums[share.model, share.origin], allowed=["a sum of at most 1"])


def _check_known(field: str, name: str, known: set[str]) -> None:
    if name not in known:
        listed = sorted(known)
        msg = f"{field}: unknown {name!r}; known: {', '.join(listed)}"
        raise InvalidInput(msg, field=field, value=name, allowed=listed)


def _new(field: str, key: tuple[str | int, ...], seen: set[tuple[str | int, ...]]) -> None:
    if key in seen:
        named = "/".join(map(str, key))
        msg = f"{field}: {named} stands twice; allowed: each entry once"
        raise InvalidInput(msg, field=field, value=named, allowed=["each entry once"])
    seen.add(key)
