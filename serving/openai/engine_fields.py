"""What of a client's request an engine may read: body fields that are refused, and headers that are passed.

vLLM takes some fields and headers from a component of the platform and from a client alike. A client's would say from
where an engine loads keys and values, which of an engine's processes answers, or what its extensions do: a wrong value
ends the engine.
"""

from collections.abc import Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput

PARAMETERS: Final = "kv_transfer_params"
REFUSED_FIELDS: Final = (PARAMETERS, "ec_transfer_params", "vllm_xargs")
"""Fields of vLLM's for its connectors and extensions. `vllm_xargs` reaches all of them, whatever its keys."""
PASSED_HEADERS: Final = frozenset(
    {
        *("accept", "content-type", "user-agent", "x-request-id"),
        *("traceparent", "tracestate", "baggage"),
    }
)
"""Headers that an engine gets: its form of an answer, and the names of a request in logs and traces."""


def check_fields(body: Mapping[str, Any]) -> None:
    """Raise InvalidInput if the request has fields that only the platform sends to engines."""
    for field in REFUSED_FIELDS:
        if body.get(field) is not None:
            msg = (
                f"{field}: only the platform sends it to an engine; leave it out (refused: {', '.join(REFUSED_FIELDS)})"
            )
            raise InvalidInput(msg, field=field, value=body[field])


def filter_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers that are forwarded to an engine. Names are in lower case."""
    return {name: value for name, value in headers.items() if name in PASSED_HEADERS}
