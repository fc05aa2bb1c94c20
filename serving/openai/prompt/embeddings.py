"""Embeddings of many texts from an engine, in one request. Used by serving.openai.prompt.pre_generation."""

import base64
from typing import Any, Final

import numpy as np
import orjson

from ipnext.errors import InvalidInput, IPnextError, TooLarge
from ipnext.model.manifest.derived.part_tensors import EMBEDDING
from ipnext.model.settings.prompt import PROMPT
from serving.graph import Tensors
from serving.openai.engines.proof import names
from serving.openai.engines.registry import EngineRegistry
from serving.openai.engines.response import EngineLost
from serving.protocol.json_size import parsed_bytes
from serving.protocol.tensors import Tensor
from serving.routing.host_call import CallState, RetryOnOtherHost
from serving.routing.sync_policy import HostCandidate, of_snapshot
from serving.routing.table import GenerationRoute

PATH: Final = "/v1/embeddings"
_HEADERS: Final = {"content-type": "application/json"}
_ENDING: Final = frozenset({500, 502, 503})
"""Statuses of an engine that ends or has no room: another one may answer."""
_OK: Final = 200
_FULL: Final = 503


async def embed(
    engines: EngineRegistry, route: GenerationRoute, part: str, inputs: Tensors, attempt: CallState
) -> Tensors:
    """Map `prompt` BYTES[n] to `embedding` FP32[n, size] on one engine of the part; record its snapshot in `attempt`.

    RetryOnOtherHost if the engine fails, HostLost if the request ended it, InvalidInput if it refuses a text,
    IPnextError if its answer has no vectors.
    """
    texts = [text.decode(errors="replace") for text in inputs[PROMPT].data.ravel()]
    candidate = _choose_engine(engines, route, part, attempt)
    attempt.used[part] = candidate.snapshot
    body = orjson.dumps({"model": route.model, "input": texts, "encoding_format": "base64"})
    with engines.loads.calling(candidate.url):
        status, content = await _ask_engine(engines, part, candidate, body, attempt)
    if status in _ENDING:
        if status != _FULL:
            await engines.check_alive(candidate.url)
        attempt.tried.add(candidate.url)
        engines.loads.note_lost(candidate.url)
        msg = f"part {part!r}: {candidate.url} answered {status}"
        raise RetryOnOtherHost(msg)
    if status != _OK:
        refused: type[IPnextError] = InvalidInput if status in {400, 413, 422} else IPnextError
        msg = f"part {part!r}: {_message(content)}"
        raise refused(msg)
    if candidate.url in route.answers_as and not names(content, route.answers_as[candidate.url]):
        attempt.tried.add(candidate.url)
        msg = f"part {part!r}: {engines.note_foreign(route, candidate)}"
        raise RetryOnOtherHost(msg)
    with engines.answers.claim() as claim:
        claim.set(_parsed_bytes(part, content))
        return {EMBEDDING: _vectors(part, content, len(texts))}


def _choose_engine(engines: EngineRegistry, route: GenerationRoute, part: str, attempt: CallState) -> HostCandidate:
    """Choose the least loaded engine; if a snapshot of the part has already answered, one of that snapshot."""
    tiers = route.candidates[part]
    if part in attempt.used:
        tiers = of_snapshot(tiers, attempt.used[part])
    untried = next((tier for tier in tiers if any(candidate.url not in attempt.tried for candidate in tier)), None)
    candidates = {candidate.url: candidate for candidate in (untried or next(tier for tier in tiers if tier))}
    return candidates[engines.loads.choose(list(candidates), None, policy="least-loaded", tried=attempt.tried)]


async def _ask_engine(
    engines: EngineRegistry, part: str, candidate: HostCandidate, body: bytes, attempt: CallState
) -> tuple[int, bytes]:
    """Return status and whole body. RetryOnOtherHost if the engine ends before."""
    try:
        answer = await engines.ask(candidate.url, "POST", PATH, _HEADERS, body)
        return answer.status, await answer.rest()
    except EngineLost as error:
        engines.loads.note_lost(candidate.url)
        if error.sent:
            await engines.check_alive(candidate.url)
        if not error.reused:  # the loss of an idle connection says nothing about the engine
            attempt.tried.add(candidate.url)
        msg = f"part {part!r}: {candidate.url}: {error}"
        raise RetryOnOtherHost(msg) from error


def _parsed_bytes(part: str, content: bytes) -> int:
    """Return the memory of an answer and of its values."""
    try:
        return len(content) + parsed_bytes(content)
    except TooLarge as error:
        msg = f"part {part!r}: the engine's answer: {error.message}"
        raise IPnextError(msg) from error


def _vectors(part: str, content: bytes, count: int) -> Tensor:
    """Return the vectors in the order of their texts."""
    try:
        data = sorted(orjson.loads(content)["data"], key=lambda one: one["index"])
        vectors = np.stack([_vector(one["embedding"]) for one in data])
    except (ValueError, KeyError, TypeError) as error:
        msg = f"part {part!r}: the engine's answer holds no vectors: {error!r}"
        raise IPnextError(msg) from error
    if len(vectors) != count:
        msg = f"part {part!r}: the engine gave {len(vectors)} vectors for {count} texts"
        raise IPnextError(msg)
    return Tensor("FP32", vectors)


def _vector(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value, validate=True), "<f4")
    return np.asarray(value, "<f4")


def _message(content: bytes) -> str:
    """Return the engine's error message."""
    try:
        told = orjson.loads(content)
        return str(told.get("error", told).get("message", told))[:500]
    except (ValueError, AttributeError):
        return content[:500].decode(errors="replace")
