"""The route of every endpoint that names an action: unauthorised requests are refused before their body is read.

FastAPI reads and parses a body first and solves dependencies afterwards. A body of 5 MiB would cost the API its parsing
for any caller with any key, whatever its role. FastAPI also validates a body in the event loop; a large one is
validated in a thread, in the turn of its client. Endpoints that work in a thread share AT_ONCE of them: a client has at
most its share, and its further requests wait.

A body may arrive slowly, and a turn may take long. The guards' checks are then repeated before the endpoint is called,
and before the answer of a slow read: it is for principals that may read it now. Each unit of work that writes repeats
them itself.
"""

import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from inspect import iscoroutinefunction
from typing import Any, Final

import anyio.to_thread
from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import ValidationError

from ipnext.access.acting import ACTING, RequestAuthority
from ipnext.api.requests.json_bodies import PARSED
from ipnext.api.requests.slots import holder_of
from ipnext.api.requests.turns import Turns
from ipnext.errors import InvalidInput
from ipnext.model.echoes import PLACE_CHARACTERS, cut_text
from ipnext.model.validation_errors import invalid_input
from ipnext.model.value import Value, WrittenValue

AT_ONCE: Final = 40
"""Threads for the work of endpoints: as many as AnyIO has for all of a process."""

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

LATE_SECONDS: Final = 2.0
"""Beyond it a request is checked again before its endpoint: the time for which a proved credential is not looked up."""

Guard = Callable[[Request], Awaitable[None]]
"""A dependency made by `ipnext.api.authorization.endpoint_permission.may`.

Called again in one request, it returns at once."""

Model = type[Value] | type[WrittenValue]


class GuardedRoute(APIRoute):
    """Calls the guards of its endpoint, then continues like any other route."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        handle, guards, model = super().get_route_handler(), guards_of(self.dependant), _body_model(self)
        threaded = not iscoroutinefunction(self.endpoint)
        parameters = tuple(dict.fromkeys(_query_names(self.dependant)))

        async def handle_guarded(request: Request) -> Response:
            began = time.monotonic()
            for guard in guards:
                await guard(request)
            _check_query(request, parameters)
            if model is not None:
                await _validate_large(request, model)
            if not threaded:
                return await _handle_proved(request, began, handle)
            requests: Turns = request.app.state.requests
            async with requests.share(holder_of(request.state.acting.principal)):
                return await _handle_proved(request, began, handle)

        return handle_guarded


def guards_of(dependant: Dependant) -> tuple[Guard, ...]:
    """Return the guards among the dependencies of an endpoint."""
    calls = (dependency.call for dependency in dependant.dependencies)
    return tuple(call for call in calls if iscoroutinefunction(call) and hasattr(call, "action"))


def _check_query(request: Request, known: Sequence[str]) -> None:
    """Refuse parameters of the query that the endpoint does not have: a misspelt `dryRun` would apply.

    Raises InvalidInput.
    """
    for name in request.query_params:
        if name not in known:
            shown = cut_text(name, PLACE_CHARACTERS)
            allowed = f"allowed: {', '.join(known)}" if known else "this endpoint has none"
            msg = f"{shown}: no parameter of the query of {request.method} {request.scope['route'].path}; {allowed}"
            raise InvalidInput(msg, field=shown, value=name, allowed=known)


async def _handle_proved(
    request: Request, began: float, handle: Callable[[Request], Coroutine[Any, Any, Response]]
) -> Response:
    """Call the endpoint.

    What it reads for long, or after a queue of its own, is not answered to a principal that ended.
    """
    await _prove_late(request, began)
    began = time.monotonic()
    response = await handle(request)
    if request.method in SAFE_METHODS:
        await _prove_late(request, began)
    return response


async def _prove_late(request: Request, began: float) -> None:
    """Prove the principal again if its request took long until here. Raises Unauthenticated, Forbidden or NotFound."""
    acting: RequestAuthority = request.state.acting
    if acting.authority is None or time.monotonic() - began < LATE_SECONDS:
        return
    acting = await anyio.to_thread.run_sync(request.app.state.platform.access.prove_now, acting)
    request.state.acting = acting
    ACTING.set(acting)


def _query_names(dependant: Dependant) -> Iterator[str]:
    """Yield the parameters of the query that an endpoint and its dependencies have."""
    yield from (field.alias for field in dependant.query_params)
    for each in dependant.dependencies:
        yield from _query_names(each)


def _body_model(route: APIRoute) -> Model | None:
    """Return the type of the endpoint's body, if that is one of the data model."""
    model = route.body_field.field_info.annotation if route.body_field is not None else None
    return model if isinstance(model, type) and issubclass(model, Value | WrittenValue) else None


async def _validate_large(request: Request, model: Model) -> None:
    """Read the body. If it is large JSON, let FastAPI find it validated: it takes an instance as it is.

    Raises InvalidInput.
    """
    await request.body()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if PARSED not in request.scope or not kind.startswith("application/") or not kind.endswith("json"):
        return
    large: Turns = request.app.state.large_bodies
    holder = holder_of(request.state.acting.principal)
    request._json = await large.run(holder, validate_body, model, request.scope.pop(PARSED))  # noqa: SLF001 - `json()` answers it


def validate_body(model: Model, value: Any) -> Value | WrittenValue:
    """Return a body as its model. Raises InvalidInput with the first fault."""
    try:
        return model.model_validate(value, from_attributes=True)  # as FastAPI does
    except ValidationError as error:
        raise invalid_input(error, model) from error
