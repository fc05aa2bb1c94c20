"""An OpenAI server as a measuring client uses it: its model, its load, one streamed answer."""

import json
import random
import re
import string
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import aiohttp

from ipnext.errors import InvalidInput, Unavailable

WORD_LETTERS = 5

TRIAL_WORDS = (4, 12)
"""Lengths of the two prompts that show the number of tokens of a word: short, so that every context has room for
them."""

_GAUGE = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})?\s+([0-9.eE+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Piece:
    """One piece of a stream. `tokens` are those generated so far."""

    at: float
    """Clock of `time.perf_counter`, seconds."""
    tokens: int
    prompt_tokens: int | None = None


class ProfiledEngine:
    """One OpenAI server at a base URL, with one name of a model. Close it, or use it as a context manager."""

    def __init__(self, url: str, model: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._model = model
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @property
    def model(self) -> str:
        """The server's name of its model."""
        return self._model or ""

    async def find_model(self) -> str:
        """Return the first model that the server lists, unless one was named.

        Unavailable; InvalidInput if it lists none.
        """
        if self._model is None:
            listed = await self._json("GET", "/v1/models")
            names = [card["id"] for card in listed.get("data", [])]
            if not names:
                msg = f"{self.url} lists no model under /v1/models"
                raise InvalidInput(msg, field="url", value=self.url)
            self._model = names[0]
        return self._model

    async def choose_model(self, name: str) -> None:
        """Use a model by its name if the server lists it, else the first one listed."""
        listed = await self._json("GET", "/v1/models")
        names = [card.get("id") for card in listed.get("data", [])]
        self._model = name if name in names else None

    async def version(self) -> str:
        """Return the server's version; empty if it reports none."""
        try:
            found = await self._json("GET", "/version")
        except (Unavailable, InvalidInput):
            return ""
        return f"vllm {found['version']}" if "version" in found else ""

    async def load(self) -> float | None:
        """Return the number of running and waiting requests; None if the server has no such metrics."""
        try:
            async with self._session.get(f"{self.url}/metrics") as answer:
                found = _GAUGE.findall(await answer.text()) if answer.status == 200 else []
        except aiohttp.ClientError:
            return None
        return sum(map(float, found)) if found else None

    async def tokens_of(self, words: int, *, embedding: bool = False) -> int:
        """Return the tokens of a random prompt of so many words, by the server's count."""
        prompt = random_prompt(words)
        if embedding:
            body: dict[str, Any] = {"model": self.model, "input": prompt}
            found = await self._json("POST", "/v1/embeddings", body)
        else:
            body = {"model": self.model, "prompt": prompt, "max_tokens": 1}
            found = await self._json("POST", "/v1/completions", body)
        return int(found["usage"]["prompt_tokens"])

    async def stream(self, prompt: str, output_tokens: int) -> AsyncGenerator[Piece, None]:
        """Yield a streamed completion of exactly so many tokens, piece by piece. Unavailable if it breaks off."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        tokens = 0
        async with self._session.post(f"{self.url}/v1/completions", json=body) as answer:
            await self._check(answer)
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                at, usage = time.perf_counter(), event.get("usage") or {}
                _refuse_error(event, self.url)
                tokens = usage.get("completion_tokens", tokens + len(event.get("choices", ())))
                if event.get("choices"):
                    yield Piece(at, tokens, usage.get("prompt_tokens"))

    async def embed(self, prompt: str) -> int:
        """Embed a prompt; return its tokens."""
        found = await self._json("POST", "/v1/embeddings", {"model": self.model, "input": prompt})
        return int(found["usage"]["prompt_tokens"])

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            async with self._session.request(method, f"{self.url}{path}", json=body) as answer:
                await self._check(answer)
                found: dict[str, Any] = await answer.json(content_type=None)
                return found
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            msg = f"{self.url}{path} does not answer as an OpenAI server: {error or type(error).__name__}"
            raise Unavailable(msg) from error

    async def _check(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status == 200:
            return
        text = (await answer.text())[:300]
        msg = f"{answer.url} answered {answer.status}: {text}"
        raise (InvalidInput if 400 <= answer.status < 500 else Unavailable)(msg)


def _refuse_error(event: Mapping[str, Any], url: str) -> None:
    if "error" in event:
        msg = f"{url} broke off a stream: {event['error']}"
        raise Unavailable(msg)


def random_prompt(words: int) -> str:
    """Return random words: no two prompts share more than their first letters, so no cache of prefixes helps."""
    letters = random.choices(string.ascii_lowercase, k=words * WORD_LETTERS)  # noqa: S311 - no secret
    return " ".join("".join(letters[i : i + WORD_LETTERS]) for i in range(0, len(letters), WORD_LETTERS))
