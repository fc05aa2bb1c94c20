"""Headers of an answer that a client gets: those that describe it.

Engines and other regions steer no gateway and no browser. Used by serving.openai.routes and serving.openai.forwarding.
"""

from collections.abc import Mapping
from typing import Final

from ipnext.names import ANSWER_HEADERS
from serving.openai.engines.proof import METADATA

ENGINE_HEADERS: Final = frozenset(
    {"content-type", "content-length", "content-encoding", "cache-control", "retry-after", "x-request-id", METADATA}
)
"""Headers of an engine's answer that are returned, besides those with OPENAI_PREFIX."""
OPENAI_PREFIX: Final = "openai-"
REGION_HEADERS: Final = ENGINE_HEADERS | {*ANSWER_HEADERS, "www-authenticate"}
"""Those of another region's answer: its router and gateway say who answered, or why none did."""


def from_engine(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of an engine's answer that a client gets. Names are in lower case."""
    return _filter(headers, ENGINE_HEADERS)


def from_region(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers of another region's answer that a client gets. Names are in lower case."""
    return _filter(headers, REGION_HEADERS)


def _filter(headers: Mapping[str, str], returned: frozenset[str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name in returned or name.startswith(OPENAI_PREFIX)}
