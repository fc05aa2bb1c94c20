"""Envoy's configuration for OpenAI's routes, whose body names the model. Pure functions; used by ipnext.infra.envoy.

Envoy neither reads nor keeps a body: it streams requests to the router, which chooses the generation.
"""

from typing import Any, Final

Json = dict[str, Any]

PATHS: Final = "/(v1(/.*)?|score|rerank|classify|pooling|tokenize|detokenize)"
"""Regular expression of whole paths: OpenAI's, and those that vLLM adds."""
_PREFIX: Final = "^(/v1(/|$|\\?)|/(score|rerank|classify|pooling|tokenize|detokenize)($|\\?))"
RETRY_AFTER_SECONDS: Final = 1
"""Time after which a client that met no capacity, or no router, may retry."""
_TYPES: Final = {404: "NotFoundError", 503: "ServiceUnavailableError", 504: "TimeoutError"}
"""Status of an answer that Envoy makes itself -> its type in OpenAI's form, as in the router."""
_BODY: Final = "%LOCAL_REPLY_BODY%"
"""The text that the answer would have without a mapper."""


def type_url(name: str) -> str:
    """Return the type of an extension's configuration."""
    return f"type.googleapis.com/envoy.{name}"


def of_any_model() -> Json:
    """Match all of OpenAI's paths."""
    return {"safe_regex": {"regex": PATHS}}


def streaming(action: Json, *, idle_seconds: float) -> Json:
    """Return the action without a limit for the whole answer, but with one for the time without traffic."""
    return {**action, "route": {**action["route"], "timeout": "0s", "idle_timeout": f"{idle_seconds}s"}}


def error_mappers(region: str, *, idle_seconds: float) -> list[Json]:
    """Return mappers that turn Envoy's own answers on OpenAI's paths into OpenAI errors.

    The errors name what is allowed or what to do.

    The first match counts. `idle_seconds` is the limit that `streaming` sets.
    """
    late = f"nothing has come or gone for {idle_seconds:g} s"
    unreached = f"the gateway of region {region} gets no answer from its %UPSTREAM_CLUSTER% ({_BODY}); try again"
    again = {"header": {"key": "retry-after", "value": str(RETRY_AFTER_SECONDS)}}
    return [
        _mapper("TimeoutError", f"{late}, and the request is not whole; send it without a pause", _status(408)),
        _mapper("TimeoutError", f"{late}, and no answer has begun; try again", _status(504), _FAILED),
        {**_mapper("ServiceUnavailableError", unreached, _status(503), _FAILED), "headers_to_add": [again]},
        {
            **_mapper("ServiceUnavailableError", f"{unreached}", _status(507)),
            "status_code": 503,
            "headers_to_add": [again],
        },
        *(_mapper(kind, _BODY, _status(status)) for status, kind in _TYPES.items()),
        _mapper("InternalServerError", _BODY),
    ]


_FAILED: Final[Json] = {"response_flag_filter": {}}
"""Answers for which Envoy records a failure flag: all except those of a route."""


def _status(status: int) -> Json:
    equal = {"op": "EQ", "value": {"default_value": status, "runtime_key": "ipnext.no_such_key"}}
    return {"status_code_filter": {"comparison": equal}}


def _mapper(kind: str, message: str, *filters: Json) -> Json:
    path = {"name": ":path", "string_match": {"safe_regex": {"regex": f"{_PREFIX}.*"}}}
    here: Json = {"header_filter": {"header": path}}
    error = {"message": message, "type": kind, "param": None, "code": "%RESPONSE_CODE%"}
    return {
        "filter": {"and_filter": {"filters": [here, *filters]}} if filters else here,
        "body_format_override": {"json_format": {"error": error}},
    }
