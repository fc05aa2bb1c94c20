"""Proof that an answer comes from the engine of the snapshot that the router claims for it.

A host starts each engine under a name derived from its snapshot, and vLLM writes that name into the field `model` of
its answers. The router checks it in the first bytes, before forwarding any. Used by serving.openai.routes and its
parts.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import orjson
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from serving.openai.engines.response import EngineAnswer

NAMELESS: Final = frozenset({"/tokenize", "/detokenize", "/v1/messages/count_tokens"})
"""Paths whose answers name no model, because they come from the tokenizer."""
METADATA: Final = "metadata"
"""Header with the metadata of a JSON body, which vLLM sends if the body is not JSON (`encoding_format: bytes`)."""
_OK: Final = 200
_NOT_FOUND: Final = 404
_UNKNOWN: Final = "The model `{}` does not exist."
"""Beginning of vLLM's message about a name that it does not serve."""
_UNKNOWN_PARAMS: Final = (None, "model")
_EVENTS: Final = "text/event-stream"
_JSON: Final = "application/json"
_EVENT_END: Final = b"\n\n"
_DATA: Final = b"data:"


class ForeignAnswers(Collector):
    """Counts answers of engines other than those of the route table."""

    def __init__(self, region: str) -> None:
        self._region = region
        self._counts: Counter[tuple[str, int]] = Counter()

    def note(self, model: str, generation: int) -> None:
        """Count one answer."""
        self._counts[model, generation] += 1

    def count(self, model: str, generation: int) -> int:
        """Return the count of a generation."""
        return self._counts[model, generation]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the metric."""
        family = CounterMetricFamily(
            "ipnext_foreign_answers",
            "Answers of an engine that did not name the snapshot that the route table has for it.",
            labels=("model", "generation", "region"),
        )
        for (model, generation), count in self._counts.items():
            family.add_metric((model, str(generation), self._region), count)
        yield family


async def is_proven(answer: EngineAnswer, path: str, name: str | None, asked: str) -> bool:
    """Return whether a begun answer names its engine; wait until that is known.

    `name`: the `model` that the engine must write; None: it is unknown. Errors claim no snapshot, except that the
    engine has no model of the name `asked`, which the request had. EngineLost if the answer breaks off before.
    """
    if name is None:
        return True
    if answer.status == _NOT_FOUND:
        while await answer.await_more(answer.pieces):
            pass
        return not _denies(answer.complete or b"", asked)
    if answer.status != _OK or path in NAMELESS:
        return True
    kind = answer.headers.get("content-type", "")
    if not kind.startswith((_EVENTS, _JSON)):
        return names(answer.headers.get(METADATA, "").encode(), name)
    return await _names_itself(answer, orjson.dumps(name), events=kind.startswith(_EVENTS))


def names(content: bytes, name: str) -> bool:
    """Return whether a complete answer names its engine.

    Quotes within JSON texts are escaped: only whole values match.
    """
    return orjson.dumps(name) in content


async def _names_itself(answer: EngineAnswer, needle: bytes, *, events: bool) -> bool:
    """Read until the name is found, or cannot follow any more: at the end of the first event, or of the body."""
    seen, tail = 0, b""
    while True:
        new = tail + answer.since(seen)
        seen = answer.pieces
        new, ended, _ = new.partition(_EVENT_END) if events else (new, b"", b"")
        if needle in new:
            return True
        if ended:
            return _is_error(answer.since(0).partition(_EVENT_END)[0])
        tail = new[-len(needle) :]
        if not await answer.await_more(seen):
            return False


def _denies(body: bytes, asked: str) -> bool:
    """Whether an error says that the engine has no model of this name.

    vLLM repeats texts of a client in other errors, too. Only the message that begins with this sentence counts, which
    is no client's: the router knows the name, and serves it.
    """
    found = _read_object(body)
    error = found.get("error", found)
    if not isinstance(error, dict) or error.get("param") not in _UNKNOWN_PARAMS:
        return False
    message = error.get("message")
    return isinstance(message, str) and message.startswith(_UNKNOWN.format(asked))


def _is_error(event: bytes) -> bool:
    """Whether an event reports an error, which claims no snapshot."""
    data = b"".join(line.removeprefix(_DATA) for line in event.splitlines() if line.startswith(_DATA))
    found = _read_object(data)
    return "error" in found and "model" not in found


def _read_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object; an empty one if it is none."""
    try:
        found = orjson.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def restore_headers(headers: Mapping[str, str], engine: str, asked: str) -> Mapping[str, str]:
    """Return the headers that name the model, with the client's name instead of the engine's."""
    given = headers.get(METADATA)
    return {} if given is None else {METADATA: given.replace(f'"{engine}"', f'"{asked}"')}
