"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, with the types of vLLM's server.

The field `type` is for people: OpenAI's clients raise by the status.
"""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from ipnext.errors import InvalidInput, IPnextError, NotFound, Unauthenticated, Unavailable
from ipnext.model.echoes import PLACE_CHARACTERS, cut_text
from ipnext.process.machine_details import shorten_text
from serving.http.messages import Response, error_headers

TYPES: Final[Mapping[int, str]] = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    408: "TimeoutError",
    413: "BadRequestError",
    415: "BadRequestError",
    429: "RateLimitError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}
FULL: Final = 429


class UnknownModel(NotFound):
    """No generative model has this name."""


class WrongType(InvalidInput):
    """A body whose content type is not JSON."""

    http_status = 415


class Full(Unavailable):
    """The model is at its limit of requests in flight."""

    http_status = FULL


def openai_error(error: IPnextError) -> Response:
    """Return the answer to a request that failed with this error."""
    status = error.http_status
    param = "model" if isinstance(error, UnknownModel) else getattr(error, "field", None)
    param = param if param is None else cut_text(param, PLACE_CHARACTERS)
    code: Any = "model_not_found" if isinstance(error, UnknownModel) else status
    code = "invalid_api_key" if isinstance(error, Unauthenticated) else code
    body = {
        "message": shorten_text(cut_text(error.message)),
        "type": TYPES.get(status, "InternalServerError"),
        "param": param,
        "code": code,
    }
    return Response(status, orjson.dumps({"error": body}), error_headers(error))
