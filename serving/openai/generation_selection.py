"""Which generation answers an OpenAI request, also while the engines of a model go over from one to another."""

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
    """The generation that the request names, else the newest that has an engine. NotFound, or Unavailable where none is ready.

    What the gateway named by weight, and no client asked for, may be another one where the engines of the model go over.
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
    """Whether an engine goes over that may answer the request."""
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
    """A generation that answers, once the table has one. Unavailable after `seconds`, or the model's own limit.

    `under_way`: how many requests of the model are being answered.
    """
    name, limit = model.model, min(model.swap_wait_seconds, seconds)
    deadline = time.monotonic() + limit
    while (left := deadline - time.monotonic()) > 0:
        try:
            async with asyncio.timeout(left):
                await follower.changed()
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
