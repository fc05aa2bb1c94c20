"""Choice of the generation and region of an OpenAI request by the shares of the route table. Used by a router.

The gateway makes the same choice for V2 requests, whose path names the model (`ipnext.infra.envoy`).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ipnext.errors import NotFound, Unavailable
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.deployment.router_table import GenerationShares
from ipnext.names import CHOSEN_BY_WEIGHT, CHOSEN_HEADER, FORWARDED_HEADER, GENERATION_HEADER
from serving.http.messages import Request
from serving.routing.table import ModelRoutes

BY_WEIGHT: Final = "weight"


@dataclass(frozen=True, slots=True)
class ForwardedRequest:
    """A request that another region answers."""

    model: str
    region: str
    request: Request
    """With the headers that tell the other region what was chosen."""


def directed(
    request: Request,
    choice: GenerationShares | None,
    model: ModelRoutes | None,
    *,
    region: str,
    draw: Callable[[], float] = random.random,
) -> Request | ForwardedRequest:
    """Return the request with the generation chosen for it, for this region or another one.

    A generation that the client names is kept. What another region has sent is answered here: it is never sent on.
    `draw` returns a number from 0 to below 1.

    Raises:
        NotFound: the client names a generation that neither this region nor its shares serve.
        Unavailable: the model has no shares.
    """
    if choice is None or FORWARDED_HEADER in request.headers:
        return request
    pin = request.header(GENERATION_HEADER)
    if pin is not None:
        return _pinned(request, choice, model, pin, region)
    if not choice.shares:
        raise Unavailable(choice.refusal)
    share = _pick_share(choice, draw())
    named = {GENERATION_HEADER: str(share.generation)}
    if share.to == region:
        return _with(request, {**named, CHOSEN_HEADER: BY_WEIGHT})
    return ForwardedRequest(
        choice.model, share.to, _with(request, {**named, FORWARDED_HEADER: region + CHOSEN_BY_WEIGHT})
    )


def _pinned(
    request: Request, choice: GenerationShares, model: ModelRoutes | None, pin: str, region: str
) -> Request | ForwardedRequest:
    here = {str(generation) for generation in (model.generations if model is not None else ())}
    if pin in here:
        return request
    for share in sorted(choice.shares, key=lambda share: -share.fraction):
        if share.to != region and str(share.generation) == pin:
            return ForwardedRequest(choice.model, share.to, _with(request, {FORWARDED_HEADER: region}))
    served = sorted(here | {str(share.generation) for share in choice.shares}, key=int)
    msg = (
        f"model {choice.model} has no such generation in region {region}, got {pin[:40]!r}; "
        f"served: {', '.join(served) or 'none'}"
    )
    raise NotFound(msg)


def _pick_share(choice: GenerationShares, drawn: float) -> RouteShare:
    """Return the share at this point of all shares, in proportion to their fractions."""
    left = drawn * sum(share.fraction for share in choice.shares)
    for share in choice.shares:
        left -= share.fraction
        if left < 0:
            return share
    return choice.shares[-1]


def _with(request: Request, headers: dict[str, str]) -> Request:
    return replace(request, headers={**request.headers, **headers})
