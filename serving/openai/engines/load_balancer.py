"""Choice of a generation's engine for a request: the one with its prefix cached, unless others are far less loaded.

Pure. Load is the requests that this router has in flight plus those from others, by the engine's report. Affinity is by
session, then by the longest known prefix of the prompt.
"""

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ipnext.model.settings.routing import RoutingPolicy
from serving.metrics.in_flight import InFlight
from serving.openai.engines.prefix_affinity import Affinity, RoutingHint

STALE_SECONDS: Final = 3.0
"""Age up to which an engine's report counts."""
GUARD_REQUESTS: Final = 16.0
GUARD_FACTOR: Final = 2.0
"""Affinity is overridden if its engine has more requests than GUARD_REQUESTS and than GUARD_FACTOR times the mean."""
HOT_REQUESTS: Final = 2.0
HOT_FACTOR: Final = 1.5
"""The same for a hot prefix, which more than an engine's fair share of the last requests have: another copy of it pays
off."""
RECENT: Final = 128
"""Number of the last requests with a known prefix that are considered."""
FEW: Final = 32
"""Fewest such requests for a judgement."""
GUARD_KV_USE: Final = 0.9
"""Affinity is also overridden if more than this share of the engine's cache is in use."""
LOST_SECONDS: Final = 1.0
"""Time for which an unreachable engine is ejected, if others are reachable."""


@dataclass(frozen=True, slots=True)
class EngineReport:
    """An engine's own report: requests that run and wait, and the share of its cache in use."""

    running: float = 0.0
    waiting: float = 0.0
    kv_use: float = 0.0


@dataclass(slots=True)
class _Engine:
    in_flight: int = 0
    others: float = 0.0
    """Requests that it has from others, by its last two reports."""
    excess: float = 0.0
    """Requests in its last report beyond our own."""
    kv_use: float = 0.0
    reported_at: float = float("-inf")
    out_until: float = float("-inf")


class EngineLoads:
    """One router's view of its engines' loads."""

    def __init__(self, clock: Callable[[], float], affinity: Affinity | None = None) -> None:
        self._clock = clock
        self._engines: dict[str, _Engine] = {}
        self._affinity = affinity or Affinity()
        self._turns: dict[str, int] = {}
        """First of the candidate engines -> choices so far: a request that chooses twice takes turns in each set."""
        self._turn = 0
        self._recent: deque[int] = deque()
        self._often: Counter[int] = Counter()
        """Block -> number of the last requests whose last known block it was."""

    def choose(
        self, urls: Sequence[str], hint: RoutingHint | None, *, policy: RoutingPolicy, tried: Collection[str] = ()
    ) -> str:
        """Return the engine for a request, from at least one. Engines in `tried` failed for it and are chosen last."""
        self._turn = self._turns[urls[0]] = self._turns.get(urls[0], 0) + 1
        able = self._able(urls, tried)
        chosen = self._choose_engine(able, hint, policy) if len(able) > 1 else able[0]
        if policy == "prefix" and hint is not None and len(urls) > 1:
            self._affinity.note(hint, chosen, homes=able)
        return chosen

    def calling(self, url: str) -> InFlight:
        """Count a request until it ends."""
        return InFlight(self._of(url))

    def note_lost(self, url: str) -> None:
        """Record that an engine was unreachable, or refused because it is about to end."""
        self._of(url).out_until = self._clock() + LOST_SECONDS

    def note_report(self, url: str, report: EngineReport) -> None:
        """Record an engine's report."""
        engine = self._of(url)
        excess = max(0.0, report.running + report.waiting - engine.in_flight)
        # A report is slightly old: our requests that have just ended may look like others'.
        # Two in a row seldom err alike.
        engine.others, engine.excess = min(excess, engine.excess), excess
        engine.kv_use = report.kv_use
        engine.reported_at = self._clock()

    @property
    def under_way(self) -> Mapping[str, int]:
        """This router's requests in flight by the URL of their engine, if any."""
        return {url: engine.in_flight for url, engine in self._engines.items() if engine.in_flight}

    def forget(self, urls: Collection[str]) -> None:
        """Discard all engines but these, and those with requests in flight."""
        self._engines = {url: one for url, one in self._engines.items() if url in urls or one.in_flight}
        self._turns = {url: turn for url, turn in self._turns.items() if url in urls}

    def _able(self, urls: Sequence[str], tried: Collection[str]) -> Sequence[str]:
        now = self._clock()
        untried = [url for url in urls if url not in tried] if tried else urls
        well = [url for url in untried if self._of(url).out_until <= now]
        return well or untried or urls

    def _choose_engine(self, urls: Sequence[str], hint: RoutingHint | None, policy: RoutingPolicy) -> str:
        if policy == "round-robin":
            return urls[self._turn % len(urls)]
        loads = [self._load(url) for url in urls]
        if policy == "prefix" and hint is not None:
            near = self._affinity.near(hint, urls)
            hot = self._hot(near.known, len(urls))
            guarded = self._drop_overloaded(near.urls, dict(zip(urls, loads, strict=True)), hot=hot)
            if guarded:
                # A prefix that is most of the prompt stays on one engine. One that many prompts share is on all.
                return guarded[0][0] if near.mostly and not hot else self._least(guarded)
            return self._roomiest(urls, loads)
        return self._least(zip(urls, loads, strict=True))

    def _roomiest(self, urls: Sequence[str], loads: Sequence[float]) -> str:
        """Choose for an unknown prefix.

        The choice is, of the engines within one request of the least loaded, the one with the fewest blocks of others.
        """
        least = min(loads)
        near = [
            (url, self._affinity.count_blocks(url)) for url, load in zip(urls, loads, strict=True) if load <= least + 1
        ]
        return self._least(near)

    def _drop_overloaded(
        self, near: Sequence[str], loads: Mapping[str, float], *, hot: bool
    ) -> list[tuple[str, float]]:
        mean = (sum(loads.values()) + 1) / len(loads)  # this request too
        limit = max(HOT_REQUESTS, HOT_FACTOR * mean) if hot else max(GUARD_REQUESTS, GUARD_FACTOR * mean)
        return [(url, loads[url]) for url in near if loads[url] <= limit and self._kv_use(url) <= GUARD_KV_USE]

    def _hot(self, block: int | None, engines: int) -> bool:
        """Count the block; return whether more than an engine's fair share of the last requests had it."""
        if block is None:
            return False
        self._recent.append(block)
        self._often[block] += 1
        if len(self._recent) > RECENT:
            first = self._recent.popleft()
            self._often[first] -= 1
            if not self._often[first]:
                del self._often[first]
        return self._often[block] * engines > max(len(self._recent), FEW)

    def _least(self, loads: Iterable[tuple[str, float]]) -> str:
        pairs = list(loads)
        least = min(load for _, load in pairs)
        equals = [url for url, load in pairs if load == least]
        return equals[self._turn % len(equals)]

    def _load(self, url: str) -> float:
        engine = self._of(url)
        fresh = self._clock() - engine.reported_at < STALE_SECONDS
        return engine.in_flight + (engine.others if fresh else 0.0)

    def _kv_use(self, url: str) -> float:
        engine = self._of(url)
        return engine.kv_use if self._clock() - engine.reported_at < STALE_SECONDS else 0.0

    def _of(self, url: str) -> _Engine:
        engine = self._engines.get(url)
        if engine is None:
            engine = self._engines[url] = _Engine()
        return engine
