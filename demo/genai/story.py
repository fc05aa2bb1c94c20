"""The story of `make demo-genai`: a chat model with real weights from publish to rollback, step by step."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from demo import telling
from demo.genai.embeddings import cosine, embed
from demo.genai.gemma import voice_of
from demo.genai.report import GenaiReport
from demo.genai.streams import Talk, Talkers, Told, ask_once, chat_body
from demo.genai.weights import Checkpoints
from demo.story import StoryFailed
from ipnext.client import Client
from ipnext.model.api.resources import ChangeView
from ipnext.model.lifecycle.changes.change import ChangeState

CHAT: Final = "chat"
SENTENCES: Final = "sentences"
MANIFESTS: Final[Mapping[str, Path]] = {name: Path(__file__).with_name(f"{name}.yaml") for name in (CHAT, SENTENCES)}
QUESTION: Final = "Why is the sea salty?"
QUESTIONS: Final = (
    "What is the moon?",
    "Why do leaves fall in autumn?",
    "What is a volcano?",
    "Where does rain come from?",
    "Why do we sleep?",
)
ALIKE: Final = ("How do I bake bread?", "A recipe for making a loaf at home")
UNLIKE: Final = "The train to Paris leaves at noon"
CHANGE_SECONDS: Final = 1800.0
"""For one change on a busy machine; on a quiet one it is a minute."""
TALK_SECONDS: Final = 10.0
"""How long the talkers go on before each change, and after the last."""


class GenaiStory:
    """One run against a running platform. `endpoints` is the content of endpoints.json."""

    def __init__(
        self, console: Console, client: Client, gateway: str, found: Checkpoints, *, talk_seconds: float = TALK_SECONDS
    ) -> None:
        self._console, self._client, self._gateway, self._checkpoints = console, client, gateway, found
        self._talk_seconds = talk_seconds
        self._talk = Talk(voice_of)
        self._texts: dict[str, str] = {}
        self._began = time.monotonic()

    def tell(self) -> GenaiReport:
        """Run all steps in order. Raises StoryFailed if one does not end as it must."""
        first_seconds = self._first_publish()
        self._chat(2, "first", "Talk to it, through Envoy")
        with Talkers(self._gateway, CHAT, QUESTIONS, self._talk) as talkers:
            self._step(3, f"Publish generation 2, a pirate, while {talkers.clients} clients talk")
            time.sleep(self._talk_seconds)
            second_seconds = self._publish(CHAT, {"llm": self._checkpoints.pirate})
            self._chat(4, "second", "Ask the same again")
            time.sleep(self._talk_seconds)
            self._step(5, "Roll back to generation 1")
            rollback_seconds = self._time_change(lambda: self._client.rollback(CHAT, generation=1), CHAT)
            self._chat(6, "rolled back", "And once more")
            time.sleep(self._talk_seconds)
        self._console.print(self._talk_line())
        alike, unlike = self._embed()
        talk = self._talk
        return GenaiReport(
            texts=self._texts,
            streams=talk.streams,
            broken=talk.broken,
            mixed=talk.mixed,
            tokens=talk.tokens,
            longest_gap_seconds=talk.longest_gap,
            longest_first_seconds=talk.longest_first,
            streams_by_generation=dict(talk.by_generation),
            first_publish_seconds=first_seconds,
            second_publish_seconds=second_seconds,
            rollback_seconds=rollback_seconds,
            alike=alike,
            unlike=unlike,
            failures=tuple(talk.failures),
            total_seconds=time.monotonic() - self._began,
        )

    def _step(self, number: int, title: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{number}. {title}", align="left")

    def _first_publish(self) -> float:
        """Manifest, checkpoint, and the run to Ready, which means that the engine has answered."""
        self._step(1, "Publish Gemma 3 270M: one manifest, one vLLM part")
        self._client.apply(MANIFESTS[CHAT].read_text(encoding="utf-8"))
        return self._publish(CHAT, {"llm": self._checkpoints.plain})

    def _publish(self, model: str, parts: Mapping[str, Path]) -> float:
        seconds = self._time_change(lambda: self._client.publish(model, parts), model)
        self._client.wait_ready(model, timeout_seconds=60)
        self._console.print(telling.status_table(self._client.model(model)))
        return seconds

    def _time_change(self, begin: Callable[[], ChangeView], model: str) -> float:
        """Begin a change and watch it to its end. Returns its seconds, with the import of a checkpoint."""
        began = time.monotonic()
        change = begin()
        with telling.watching(self._console, self._client, model, change):
            done = self._client.wait_change(change.id, timeout_seconds=CHANGE_SECONDS)
        if done.state is not ChangeState.DONE:
            msg = (
                f"change {done.id} of {model} ended {done.state}, not {ChangeState.DONE}: {done.reason} {done.message}"
            )
            raise StoryFailed(msg)
        return time.monotonic() - began

    def _chat(self, number: int, name: str, title: str) -> None:
        """Print an answer while it comes, after the generation that gives it. Raises StoryFailed if it breaks off."""
        self._step(number, title)
        self._console.print(f"[dim]you:[/] {QUESTION}")
        shown = False

        def show(told: Told, text: str) -> None:
            nonlocal shown
            if not shown:
                self._console.print(f"[bold]generation {told.generation}:[/]", end="")
            shown = True
            self._console.print(text, end="", markup=False, highlight=False)

        told = ask_once(self._gateway, chat_body(CHAT, QUESTION), show)
        self._console.print()
        if told.broken or not told.text.strip():
            msg = f"the chat broke off: {told.failure or f'it ended with {told.finish!r}'} after {told.text!r}"
            raise StoryFailed(msg)
        self._texts[name] = told.text

    def _talk_line(self) -> str:
        talk = self._talk
        return (
            f"[bold]{talk.streams} streams, {talk.broken} broken, {talk.mixed} mixed[/]; "
            f"longest gap within one {talk.longest_gap:.1f} s, to a first token {talk.longest_first:.1f} s"
        )

    def _embed(self) -> tuple[float, float]:
        """Serve a second model next to it, of another kind: how near sentences are in meaning."""
        self._step(7, "Publish MiniLM, which embeds sentences")
        self._client.apply(MANIFESTS[SENTENCES].read_text(encoding="utf-8"))
        self._publish(SENTENCES, {"encoder": self._checkpoints.encoder})
        first, second, other = embed(self._gateway, SENTENCES, (*ALIKE, UNLIKE))
        alike, unlike = cosine(first, second), cosine(first, other)
        self._console.print(f"{ALIKE[0]!r} and {ALIKE[1]!r}: cosine [bold]{alike:.2f}")
        self._console.print(f"{ALIKE[0]!r} and {UNLIKE!r}: cosine [bold]{unlike:.2f}")
        return alike, unlike


def gateway_of(endpoints: Mapping[str, Any], region: str = "us-east") -> str:
    """Envoy's address in the region that the models are asked for in."""
    return str(endpoints["gateways"][region])
