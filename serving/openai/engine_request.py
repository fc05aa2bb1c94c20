"""A request to an engine: parsed from the client's, and the data kept until an answer begins.

Used by serving.openai.routes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from ipnext.errors import InvalidInput, TooLarge
from ipnext.model.echoes import show_value
from ipnext.names import SESSION_HEADER
from serving.http.limits import MemoryClaim
from serving.http.messages import Request
from serving.openai.adapters import Alias
from serving.openai.engines.prefix_affinity import RoutingHint, blocks_of, prompt_of
from serving.openai.errors import WrongType
from serving.openai.model_cards import generative_names
from serving.openai.request_context import RequestContext
from serving.protocol.json_size import check_elements, parsed_bytes
from serving.routing.lost_requests import Record
from serving.routing.table import GenerationRoute, Routes

MAX_DEPTH: Final = 254
"""Levels of objects and lists in a body, as many as orjson writes."""
_SESSION_CHARACTERS: Final = 256


@dataclass(slots=True)
class EngineRequest:
    """A request to an engine that has no answer yet."""

    route: GenerationRoute
    context: RequestContext
    record: Record
    claim: MemoryClaim
    """Memory that it takes in addition to its body as received."""
    name: str
    """The model's name in the client's request."""
    body: Mapping[str, Any]
    content: bytes | bytearray
    """The body's bytes for the engine."""
    alias: Alias | None = None
    """The adapter that it names, as in the table."""
    answering: Alias | None = None
    """The client's name and that of the answering engine; None if they are the same."""
    expected: str | None = None
    """The `model` that the called engine must write into its answer; None if it is unknown."""
    sent_name: str = ""
    """The model's name in the request as the called engine gets it."""
    hint: RoutingHint | None = None

    def content_for(self, url: str) -> bytes | bytearray:
        """Return the body's bytes for one engine, with the adapter name of that engine."""
        answers_as = self.route.answers_as.get(url)
        content = self.content
        if self.alias is not None:
            self.answering = self.alias.beside(answers_as)
            content = self.answering.adapt(content, self.alias)
        else:
            self.answering = None if answers_as is None else Alias(self.name, answers_as)
        self.expected = None if self.answering is None or answers_as is None else self.answering.engine
        self.sent_name = self.name if self.alias is None or self.answering is None else self.answering.engine
        return content

    def keep_bytes(self, *, beside: bytearray) -> None:
        """Drop the parsed body: the engine gets its bytes, and its answer may take minutes."""
        self.body = {}
        self.claim.set(0 if self.content is beside else len(self.content))


def read_body(request: Request, limit: int, claim: MemoryClaim) -> Mapping[str, Any]:
    """Parse the body, whose memory `claim` counts. WrongType, TooLarge, InvalidInput."""
    kind = request.header("content-type") or ""
    if not kind.lower().startswith("application/json"):
        msg = f"content-type: must be application/json, got {kind[:80]!r}"
        raise WrongType(msg, field="content-type", value=kind, allowed=("application/json",))
    if packing := request.header("content-encoding"):
        msg = f"content-encoding: must be left out, since bodies are taken as they are, got {packing[:80]!r}"
        raise WrongType(msg, field="content-encoding", value=packing)
    if len(request.content) > limit:
        msg = f"the body must have at most {limit} bytes, got {len(request.content)}"
        raise TooLarge(msg, field="body")
    check_elements(request.content)
    if size := parsed_bytes(request.content):
        claim.set(size)
    try:
        body = orjson.loads(request.content)
    except ValueError as error:
        msg = f"the body is not JSON: {error}"
        raise InvalidInput(msg, field="body") from error
    check_depth(body, request.content)
    if not isinstance(body, dict):
        msg = f"the body must be an object, got a {type(body).__name__}"
        raise InvalidInput(msg, field="body")
    return body


def check_depth(body: object, content: bytes | bytearray) -> None:
    """Raise InvalidInput if objects and lists lie within each other in more levels than the router can write again."""
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return
    try:
        orjson.dumps(body)
    except TypeError as error:
        msg = f"the body has objects and lists within each other in more than {MAX_DEPTH} levels"
        raise InvalidInput(msg, field="body") from error


def model_of(body: Mapping[str, Any], routes: Routes) -> str:
    """Return the name of the requested model. InvalidInput names those that are served."""
    name = body.get("model")
    if isinstance(name, str) and name:
        return name
    wrong = "model is required" if name is None or name == "" else f"model must be a text, got {show_value(name)}"
    msg = f"{wrong}: the name of a model. Served: {generative_names(routes)}"
    raise InvalidInput(msg, field="model", value=name)


def hint_of(request: Request, body: Mapping[str, Any]) -> RoutingHint:
    """Return the data that the choice of an engine is based on."""
    given = (request.header(SESSION_HEADER), body.get("prompt_cache_key"), body.get("user"))
    session = next((text[:_SESSION_CHARACTERS] for text in given if text and isinstance(text, str)), None)
    name = str(body["model"])
    return RoutingHint(
        f"{name}\0{session}"[:_SESSION_CHARACTERS] if session else None, blocks_of(name, prompt_of(body))
    )
