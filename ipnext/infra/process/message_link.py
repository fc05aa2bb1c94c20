"""A connection of JSON objects, one a line.

Between an agent and its region's supervisor, which may be of another build.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Final, TypeVar

Message = dict[str, Any]
T = TypeVar("T")

MESSAGE_BYTES: Final = 2**24
"""Longest message; an environment, a command line and a note are far smaller."""


def from_object(kind: type[T], told: Mapping[str, Any]) -> T:
    """Make a dataclass or a named tuple of a JSON object; ignore fields unknown to this build.

    TypeError if one is missing. `ipnext.model.wire` does the same for all other types; a supervisor does without it,
    since pydantic would cost it 6 MB.
    """
    return kind(**{name: told[name] for name in signature(kind).parameters if name in told})


class MessageLink(asyncio.Protocol):
    """Calls `on_message` for each message before the end, even before an end by an error; then `on_lost` once."""

    def __init__(
        self, on_message: Callable[["MessageLink", Message], None], on_lost: Callable[["MessageLink"], None]
    ) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._rest = b""

    def send(self, message: Message) -> None:
        """Send a message; do nothing if the connection has ended."""
        if self._transport is not None:
            self._transport.write(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        """End the connection once all written messages are sent."""
        if self._transport is not None:
            self._transport.close()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a stream has one
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Pass on the complete messages."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._on_message(self, json.loads(line))
        except (ValueError, RecursionError):
            self._abort()
        if len(self._rest) > MESSAGE_BYTES:
            self._abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Report that the other side has closed the connection."""
        self._transport = None
        self._on_lost(self)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
