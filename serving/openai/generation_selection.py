"""Choice of the generation that answers an OpenAI request, also during a hot swap of the model's engines."""

import asyncio
import time
from collections.abc import Callable

from ipnext.errors import Unavailable
from ipnext.names import GENERATION_HEADER
from serving.http.messages import Request
from serving.openai.model_cards import generative
from serving.routing.gateway_choice import is_chosen
from serving.routing.table import GenerationRoute, ModelRoutes, TableFollower


def choose(model: ModelRoutes, request: Request) -> GenerationRoute:
    """Return the generation that the request names, else the newest with an engine.

    NotFound; Unavailable if none is ready. If the gateway named the generation by weight, not the client, it may be
    another one while the model's engines swap.
    """
    pin = request.header(GENERATION_HEADER)
    try:
        return model.choose(pin)
    except Unavailable:
        if not model.swap or (pin is not None and not is_chosen(request)):
            raise
        whole = [route for route in model.generations.values() if route.whole and route.generator is not None]
        if not whole:
            raise
        return whole[-1]


def may_wait(model: ModelRoutes, request: Request) -> bool:
    """Whether an engine in a hot swap may answer the request."""
    pin = request.header(GENERATION_HEADER)
    free = pin is None or is_chosen(request)
    return free and any(generation in model.generations for generation in model.coming)


async def wait(
    follower: TableFollower,
    model: ModelRoutes,
    request: Request,
    *,
    seconds: float,
    under_way: Callable[[], int],
) -> GenerationRoute:
    """Wait until the table has a generation that answers. Unavailable after `seconds`, or the model's own limit.

    `under_way` returns the number of the model's requests in flight.
    """
    name, limit = model.model, min(model.swap_wait_seconds, seconds)
    deadline = time.monotonic() + limit
    while (left := deadline - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left):
                await follower.wait_change()
        except TimeoutError:
            break
        model = generative(follower.routes, name)
        try:
            return choose(model, request)
        except Unavailable:
            if not may_wait(model, request):
                raise
    why = "rollout.swapWaitSeconds" if limit == model.swap_wait_seconds else "half of its deadline"
    msg = (
        f"the engines of {name} go over to another generation, and none was ready within {limit:g} s ({why}); "
        f"requests from before that they still answer: {under_way()}; try again"
    )
    raise Unavailable(msg)
