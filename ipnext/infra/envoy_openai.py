"""Envoy's configuration for OpenAI's routes, whose body names the model. Pure functions; used by ipnext.infra.envoy.

A filter reads the name from the JSON into the request's metadata, then routes match by it. It waits for the whole body,
so it is off except for these routes: requests of V2 pass as they come.
"""

from typing import Any, Final

Json = dict[str, Any]

PATHS: Final = "/(v1(/.*)?|score|rerank|classify|pooling|tokenize|detokenize)"
"""Regular expression of whole paths: OpenAI's, and those that vLLM adds."""
MAX_BODY_BYTES: Final = 32 * 2**20
"""Largest request body: Envoy buffers all of it for a moment. The router's limit is the same
(serving.openai.routes)."""
_FILTER: Final = "ipnext.model_of_body"
_NAMESPACE: Final = "ipnext"
_KEY: Final = "model"
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


def of_model(model: str, *headers: Json) -> Json:
    """Match requests whose body names the model, or an adapter of it as `MODEL:ADAPTER`."""
    names = [{"string_match": {"exact": model}}, {"string_match": {"prefix": f"{model}:"}}]
    value = {"or_match": {"value_matchers": names}}
    named = {"filter": _NAMESPACE, "path": [{"key": _KEY}], "value": value}
    return {**of_any_model(), "dynamic_metadata": [named], **({"headers": list(headers)} if headers else {})}


def of_any_model() -> Json:
    """Match all of OpenAI's paths: before the filter has read the body, and if it names no known model."""
    return {"safe_regex": {"regex": PATHS}}


def with_body_read(route: Json) -> Json:
    """Return the route with the filter on, and with a buffer for the body that it waits for."""
    on = {"@type": type_url("config.route.v3.FilterConfig"), "config": {}}
    return {**with_room(route), "typed_per_filter_config": {_FILTER: on}}


def with_room(route: Json) -> Json:
    """Return the route with a buffer for a whole body.

    Other routes keep the listener's limit, beyond which bodies only wait.
    """
    return {**route, "request_body_buffer_limit": str(MAX_BODY_BYTES)}


def streaming(action: Json, *, idle_seconds: float) -> Json:
    """Return the action without a limit for the whole answer, but with one for the time without traffic."""
    return {**action, "route": {**action["route"], "timeout": "0s", "idle_timeout": f"{idle_seconds}s"}}


def body_filter() -> Json:
    """Return the filter, off unless a route enables it. The router refuses a body that has no name or is no JSON."""
    rule = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": _NAMESPACE, "key": _KEY, "type": "STRING"},
        "on_missing": {"metadata_namespace": _NAMESPACE, "key": _KEY, "value": ""},
        "on_error": {"metadata_namespace": _NAMESPACE, "key": _KEY, "value": ""},
    }
    config = {
        "@type": type_url("extensions.filters.http.json_to_metadata.v3.JsonToMetadata"),
        "request_rules": {"rules": [rule], "allow_content_types_regex": {"regex": "(?i)application/json.*"}},
    }
    return {"name": _FILTER, "disabled": True, "typed_config": config}


def error_mappers(region: str, *, idle_seconds: float) -> list[Json]:
    """Return mappers that turn Envoy's own answers on OpenAI's paths into OpenAI errors that name what is allowed or what to do.

    The first match counts. `idle_seconds` is the limit that `streaming` sets.
    """
    late = f"nothing has come or gone for {idle_seconds:g} s"
    unreached = f"the gateway of region {region} gets no answer from its %UPSTREAM_CLUSTER% ({_BODY}); try again"
    again = {"header": {"key": "retry-after", "value": str(RETRY_AFTER_SECONDS)}}
    return [
        _mapper("BadRequestError", f"the body must have at most {MAX_BODY_BYTES} bytes, got more", _status(413)),
        _mapper("TimeoutError", f"{late}, and the request is not whole; send it without a pause", _status(408)),
        _mapper("TimeoutError", f"{late}, and no answer has begun; try again", _status(504), _FAILED),
        {**_mapper("ServiceUnavailableError", unreached, _status(503), _FAILED), "headers_to_add": [again]},
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
