"""A host's calls to an engine that it runs: is it healthy, can it answer, how many requests does it have."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final

from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import LoadFailed, Unavailable

CANARY_PROMPT: Final = "The quick brown fox"
CANARY_TOKENS: Final = 4
_PROBE_SECONDS: Final = 5.0
ENGINE_BYTES: Final = 4 * 2**20
"""The most that is read of an engine's answer: its metrics take some 100 KiB."""
_GAUGE: Final = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class EngineProbe:
    """One engine at a base URL, called for one model. Each call raises Unavailable if there is no answer."""

    def __init__(self, session: HttpSessions, url: str, model: str) -> None:
        self._session = session
        self._url = url
        self._model = model

    async def health(self) -> int:
        """Return the status of `/health`: 200 once the model is loaded, 503 once vLLM knows that its engine is dead."""
        status, _ = await self._call("GET", "/health", seconds=_PROBE_SECONDS)
        return status

    async def in_flight(self) -> int:
        """Return requests that run or wait, including those that the server accepted but the scheduler has not seen."""
        status, text = await self._call("GET", "/metrics", seconds=_PROBE_SECONDS)
        if status != 200:
            msg = f"{self._url}/metrics answered {status}"
            raise Unavailable(msg)
        scheduled = requests_in(text.decode(errors="replace"))
        status, content = await self._call("GET", "/load", seconds=_PROBE_SECONDS)
        return max(scheduled, _load_in(content)) if status == 200 else scheduled

    async def canary(self, *, pooling: bool, seconds: float) -> None:
        """Send one small request and wait for its answer.

        LoadFailed if the engine refuses it or the answer is empty.
        """
        path = "/v1/embeddings" if pooling else "/v1/completions"
        body: dict[str, object] = {"model": self._model, "input": CANARY_PROMPT}
        if not pooling:
            body = {"model": self._model, "prompt": CANARY_PROMPT, "max_tokens": CANARY_TOKENS, "ignore_eos": True}
        status, content = await self._call("POST", path, body=body, seconds=seconds)
        if status != 200 or not _is_valid_answer(content, pooling=pooling):
            msg = f"the canary request to {path} was answered {status}: {content[:300].decode(errors='replace')}"
            raise LoadFailed(msg)

    async def _call(
        self, method: str, path: str, *, body: Mapping[str, object] | None = None, seconds: float
    ) -> tuple[int, bytes]:
        url = self._url + path
        return await self._session.call(method, url, body=body, most_bytes=ENGINE_BYTES, seconds=seconds)


def requests_in(metrics: str) -> int:
    """Return the running and waiting requests in vLLM's Prometheus text, over all its engines. Unavailable."""
    try:
        return int(sum(float(value) for value in _GAUGE.findall(metrics)))
    except (ValueError, OverflowError) as error:
        msg = f"its metrics have no number of requests: {error}"
        raise Unavailable(msg) from error


def _load_in(content: bytes) -> int:
    loaded = _parse_object(content).get("server_load")
    return loaded if isinstance(loaded, int) else 0


def _is_valid_answer(content: bytes, *, pooling: bool) -> bool:
    """Whether there is a vector of finite numbers, or text that took tokens."""
    answer = _parse_object(content)
    if pooling:
        data = answer.get("data") or [{}]
        vector = data[0].get("embedding") or []
        return bool(vector) and all(math.isfinite(number) for number in vector)
    return bool(answer.get("choices")) and (answer.get("usage") or {}).get("completion_tokens", 0) > 0


def _parse_object(content: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}
