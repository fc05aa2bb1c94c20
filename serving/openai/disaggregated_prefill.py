"""Disaggregated prefill: a prefill engine processes the prompt, then a decode engine answers from its keys and values.

If the prefill fails, the decode engine processes the prompt itself. A request fails here only if an engine ended while
it had the prompt.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from ipnext.errors import AnswerTooLarge, HostLost, Unavailable
from ipnext.model.settings.kv_transfer import Handoff
from serving.openai.engine_fields import PARAMETERS
from serving.openai.engines.prefix_affinity import RoutingHint
from serving.openai.engines.proof import names
from serving.openai.engines.registry import EngineRegistry
from serving.openai.engines.response import EngineAnswer, EngineLost
from serving.routing.metrics import RouterMetrics
from serving.routing.sync_policy import HostCandidate
from serving.routing.table import GenerationRoute

Outcome = Literal["handed", "alone", "refused", "failed"]
"""`alone`: the request is not for a single sequence; `refused`: the prefill engine rejected the request as invalid."""

ATTEMPTS: Final = 2
"""Prefill engines that are tried for one request."""
SHARE: Final = 0.5
"""Share of the time until the deadline for the prefill; the rest is left to the decode engine."""
_FULL: Final = 503
HANDED: Final[Mapping[str, tuple[str, ...]]] = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
}
"""Paths with disaggregated prefill, with the fields that limit an answer's tokens."""
_OF_THE_ANSWER: Final = frozenset(
    {"stream_options", "min_tokens", "logprobs", "top_logprobs", "prompt_logprobs", "echo"}
)
"""Fields that do not affect the prompt."""
_ASKED_OF_PREFILL: Final = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""Transfer parameters that vLLM's NixlConnector expects from a router."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request for prefill: path, headers for the engine, and its body, as bytes and parsed."""

    path: str
    headers: Mapping[str, str]
    content: bytes | bytearray
    body: Mapping[str, Any]
    hint: RoutingHint | None


class Prefill:
    """Runs prefills on the prefill engines of a generation."""

    def __init__(self, engines: EngineRegistry, metrics: RouterMetrics) -> None:
        self._engines = engines
        self._metrics = metrics

    async def content(self, route: GenerationRoute, prompt: Prompt, *, seconds: float) -> bytes | bytearray:
        """Return the body for the decode engine, within a share of `seconds`.

        If cancelled, the call to the prefill engine is too.
        """
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
        """Run the prefill; return its outcome, and the transfer parameters of the engine, if any."""
        content = prefill_content(handoff, prompt)
        tried: list[str] = []
        for _ in range(ATTEMPTS):
            candidates = {
                candidate.url: candidate for candidate in _find_untried(route.candidates[handoff.prefill], tried)
            }
            if not candidates:
                break
            url = self._engines.loads.choose(list(candidates), prompt.hint, policy=route.prefill_routing or "prefix")
            tried.append(url)
            status, answer = await self._ask_engine(url, prompt, content)
            if status == 200 and url in route.answers_as and not names(answer, route.answers_as[url]):
                self._engines.note_foreign(route, candidates[url])
                continue
            if status == 200:  # HTTP's OK
                given = _parameters(answer)
                handed = handoff.connector == "example" or given is not None
                return ("handed" if handed else "failed"), given
            if 400 <= status < 500:  # HTTP's client errors: another engine would give the same
                return "refused", None
        return "failed", None

    async def _ask_engine(self, url: str, prompt: Prompt, content: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer; status 0 if there is none.

        HostLost if the engine that had the prompt ended.
        """
        loads = self._engines.loads
        status, body, sent = 0, b"", True
        try:
            with loads.calling(url):
                answer = await self._begin_answer(url, prompt, content)
                body = await answer.rest()
                status = answer.status
        except EngineLost as error:
            sent = error.sent
        except HostLost:
            raise
        except (AnswerTooLarge, Unavailable):  # it cannot be kept here; the decode engine reads the prompt itself
            return 0, b""
        if not status or status >= 500:  # HTTP's server errors
            loads.note_lost(url)
            if sent and status != _FULL:
                await self._engines.check_alive(url)
        return status, body

    async def _begin_answer(self, url: str, prompt: Prompt, content: bytes) -> EngineAnswer:
        """Return the engine's answer.

        If an idle connection turns out to be closed, the call is repeated on a new one.
        """
        try:
            return await self._engines.ask(url, "POST", prompt.path, prompt.headers, content)
        except EngineLost as error:
            if not error.reused:
                raise
            await self._engines.check_alive(url)
            return await self._engines.ask(url, "POST", prompt.path, prompt.headers, content)


def is_one_sequence(prompt: Prompt) -> bool:
    """Whether the request has one prompt and one answer: transferred keys and values can be used once."""
    body = prompt.body
    if body.get("use_beam_search") or any((body.get(name) or 1) != 1 for name in ("n", "best_of")):
        return False
    given = body.get("prompt")
    return not isinstance(given, list) or all(isinstance(token, int) for token in given)


def prefill_content(handoff: Handoff, prompt: Prompt) -> bytes:
    """Return the body for a prefill engine: the same prompt, one token, no stream."""
    body = {name: value for name, value in prompt.body.items() if name not in _OF_THE_ANSWER}
    limits = [name for name in HANDED[prompt.path] if name in body] or HANDED[prompt.path][:1]
    body |= {"stream": False, **dict.fromkeys(limits, 1)}
    body.pop(PARAMETERS, None)
    if handoff.connector == "nixl":
        body[PARAMETERS] = _ASKED_OF_PREFILL
    return orjson.dumps(body)


def decode_content(handoff: Handoff, prompt: Prompt, given: Mapping[str, Any] | None) -> bytes | bytearray:
    """Return the body for the decode engine, with the transfer parameters. A client's own are refused before."""
    if given is None and PARAMETERS not in prompt.body:
        return prompt.content
    body = {name: value for name, value in prompt.body.items() if name != PARAMETERS}
    if given is not None and handoff.connector == "nixl":
        body[PARAMETERS] = given
    return orjson.dumps(body)


def _find_untried(tiers: Sequence[Sequence[HostCandidate]], tried: Sequence[str]) -> Sequence[HostCandidate]:
    """Return the untried engines of the best tier that has any."""
    found = ([candidate for candidate in tier if candidate.url not in tried] for tier in tiers)
    return next((candidates for candidates in found if candidates), [])


def _parameters(answer: bytes) -> Mapping[str, Any] | None:
    try:
        told = orjson.loads(answer)
    except ValueError:
        return None
    given = told.get(PARAMETERS) if isinstance(told, dict) else None
    return given if isinstance(given, dict) else None
