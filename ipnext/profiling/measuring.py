"""Rising concurrency against one engine.

A number of readers, each of which sends its next request as soon as it has its answer. A reader's first answer is its
warm-up and does not count; warm-ups have different lengths, so that readers do not end, and begin again, all at the
same moment.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp

from ipnext.errors import IPnextError, Unavailable
from ipnext.model.registry.profile import LoadStep
from ipnext.profiling.engine import TRIAL_WORDS, ProfiledEngine, random_prompt
from ipnext.profiling.window import MeasuringWindow

LOOK_SECONDS = 0.25
"""Interval at which the engine's load is read."""

FEWEST_REQUESTS = 5
"""Fewest first tokens in a step, however short it is; and at least one for each reader."""


@dataclass(frozen=True, kw_only=True)
class RequestLoad:
    """Requests to an engine."""

    prompt_tokens: int = 256
    output_tokens: int = 64
    """0: prompts are embedded, nothing is generated."""
    concurrency: tuple[int, ...] = (1, 2, 4, 8, 16)
    seconds: float = 10.0
    """Length of one step; longer if the fewest requests take longer."""
    fewest_requests: int = FEWEST_REQUESTS

    @property
    def embedding(self) -> bool:
        """Whether prompts are embedded."""
        return self.output_tokens == 0


@dataclass(frozen=True)
class MeasuredSteps:
    """Steps, and the average tokens of prompts by the engine's count."""

    steps: tuple[LoadStep, ...]
    prompt_tokens: float


async def measure(
    engine: ProfiledEngine, load: RequestLoad, *, say: Callable[[str], None] = lambda _: None
) -> MeasuredSteps:
    """Measure every concurrency, one after the other.

    Unavailable if the engine breaks off; InvalidInput if it refuses.
    """
    await engine.find_model()
    before = await engine.load()
    words = await _words(engine, load)
    steps, prompts = [], list[int]()
    for concurrency in load.concurrency:
        window = MeasuringWindow(concurrency)
        window.saw_load(before, 0)
        try:
            await _Step(engine, load, window, words).run()
        except* (aiohttp.ClientError, TimeoutError, IPnextError) as errors:
            raise _first(errors, f"{engine.url} at concurrency {concurrency}") from errors
        step = window.step(output_tokens=load.output_tokens)
        say(step_line(step))
        steps.append(step)
        prompts += window.prompt_tokens
    return MeasuredSteps(tuple(steps), sum(prompts) / len(prompts) if prompts else float(load.prompt_tokens))


def _first(errors: BaseExceptionGroup[BaseException], where: str) -> IPnextError:
    """Return the first error of the readers, as one error of the tree."""
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, IPnextError):
        return first
    return Unavailable(f"{where} broke off: {first or type(first).__name__}")


def step_line(step: LoadStep) -> str:
    """Return a text such as `concurrency 4: 812 tokens/s, TTFT 35/61 ms, ITL 4.8/7.1 ms (p50/p99)`."""
    itl = "" if step.itl_p50_ms is None else f", ITL {step.itl_p50_ms:.4g}/{step.itl_p99_ms:.4g} ms"
    ttft = f"TTFT {step.ttft_p50_ms:.4g}/{step.ttft_p99_ms:.4g} ms"
    return f"concurrency {step.concurrency}: {step.tokens_per_second:.4g} tokens/s, {ttft}{itl} (p50/p99)"


async def _words(engine: ProfiledEngine, load: RequestLoad) -> int:
    """Return the words of a prompt with the requested number of tokens.

    A straight line through two trials, corrected by a third.
    """
    few, many = [await engine.tokens_of(words, embedding=load.embedding) for words in TRIAL_WORDS]
    each = max((many - few) / (TRIAL_WORDS[1] - TRIAL_WORDS[0]), 0.0) or 1.0
    words = max(1, round(TRIAL_WORDS[0] + (load.prompt_tokens - few) / each))
    seen = await engine.tokens_of(words, embedding=load.embedding)
    return max(1, round(words + (load.prompt_tokens - seen) / each))


class _Step:
    """One concurrency.

    Readers work until the window closes; requests that then wait for their first token still get it.
    """

    def __init__(self, engine: ProfiledEngine, load: RequestLoad, window: MeasuringWindow, words: int) -> None:
        self._engine = engine
        self._load = load
        self._window = window
        self._words = words
        self._warm = 0
        self._own = 0
        self._over = False
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Measure it. Raises the readers' errors in a group."""
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(self._read(index)) for index in range(self._window.concurrency)]
            watcher = group.create_task(self._watch())
            await self._until(lambda: self._warm == len(readers))
            cpu, start = time.process_time(), time.perf_counter()
            self._window.open(start)
            await self._full(start)
            self._window.close(time.perf_counter())
            self._window.cpu_seconds = time.process_time() - cpu
            self._over = True
            watcher.cancel()

    async def _full(self, start: float) -> None:
        fewest = max(self._load.fewest_requests, self._window.concurrency)
        await asyncio.sleep(max(0.0, start + self._load.seconds - time.perf_counter()))
        await self._until(lambda: len(self._window.ttft) >= fewest)

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self._changed.clear()
            await self._changed.wait()

    async def _read(self, index: int) -> None:
        """Run one reader: a warm-up, then one answer after the other."""
        load, warm = self._load, True
        while not self._over:
            share = (index + 1) / self._window.concurrency if warm else 1.0
            self._own += 1
            try:
                await self._one(max(1, round(load.output_tokens * share)))
            finally:
                self._own -= 1
            self._warm += warm
            warm = False
            self._changed.set()

    async def _one(self, output_tokens: int) -> None:
        prompt, sent, window = random_prompt(self._words), time.perf_counter(), self._window
        if self._load.embedding:
            tokens = await self._engine.embed(prompt)
            at = time.perf_counter()
            window.first(sent, at, tokens)
            window.note_end(at, tokens)
            return
        before, tokens, prompt_tokens = 0.0, 0, None
        async with contextlib.aclosing(self._engine.stream(prompt, output_tokens)) as pieces:
            async for piece in pieces:
                if tokens:
                    window.next(before, piece.at, piece.tokens - tokens)
                elif piece.tokens:
                    window.first(sent, piece.at, piece.tokens)
                    self._changed.set()
                before, tokens, prompt_tokens = piece.at, piece.tokens, piece.prompt_tokens or prompt_tokens
                if self._over:
                    return
        window.note_end(before, prompt_tokens)

    async def _watch(self) -> None:
        """Periodically count the requests of other clients."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            before = self._own
            load = await self._engine.load()
            self._window.saw_load(load, max(before, self._own))
