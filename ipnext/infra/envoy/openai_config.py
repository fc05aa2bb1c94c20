"""Envoy's configuration for OpenAI's routes, whose body names the model. Pure functions; used by ipnext.infra.envoy.

Envoy neither reads nor keeps a body: it streams requests to the router, which chooses the generation.
"""

from collections.abc import Mapping
from typing import Any, Final

Json = dict[str, Any]

PATHS: Final = "/(v1(/.*)?|score|rerank|classify|pooling|tokenize|detokenize)"
"""Regular expression of whole paths: OpenAI's, and those that vLLM adds."""
_PREFIX: Final = "^(/v1(/|$|\\?)|/(score|rerank|classify|pooling|tokenize|detokenize)($|\\?))"
RETRY_AFTER_SECONDS: Final = 1
"""Time after which a client that met no capacity, or no router, may retry."""
TYPES: Final[Mapping[int, str]] = {
    400: "BadRequestError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    408: "TimeoutError",
    503: "ServiceUnavailableError",
    504: "TimeoutError",
}
"""Status of an answer that Envoy makes itself -> its type in OpenAI's form, as in the router."""
OTHER_TYPE: Final = "InternalServerError"
"""Of another status; as in the router."""
LOCAL_BODY: Final = "%LOCAL_REPLY_BODY%"
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


def failure_mappers(region: str, *, idle_seconds: float) -> list[Json]:
    """Return mappers that turn failures of upstreams and limits of time on OpenAI's paths into OpenAI errors.

    The errors name what is allowed or what to do.

    The first match counts. `idle_seconds` is the limit that `streaming` sets.
    """
    late = f"nothing has come or gone for {idle_seconds:g} s"
    unreached = f"the gateway of region {region} gets no answer from its %UPSTREAM_CLUSTER% ({LOCAL_BODY}); try again"
    again = {"header": {"key": "retry-after", "value": str(RETRY_AFTER_SECONDS)}}
    return [
        error_mapper(f"{late}, and the request is not whole; send it without a pause", 408),
        error_mapper(f"{late}, and no answer has begun; try again", 504, _FAILED),
        {**error_mapper(unreached, 503, _FAILED), "headers_to_add": [again]},
        {**error_mapper(unreached, 507, kind=TYPES[503]), "status_code": 503, "headers_to_add": [again]},
    ]


_FAILED: Final[Json] = {"response_flag_filter": {}}
"""Answers for which Envoy records a failure flag: all except those of a route."""


def error_mappers(text: str, *filters: Json) -> list[Json]:
    """Return mappers that give the answers on OpenAI's paths a text, with the type of their status."""
    return [*(error_mapper(text, status, *filters) for status in TYPES), error_mapper(text, None, *filters)]


def error_mapper(text: str, status: int | None, *filters: Json, kind: str = "") -> Json:
    """Return the mapper of answers with a status (None: any) on OpenAI's paths that match all `filters`.

    `kind` is the error's type, by default that of the status.
    """
    kind = kind or TYPES.get(status or 0, OTHER_TYPE)
    path = {"name": ":path", "string_match": {"safe_regex": {"regex": f"{_PREFIX}.*"}}}
    here: Json = {"header_filter": {"header": path}}
    of_status = [] if status is None else [_status(status)]
    error = {"message": text, "type": kind, "param": None, "code": "%RESPONSE_CODE%"}
    return {
        "filter": match_all(here, *of_status, *filters),
        "body_format_override": {"json_format": {"error": error}},
    }


def match_all(*filters: Json) -> Json:
    """Match the answers that match each filter."""
    return {"and_filter": {"filters": list(filters)}} if len(filters) > 1 else filters[0]


def _status(status: int) -> Json:
    equal = {"op": "EQ", "value": {"default_value": status, "runtime_key": "ipnext.no_such_key"}}
    return {"status_code_filter": {"comparison": equal}}
