"""Texts of the answers that Envoy makes itself: for many it has none, or only the words of their status.

Envoy gives each of its answers details, such as `missing_host_header`. Pure functions.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from ipnext.infra.envoy import openai_config
from ipnext.infra.envoy.openai_config import LOCAL_BODY, OTHER_TYPE, TYPES, Json, error_mapper, type_url

MOST_HEADERS: Final = 100
MOST_HEADERS_KIB: Final = 60
"""Of a request, as Envoy limits it unless configured otherwise."""


class KnownReply(NamedTuple):
    """An answer of Envoy, known by its details."""

    status: int
    """The status that Envoy gives it."""
    text: str
    """The text that IPnext gives it."""


def known_replies(header_seconds: float) -> Mapping[str, KnownReply]:
    """Return Envoy's details of an answer -> its status and text."""
    return {
        "missing_host_header": KnownReply(
            400, "Host: the header is missing; allowed: a loopback address or a served name"
        ),
        "http.invalid_authority": KnownReply(
            400, "Host: the header is not valid; allowed: a name or an address, and a port"
        ),
        "upgrade_failed": KnownReply(
            403, "Upgrade: this gateway upgrades no connection, such as to a WebSocket; allowed: no Upgrade header"
        ),
        "route_not_found": KnownReply(404, "CONNECT: this gateway is no proxy; allowed: a request with a path"),
        "absolute_path_rejected": KnownReply(
            404, "the target of the request is no path; allowed: one that begins with /"
        ),
        "path_normalization_failed": KnownReply(
            400, "the path is not valid; allowed: a path without a fragment (#) and without a null character (%%00)"
        ),
        "http1.invalid_url": KnownReply(
            400, "the target of the request is not valid; allowed: a path that begins with /"
        ),
        "http1.invalid_characters": KnownReply(
            400, "the request line or a header has a character that HTTP does not allow, such as a control character"
        ),
        "http1.codec_error": KnownReply(
            400, "the request is not HTTP/1.1: its request line, a header or its body is malformed"
        ),
        "http1.content_length_and_chunked_not_allowed": KnownReply(
            400, "the request has Content-Length and Transfer-Encoding; allowed: one of them"
        ),
        "http1.invalid_transfer_encoding": KnownReply(
            501, "Transfer-Encoding: the encoding is not known; allowed: chunked"
        ),
        "http1.headers_too_large": KnownReply(431, f"the headers are too large; allowed: {MOST_HEADERS_KIB} KiB"),
        "http1.too_many_headers": KnownReply(431, f"there are too many headers; allowed: {MOST_HEADERS}"),
        "low_version": KnownReply(426, "the request is of an older version of HTTP; allowed: HTTP/1.1"),
        "request_header_timeout": KnownReply(
            408, f"the headers were not complete within {header_seconds:g} s; send them without a pause"
        ),
        "overload": KnownReply(503, "the gateway has little memory left; try again later"),
    }


def reply_mappers(region: str, *, header_seconds: float, idle_seconds: float) -> list[Json]:
    """Return mappers that give each of Envoy's answers a text, in OpenAI's form on its paths. The first match counts.

    Answers of rules and of failed upstreams have a text. `idle_seconds`: see `openai_config.streaming`. Each of the
    gateway's groups of connections has all mappers, so their number is most of what Envoy reads at its start.
    """
    mappers: list[Json] = []
    for details, (status, text) in known_replies(header_seconds).items():
        of_details = _match_details(f"response.code_details == '{details}'")
        kind = TYPES.get(status, OTHER_TYPE)
        mappers += [error_mapper(text, None, of_details, kind=kind), _plain_mapper(text, of_details)]
    unknown = _match_details(f"!({_HAS_TEXT})")
    return [
        *mappers,
        *openai_config.failure_mappers(region, idle_seconds=idle_seconds),
        *openai_config.error_mappers(_UNKNOWN, unknown),
        _plain_mapper(_UNKNOWN, unknown),
        *openai_config.error_mappers(LOCAL_BODY),
    ]


_HAS_TEXT: Final = "response.code_details == 'direct_response' || response.code_details.startsWith('upstream_')"
_UNKNOWN: Final = f"the gateway did not forward the request: %RESPONSE_CODE_DETAILS% {LOCAL_BODY}"
"""Of an answer whose details have no text here: it names them, so that it is not empty."""


def body_format(text: str) -> Json:
    """Return the form of an answer outside of OpenAI's paths."""
    return {"json_format": {"error": text}}


def _plain_mapper(text: str, of_details: Json) -> Json:
    return {"filter": of_details, "body_format_override": body_format(text)}


def _match_details(expression: str) -> Json:
    """Match answers by an expression of the Common Expression Language over Envoy's attributes."""
    config = {
        "@type": type_url("extensions.access_loggers.filters.cel.v3.ExpressionFilter"),
        "expression": expression,
    }
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": config}}
