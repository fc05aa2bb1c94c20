"""What of a client's request an engine may read: body fields that are refused, and headers that are passed.

vLLM takes some fields and headers from a component of the platform and from a client alike. A client's would say from
where an engine loads keys and values, which of an engine's processes answers, or what its extensions do: a wrong value
ends the engine.
"""

from collections.abc import Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput
from ipnext.model.echoes import show_value

PARAMETERS: Final = "kv_transfer_params"
REFUSED_FIELDS: Final = (PARAMETERS, "ec_transfer_params", "vllm_xargs")
"""Fields of vLLM's for its connectors and extensions. `vllm_xargs` reaches all of them, whatever its keys."""
STORED: Final = "previous_response_id"
"""Field that continues a stored response. None is stored: each request may come to another engine."""
ENCODING: Final = "encoding_format"
ENCODINGS: Final = ("float", "base64", "bytes")
"""Forms of vectors in answers that name their model.

vLLM's `bytes_only` does not, so that nothing proves its engine.
"""
PASSED_HEADERS: Final = frozenset(
    {
        *("accept", "content-type", "user-agent", "x-request-id"),
        *("traceparent", "tracestate", "baggage"),
    }
)
"""Headers that an engine gets: its form of an answer, and the names of a request in logs and traces."""


def check_fields(body: Mapping[str, Any]) -> None:
    """Raise InvalidInput for fields that only the platform sends, and for what engines don't answer."""
    for field in REFUSED_FIELDS:
        if body.get(field) is not None:
            msg = (
                f"{field}: only the platform sends it to an engine; leave it out (refused: {', '.join(REFUSED_FIELDS)})"
            )
            raise InvalidInput(msg, field=field, value=body[field])
    if (stored := body.get(STORED)) is not None:
        msg = (
            f"{STORED}: must be left out, because no response is stored, got {show_value(stored)}; "
            "send the earlier turns in `input`"
        )
        raise InvalidInput(msg, field=STORED, value=stored)
    encoding = body.get(ENCODING)
    if encoding is not None and encoding not in ENCODINGS:
        msg = f"{ENCODING}: must be one of {', '.join(ENCODINGS)}, got {show_value(encoding)}"
        raise InvalidInput(msg, field=ENCODING, value=encoding, allowed=ENCODINGS)


def filter_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers that are forwarded to an engine. Names are in lower case."""
    return {name: value for name, value in headers.items() if name in PASSED_HEADERS}
