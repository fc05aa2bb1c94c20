"""Models and adapters as clients ask for them, `MODEL` and `MODEL:PART`, and as the engines of a generation know them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from ipnext.model.adapter import adapter_in, client_name
from serving.http.messages import Flow, Sink
from serving.openai.errors import UnknownModel
from serving.routing.table import GenerationRoute


@dataclass(frozen=True, slots=True)
class Alias:
    """One model or adapter under two names."""

    asked: str
    """By which the client asks, and is answered."""
    engine: str
    """By which the engine answers."""

    def beside(self, answers_as: str | None) -> "Alias":
        """An adapter as an engine of this name has it."""
        return replace(self, engine=adapter_in(self.engine, answers_as))

    def moved(self, content: bytes | bytearray, former: "Alias") -> bytes | bytearray:
        """A request's bytes that were made for `former`."""
        return content.replace(b'"model":' + orjson.dumps(former.engine), b'"model":' + orjson.dumps(self.engine))

    def renamed(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request's body for the engine."""
        return {**body, "model": self.engine}

    def restored(self, answer: bytes) -> bytes:
        """An answer's bytes for the client. Quotes within a JSON text are escaped, so this meets whole values alone."""
        return answer.replace(*self._needle_and_name())

    def follow(self, flow: Flow) -> Flow:
        """An answer that comes in pieces, for the client."""
        return _Restored(flow, *self._needle_and_name())

    def _needle_and_name(self) -> tuple[bytes, bytes]:
        return orjson.dumps(self.engine), orjson.dumps(self.asked)


def alias_of(route: GenerationRoute, name: str) -> Alias | None:
    """The adapter that a request names; None where it names the model itself. UnknownModel names those of the generation."""
    model, colon, part = name.partition(":")
    if not colon:
        return None
    if part in route.adapters:
        return Alias(name, route.adapters[part])
    known = ", ".join(client_name(model, adapter) for adapter in route.adapters) or "none"
    msg = f"The model {name[:80]!r} does not exist here: generation {route.generation} of {model} has no such adapter. Adapters: {known}"
    raise UnknownModel(msg)


class _Restored:
    """A Flow whose pieces have the client's name in the place of the engine's. A name that two pieces share is waited for."""

    def __init__(self, flow: Flow, needle: bytes, name: bytes) -> None:
        self._flow = flow
        self._needle = needle
        self._name = name
        self._sink: Sink | None = None
        self._kept = b""
        self.pause, self.resume, self.cancel = flow.pause, flow.resume, flow.cancel

    def start(self, sink: Sink) -> None:
        """As of a Flow."""
        self._sink = sink
        self._flow.start(self)

    def write(self, piece: bytes) -> None:
        """As of a Sink."""
        data = (self._kept + piece).replace(self._needle, self._name)
        shared = self._begun_at_the_end(data)
        self._kept = data[len(data) - shared :]
        if self._sink is not None and len(data) > shared:
            self._sink.write(data[: len(data) - shared])

    def end(self, last: bytes = b"") -> None:
        """As of a Sink."""
        if self._sink is not None:
            self._sink.end((self._kept + last).replace(self._needle, self._name))

    def abort(self) -> None:
        """As of a Sink."""
        if self._sink is not None:
            self._sink.abort()

    def _begun_at_the_end(self, data: bytes) -> int:
        """How many of the last bytes are the beginning of the engine's name. Its only quotes are the first byte and the last."""
        place = data.rfind(b'"', -len(self._needle) + 1)
        return len(data) - place if place >= 0 and self._needle.startswith(data[place:]) else 0
