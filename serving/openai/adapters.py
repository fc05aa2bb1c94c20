"""Names of models and adapters.

Clients use `MODEL` and `MODEL:PART`; the engines of a generation have other names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ipnext.model.registry.adapter import adapter_in, client_name
from serving.http.messages import BodySource, Sink
from serving.openai.errors import UnknownModel
from serving.routing.table import GenerationRoute


@dataclass(frozen=True, slots=True)
class Alias:
    """One model or adapter under two names."""

    asked: str
    """The client's name, in its request and its answer."""
    engine: str
    """The engine's name, in its answers."""

    def beside(self, answers_as: str | None) -> "Alias":
        """Return the alias of an adapter for an engine that answers by this name."""
        return replace(self, engine=adapter_in(self.engine, answers_as))

    def adapt(self, content: bytes | bytearray, former: "Alias") -> bytes | bytearray:
        """Adapt the bytes of a request that were made for `former`."""
        return content.replace(b'"model":' + orjson.dumps(former.engine), b'"model":' + orjson.dumps(self.engine))

    def rename(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request's body with the engine's name."""
        return {**body, "model": self.engine}

    def restore(self, answer: bytes) -> bytes:
        """Return the answer's bytes with the client's name.

        Quotes within JSON texts are escaped, so only whole values match.
        """
        return answer.replace(*self._needle_and_name())

    def follow(self, flow: BodySource) -> BodySource:
        """Wrap a streamed answer so that it has the client's name."""
        return _Restored(flow, *self._needle_and_name())

    def _needle_and_name(self) -> tuple[bytes, bytes]:
        return orjson.dumps(self.engine), orjson.dumps(self.asked)


def alias_of(route: GenerationRoute, name: str) -> Alias | None:
    """Return the adapter that a request names; None if it names the model itself.

    UnknownModel lists the generation's adapters.
    """
    model, colon, part = name.partition(":")
    if not colon:
        return None
    if part in route.adapters:
        return Alias(name, route.adapters[part])
    known = ", ".join(client_name(model, adapter) for adapter in route.adapters) or "none"
    msg = (
        f"The model {name[:80]!r} does not exist here: generation {route.generation} of {model} has no such "
        f"adapter. Adapters: {known}"
    )
    raise UnknownModel(msg)


class _Restored:
    """A Flow whose pieces have the client's name instead of the engine's.

    If a name may span two pieces, its beginning is held back.
    """

    def __init__(self, flow: BodySource, needle: bytes, name: bytes) -> None:
        self._flow = flow
        self._needle = needle
        self._name = name
        self._sink: Sink | None = None
        self._kept = b""
        self.pause, self.resume, self.cancel = flow.pause, flow.resume, flow.cancel

    def start(self, sink: Sink) -> None:
        """Start the flow; see Flow."""
        self._sink = sink
        self._flow.start(self)

    def write(self, piece: bytes) -> None:
        """Write a piece; see Sink."""
        data = (self._kept + piece).replace(self._needle, self._name)
        shared = self._count_trailing(data)
        self._kept = data[len(data) - shared :]
        if self._sink is not None and len(data) > shared:
            self._sink.write(data[: len(data) - shared])

    def end(self, last: bytes = b"") -> None:
        """End the body; see Sink."""
        if self._sink is not None:
            self._sink.end((self._kept + last).replace(self._needle, self._name))

    def abort(self) -> None:
        """Abort the body; see Sink."""
        if self._sink is not None:
            self._sink.abort()

    def _count_trailing(self, data: bytes) -> int:
        """Return how many trailing bytes begin the engine's name, whose only quotes are its first and last bytes."""
        place = data.rfind(b'"', -len(self._needle) + 1)
        return len(data) - place if place >= 0 and self._needle.startswith(data[place:]) else 0
