"""One handler for the error tree: every answer that is not a success has an `ErrorBody`."""

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ipnext.errors import (
    ArtifactDigestMismatch,
    Forbidden,
    Infeasible,
    InvalidInput,
    IPnextError,
    PathNotAllowed,
    RateLimited,
    TooLarge,
    TooSlow,
    Unauthenticated,
)
from ipnext.model.access.rights import Principal
from ipnext.model.api.resources import ErrorBody
from ipnext.model.echoes import PLACE_CHARACTERS, cut_text
from ipnext.model.validation_errors import first_fault, invalid_input
from ipnext.model.value import Value, WrittenValue

MAX_VALUE_CHARACTERS = 500
"""A longer refused value is cut in the answer: it is the client's own text."""

MAX_MESSAGE_CHARACTERS = 10_000
"""A longer message is cut: it repeats names that the client made."""

MAX_PATH_CHARACTERS = 300
"""Of a path that a message repeats."""

MAX_ALLOWED = 20
"""Allowed values that an answer lists: a model may have thousands of snapshots or generations."""

HTTP_CODES: Mapping[int, str] = {404: "NotFound", 405: "MethodNotAllowed", 408: TooSlow.code, 413: TooLarge.code}
"""Codes of errors that are raised before any endpoint: by the router, and while a body is read."""


CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="ipnext"'}


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error with an `ErrorBody`."""
    app.add_exception_handler(IPnextError, _tree)
    app.add_exception_handler(RequestValidationError, _request)
    app.add_exception_handler(HTTPException, _routing)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    app.add_exception_handler(Exception, _handle_unexpected)


def error_body(error: IPnextError) -> ErrorBody:
    """Return the wire form of an error of the tree."""
    body = ErrorBody(code=error.code, message=_text(cut_text(error.message, MAX_MESSAGE_CHARACTERS)))
    if isinstance(error, InvalidInput):
        field = _text(cut_text(error.field, PLACE_CHARACTERS)) if error.field else None
        body = body.model_copy(
            update={"field": field, "value": _plain(error.value), "allowed": error.allowed[:MAX_ALLOWED] or None}
        )
    if isinstance(error, Forbidden):
        body = body.model_copy(update={"policy": error.policy})
    if isinstance(error, Infeasible):
        body = body.model_copy(update={"rules": error.rules or None})
    return body


def answer(body: ErrorBody, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Make the answer that has an `ErrorBody`."""
    text = json.dumps(body.model_dump(exclude_none=True))
    return Response(text, status_code=status, headers=headers, media_type="application/json")


def headers_of(error: IPnextError) -> Mapping[str, str] | None:
    """Return the headers of an error's answer."""
    if isinstance(error, Unauthenticated):
        return CHALLENGE
    seconds = error.seconds if isinstance(error, RateLimited) else 1.0
    return {"Retry-After": str(max(1, math.ceil(seconds)))} if error.http_status in {429, 503} else None


async def _tree(request: Request, error: Exception) -> Response:
    assert isinstance(error, IPnextError)  # noqa: S101 - Starlette chooses the handler by this type
    if isinstance(error, Forbidden):
        await request.app.state.recorder.record_refusal(request.state.acting, error)
    if isinstance(error, Unauthenticated):  # of a credential that ended while its request was in progress
        await request.app.state.recorder.refused_credential(request.state.acting, error)
    if isinstance(error, PathNotAllowed) and not request.state.acting.principal.does_everything:
        error = error.public
    if isinstance(error, ArtifactDigestMismatch) and not _operates(request.state.acting.principal):
        error = error.public
    return answer(error_body(error), error.http_status, headers_of(error))


def _operates(principal: Principal) -> bool:
    return principal.sees_machines or principal.does_everything


async def _request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - as above
    refused = _find_fault(request, error)
    return answer(error_body(refused), refused.http_status)


async def _routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - as above
    if isinstance(error.__cause__, IPnextError):
        return answer(error_body(error.__cause__), error.status_code, error.headers)
    if isinstance(error.__cause__, RecursionError | ValueError):  # of the reader of a body, which FastAPI does not name
        return answer(error_body(_not_json(error.__cause__)), error.status_code, error.headers)
    message = f"{request.method} {_path(request)}: {str(error.detail).lower()}; /docs lists the endpoints"
    code = HTTP_CODES.get(error.status_code, InvalidInput.code)
    return answer(ErrorBody(code=code, message=message), error.status_code, error.headers)


async def _handle_disconnect(_: Request, __: Exception) -> Response:
    return answer(ErrorBody(code=InvalidInput.code, message="the client left before its body was complete"), 400)


async def _handle_unexpected(request: Request, error: Exception) -> Response:
    """Handle unexpected errors at the edge of the process.

    The server logs the traceback, the client gets only the type.
    """
    message = f"{request.method} {_path(request)} failed inside the server ({type(error).__name__}); see its log"
    return answer(ErrorBody(code=IPnextError.code, message=message), 500)


def _find_fault(request: Request, error: RequestValidationError) -> InvalidInput:
    """Return the first fault of a request: in its body with the allowed fields, else with its place."""
    faults = error.errors()
    bodies = [fault for fault in faults if fault["loc"][:1] == ("body",)]
    if bodies and bodies[0]["type"] == "json_invalid":
        place = bodies[0]["loc"][-1]
        return InvalidInput(f"the body is not JSON: {bodies[0].get('ctx', {}).get('error', '')}, at character {place}")
    if bodies and isinstance(error.body, bytes):
        return InvalidInput("the body is not taken as JSON; send the header `content-type: application/json`")
    field = getattr(request.scope.get("route"), "body_field", None)
    model = field.field_info.annotation if field is not None else None
    if bodies and isinstance(model, type) and issubclass(model, Value | WrittenValue):
        if bodies[0]["type"] == "missing" and len(bodies[0]["loc"]) == 1:
            return _no_body(model)
        own: list[Any] = [{**fault, "loc": fault["loc"][1:]} for fault in bodies]
        return first_fault(own, model)
    first = faults[0]
    place = ".".join(str(step) for step in first["loc"][1:]) or str(first["loc"][0])
    message = f"{place}: {first['msg']} (got {str(first.get('input'))!r:.200})"
    return InvalidInput(message, field=place, value=first.get("input"))


def _not_json(error: RecursionError | ValueError) -> InvalidInput:
    """Return the fault of a body that Python's reader of JSON refused, but for its syntax."""
    if isinstance(error, RecursionError):
        why = "it is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        why = "it is no text in UTF-8"
    else:
        why = f"it has a whole number of more than {sys.get_int_max_str_digits()} digits"
    return InvalidInput(f"the body is not JSON that this server reads: {why}")


def _no_body(model: type[Value] | type[WrittenValue]) -> InvalidInput:
    """Return the fault of a request without a body, in the words for a body of another type."""
    try:
        model.model_validate(None)
    except ValidationError as error:
        return invalid_input(error, model)
    return InvalidInput("the body is missing")


def _path(request: Request) -> str:
    """Return the path of a request as a message shows it, which has room for any of our own."""
    return _text(request.url.path[:MAX_PATH_CHARACTERS])


def _text(text: str) -> str:
    """Return text that UTF-8 can encode: JSON may contain half of a surrogate pair."""
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object) -> Any:
    """Return a value that JSON can represent, cut if it is long."""
    text = json.dumps(value, default=str, allow_nan=True)
    if len(text) > MAX_VALUE_CHARACTERS or "NaN" in text or "Infinity" in text:
        return text[:MAX_VALUE_CHARACTERS]
    return json.loads(text)
