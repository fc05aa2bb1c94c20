"""The route of every endpoint that names an action: unauthorised requests are refused before their body is read.

FastAPI reads and parses a body first and solves dependencies afterwards. A body of 5 MiB would cost the API its parsing
for any caller with any key, whatever its role.
"""

from collections.abc import Awaitable, Callable, Coroutine
from inspect import iscoroutinefunction
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

Guard = Callable[[Request], Awaitable[None]]
"""A dependency made by `ipnext.api.access.may`. Called again in one request, it returns at once."""


class GuardedRoute(APIRoute):
    """Calls the guards of its endpoint, then continues like any other route."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle, guards = super().get_route_handler(), guards_of(self.dependant)

        async def guarded(request: Request) -> Response:
            for guard in guards:
                await guard(request)
            return await handle(request)

        return guarded


def guards_of(dependant: Dependant) -> tuple[Guard, ...]:
    """Return the guards among the dependencies of an endpoint."""
    calls = (dependency.call for dependency in dependant.dependencies)
    return tuple(call for call in calls if iscoroutinefunction(call) and hasattr(call, "action"))
