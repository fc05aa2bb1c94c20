"""Streamed chats as a client sees them.

One that is printed while it comes, and steady talkers while the platform works.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from demo.session import ClientThread
from ipnext.names import GENERATION_HEADER, SNAPSHOTS_HEADER

TOKENS: Final = 64
STOP: Final = ("\n",)
"""A base model would go on with a question of its own."""
LONG_TOKENS: Final = 128
"""Of a steady talker, who lets it go on: long enough that streams are under way whenever traffic moves."""
WHOLE: Final = frozenset({"stop", "length"})
"""How a stream ends that is whole. vLLM's "abort" is none of them."""
_DATA: Final = "data: "
_DONE: Final = "[DONE]"


@dataclass
class Told:
    """One stream.

    A generation and a proof of snapshots come with its first byte; gaps are seconds between two pieces.
    """

    question: str
    text: str = ""
    generation: str = "?"
    proof: str = "?"
    pieces: int = 0
    first_seconds: float = 0.0
    longest_gap: float = 0.0
    finish: str | None = None
    done: bool = False
    ids: set[str] = field(default_factory=set)
    failure: str | None = None

    @property
    def broken(self) -> bool:
        """Not answered to its end."""
        return self.failure is not None or not self.done or self.finish not in WHOLE

    def take(self, chunk: Mapping[str, Any]) -> str:
        """Note one piece. Returns its text."""
        if "error" in chunk:
            self.failure = self.failure or json.dumps(chunk["error"])[:200]
            return ""
        self.ids.add(str(chunk.get("id")))
        choice: Mapping[str, Any] = next(iter(chunk.get("choices", ())), {})
        self.finish = choice.get("finish_reason") or self.finish
        text = (choice.get("delta") or {}).get("content") or ""
        self.text += text
        self.pieces += bool(text)
        return text


@dataclass
class Talk:
    """What all streams together were.

    `voices`: tells by a text's first words which generation wrote it; None: none of them.
    """

    voice_of: Callable[[str], str | None]
    voices: dict[str, str] = field(default_factory=dict)
    """Generation -> the voice that its first stream had."""
    proofs: dict[str, str] = field(default_factory=dict)
    streams: int = 0
    broken: int = 0
    mixed: int = 0
    tokens: int = 0
    longest_gap: float = 0.0
    longest_first: float = 0.0
    firsts: list[float] = field(default_factory=list)
    """Seconds to the first piece, of each whole stream."""
    by_generation: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def note(self, told: Told) -> None:
        """Count a stream.

        Mixed is one of two engines' pieces, of another proof, or with the voice of another generation.
        """
        self.streams += 1
        if told.broken:
            self.broken += 1
            self.failures = [*self.failures, told.failure or f"ended with {told.finish!r}"][:20]
            return
        self.tokens += told.pieces
        self.by_generation[told.generation] += 1
        self.longest_gap = max(self.longest_gap, told.longest_gap)
        self.longest_first = max(self.longest_first, told.first_seconds)
        self.firsts.append(told.first_seconds)
        voice = self.voice_of(told.text) or "none"
        one_voice = self.voices.setdefault(told.generation, voice) == voice
        one_proof = self.proofs.setdefault(told.generation, told.proof) == told.proof
        if not (one_voice and one_proof and len(told.ids) == 1):
            self.mixed += 1
            self.failures = [*self.failures, f"mixed: generation {told.generation}, {told.text[:60]!r}"][:20]


def chat_body(model: str, question: str, *, tokens: int = TOKENS, stop: Sequence[str] = STOP) -> dict[str, Any]:
    """Return a chat in OpenAI's form, streamed, the likeliest token each time."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": tokens,
        "temperature": 0,
        "stop": list(stop),
        "stream": True,
    }


async def ask(
    session: aiohttp.ClientSession, gateway: str, body: Mapping[str, Any], on_text: Callable[[Told, str], None]
) -> Told:
    """One chat through Envoy. What goes wrong stands in the answer's `failure`."""
    told = Told(body["messages"][-1]["content"])
    began = last = time.monotonic()
    try:
        async with session.post(f"{gateway}/v1/chat/completions", json=body) as answer:
            told.generation = answer.headers.get(GENERATION_HEADER, "?")
            told.proof = answer.headers.get(SNAPSHOTS_HEADER, "?")
            if answer.status != 200:
                told.failure = f"HTTP {answer.status} {(await answer.text())[:200]}"
                return told
            async for data in _events(answer):
                now = time.monotonic()
                told.first_seconds = told.first_seconds or now - began
                told.longest_gap, last = max(told.longest_gap, now - last if told.ids else 0.0), now
                if data == _DONE:
                    told.done = True
                elif text := told.take(json.loads(data)):
                    on_text(told, text)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        told.failure = f"{type(error).__name__} {error}"[:200]
    return told


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[str]:
    async for line in answer.content:
        text = line.decode("utf-8").strip()
        if text.startswith(_DATA):
            yield text.removeprefix(_DATA)


def ask_once(gateway: str, body: Mapping[str, Any], on_text: Callable[[Told, str], None]) -> Told:
    """Ask the same, and return the whole answer."""

    async def once() -> Told:
        async with aiohttp.ClientSession(timeout=_patience()) as session:
            return await ask(session, gateway, body, on_text)

    return asyncio.run(once())


def _patience() -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=180)


class Talkers(ClientThread):
    """Some clients that ask one question after another, each from enter to the end of its last answer at exit."""

    def __init__(
        self,
        gateway: str,
        model: str,
        questions: Sequence[str],
        talk: Talk,
        *,
        clients: int = 4,
        tokens: int = LONG_TOKENS,
    ) -> None:
        super().__init__("talkers")
        self.talk = talk
        self.clients = clients
        self.tokens = tokens
        self._gateway, self._model, self._questions = gateway, model, questions

    async def run(self) -> None:
        """Let every client ask one question after another."""
        async with aiohttp.ClientSession(timeout=_patience()) as session:
            await asyncio.gather(*(self._talk(session, number) for number in range(self.clients)))

    async def _talk(self, session: aiohttp.ClientSession, turn: int) -> None:
        while not self.stopping.is_set():
            question = self._questions[turn % len(self._questions)]
            body = chat_body(self._model, question, tokens=self.tokens, stop=())
            told = await ask(session, self._gateway, body, lambda *_: None)
            self.talk.note(told)
            turn += 1
            if told.broken:
                await asyncio.sleep(0.2)  # an edge that refuses is not to be flooded
