"""The route of every endpoint that names an action: who may not do it is refused before the body of the request is read.

FastAPI reads and parses a body first and solves dependencies afterwards. A body of 5 MiB would cost the API its parsing for
anybody with any key, whatever its role.
"""

from collections.abc import Awaitable, Callable, Coroutine
from inspect import iscoroutinefunction
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

Guard = Callable[[Request], Awaitable[None]]
"""The dependency that `ipnext.api.access.may` makes. Asked a second time in one request it answers at once."""


class GuardedRoute(APIRoute):
    """Asks the guards of its endpoint, then goes on as any other route."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle, guards = super().get_route_handler(), guards_of(self.dependant)

        async def guarded(request: Request) -> Response:
            for guard in guards:
                await guard(request)
            return await handle(request)

        return guarded


def guards_of(dependant: Dependant) -> tuple[Guard, ...]:
    """The guards among the dependencies of an endpoint."""
    calls = (dependency.call for dependency in dependant.dependencies)
    return tuple(call for call in calls if iscoroutinefunction(call) and hasattr(call, "action"))
