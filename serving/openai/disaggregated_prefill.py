"""Prefill and decode apart: a prompt goes to an engine that reads it, then with what that one handed over to an engine that answers.

A prompt that nobody reads first is read by the engine that answers: nothing here makes a request fail, unless an engine ended
by it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from ipnext.model.kv_transfer import Handoff
from serving.openai.engines.prefix_affinity import RoutingHint
from serving.openai.engines.proof import names
from serving.openai.engines.registry import EngineRegistry
from serving.openai.engines.response import EngineAnswer, EngineLost
from serving.routing.metrics import RouterMetrics
from serving.routing.sync_policy import HostCandidate
from serving.routing.table import GenerationRoute

Outcome = Literal["handed", "alone", "refused", "failed"]
"""`alone`: not asked for one sequence; `refused`: the prefill engine said that the request is a bad one."""

ATTEMPTS: Final = 2
"""Prefill engines that are asked for one request."""
SHARE: Final = 0.5
"""Of the time until the deadline: what is left belongs to the engine that answers."""
_FULL: Final = 503
PARAMETERS: Final = "kv_transfer_params"
HANDED: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
}
"""Paths whose prompts are read apart, with the fields that limit an answer's tokens."""
_OF_THE_ANSWER: Final = frozenset(
    {"stream_options", "min_tokens", "logprobs", "top_logprobs", "prompt_logprobs", "echo"}
)
"""Fields that say nothing of the prompt."""
_ASKED_OF_PREFILL: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""As vLLM's NixlConnector takes it from a router."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request on its way: path, headers that are passed on, its body as it came and as it reads."""

    path: str
    headers: Mapping[str, str]
    content: bytes | bytearray
    body: Mapping[str, Any]
    hint: RoutingHint | None


class Prefill:
    """Has prompts read by the prefill engines of a generation."""

    def __init__(self, engines: EngineRegistry, metrics: RouterMetrics) -> None:
        self._engines = engines
        self._metrics = metrics

    async def content(self, route: GenerationRoute, prompt: Prompt, *, seconds: float) -> bytes | bytearray:
        """The body for the engine that answers, within a share of `seconds`. Cancelled, the prefill engine is told so."""
        handoff = route.handoff
        if handoff is None:
            return prompt.content
        if prompt.path not in HANDED:
            return decode_content(handoff, prompt, None)
        outcome: Outcome = "alone"
        given: Mapping[str, Any] | None = None
        if is_one_sequence(prompt):
            try:
                async with asyncio.timeout(SHARE * seconds):
                    outcome, given = await self._read(route, handoff, prompt)
            except TimeoutError:
                outcome = "failed"
        self._metrics.note_prefill(route.model, route.generation, outcome)
        return decode_content(handoff, prompt, given)

    async def _read(
        self, route: GenerationRoute, handoff: Handoff, prompt: Prompt
    ) -> tuple[Outcome, Mapping[str, Any] | None]:
        """What came of it, and what the engine hands over besides."""
        content = prefill_content(handoff, prompt)
        tried: list[str] = []
        for _ in range(ATTEMPTS):
            candidates = {candidate.url: candidate for candidate in _untried(route.candidates[handoff.prefill], tried)}
            if not candidates:
                break
            url = self._engines.loads.choose(list(candidates), prompt.hint, policy=route.prefill_routing or "prefix")
            tried.append(url)
            status, answer = await self._asked(url, prompt, content)
            if status == 200 and url in route.answers_as and not names(answer, route.answers_as[url]):
                self._engines.note_foreign(route, candidates[url])
                continue
            if status == 200:  # HTTP's OK
                given = _parameters(answer)
                handed = handoff.connector == "example" or given is not None
                return ("handed" if handed else "failed"), given
            if 400 <= status < 500:  # HTTP's client errors: another engine says the same
                return "refused", None
        return "failed", None

    async def _asked(self, url: str, prompt: Prompt, content: bytes) -> tuple[int, bytes]:
        """Status and body of the answer; 0 where there is none. HostLost if the engine is gone that had the prompt."""
        loads = self._engines.loads
        status, body, sent = 0, b"", True
        try:
            with loads.calling(url):
                answer = await self._begun(url, prompt, content)
                body = await answer.rest()
                status = answer.status
        except EngineLost as error:
            sent = error.sent
        if not status or status >= 500:  # HTTP's server errors
            loads.note_lost(url)
            if sent and status != _FULL:
                await self._engines.check_alive(url)
        return status, body

    async def _begun(self, url: str, prompt: Prompt, content: bytes) -> EngineAnswer:
        """The engine's answer. A connection that had been idle may just have been closed: it is asked on a new one then."""
        try:
            return await self._engines.ask(url, "POST", prompt.path, prompt.headers, content)
        except EngineLost as error:
            if not error.reused:
                raise
            await self._engines.check_alive(url)
            return await self._engines.ask(url, "POST", prompt.path, prompt.headers, content)


def is_one_sequence(prompt: Prompt) -> bool:
    """Whether one prompt and one answer are asked for: what is handed over can be taken once."""
    body = prompt.body
    if body.get("use_beam_search") or any((body.get(name) or 1) != 1 for name in ("n", "best_of")):
        return False
    given = body.get("prompt")
    return not isinstance(given, list) or all(isinstance(token, int) for token in given)


def prefill_content(handoff: Handoff, prompt: Prompt) -> bytes:
    """The body for a prefill engine: the same prompt, one token, no stream."""
    body = {name: value for name, value in prompt.body.items() if name not in _OF_THE_ANSWER}
    limits = [name for name in HANDED[prompt.path] if name in body] or HANDED[prompt.path][:1]
    body |= {"stream": False, **dict.fromkeys(limits, 1)}
    body.pop(PARAMETERS, None)
    if handoff.connector == "nixl":
        body[PARAMETERS] = _ASKED_OF_PREFILL
    return orjson.dumps(body)


def decode_content(handoff: Handoff, prompt: Prompt, given: Mapping[str, Any] | None) -> bytes | bytearray:
    """The body for the engine that answers: as it came, with what was handed over; what a client says of that is dropped."""
    if given is None and PARAMETERS not in prompt.body:
        return prompt.content
    body = {name: value for name, value in prompt.body.items() if name != PARAMETERS}
    if given is not None and handoff.connector == "nixl":
        body[PARAMETERS] = given
    return orjson.dumps(body)


def _untried(tiers: Sequence[Sequence[HostCandidate]], tried: Sequence[str]) -> Sequence[HostCandidate]:
    """Engines of the best tier that has any left."""
    found = ([candidate for candidate in tier if candidate.url not in tried] for tier in tiers)
    return next((candidates for candidates in found if candidates), [])


def _parameters(answer: bytes) -> Mapping[str, Any] | None:
    try:
        told = orjson.loads(answer)
    except ValueError:
        return None
    given = told.get(PARAMETERS) if isinstance(told, dict) else None
    return given if isinstance(given, dict) else None
