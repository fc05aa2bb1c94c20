"""What goes wrong in a history, drawn from its seed, and counted."""

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from random import Random
from typing import Any

Steps = Generator[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Fate:
    """Of one attempt: the step after which its worker is gone, if any, or that its answer is not heard."""

    dies_after: int | None = None
    unheard: bool = False
    wakes_after: float = 0.0


WELL = Fate()


class Faults:
    """All faults of one history."""

    def __init__(
        self, world: Any, random: Random, trouble: float, counted: Counter[str], *, stalls: bool = False
    ) -> None:
        self.world, self.random, self.trouble, self.counted, self.stalls = world, random, trouble, counted, stalls
        self.bad: dict[tuple[str, int], str] = {}
        self.quiet = False

    def count(self, kind: str) -> None:
        """One more of a kind."""
        self.counted[f"fault: {kind}"] += 1
        self.world.tell("fault", kind)

    def latency(self) -> float:
        """Seconds that one call takes; much may happen meanwhile."""
        return self.random.random() * 0.4

    def validation_seconds(self) -> float:
        """Reading a snapshot."""
        return self.random.random() * 5

    def fate(self) -> Fate:
        """Of the next attempt."""
        if self.quiet or self.random.random() > self.trouble * 0.12:
            return WELL
        drawn = self.random.random()
        if drawn < 0.4:
            return Fate(unheard=True)
        after = self.random.randint(0, 6)
        if self.stalls and drawn < 0.6:
            return Fate(dies_after=after, wakes_after=self.random.choice((3.0, 7.0, 20.0)))
        return Fate(dies_after=after)

    def draw_fault(self, model: str, generation: int) -> None:
        """What a new generation is like."""
        if self.random.random() < 0.1 + self.trouble * 0.3:
            kind = self.random.choice(("load failure", "never ready", "bad answers", "bad answers", "invalid"))
            self.bad[model, generation] = kind
            self.count(kind)

    def load_of(self, model: str, generation: int) -> tuple[float, bool]:
        """Seconds until a generation is loaded, and whether that fails."""
        seconds = self.world.scenario.models[model].load_seconds * (0.5 + self.random.random())
        kind = self.bad.get((model, generation))
        if kind == "never ready":
            return float("inf"), False
        return seconds, kind == "load failure"

    def swap_seconds(self, load_seconds: float) -> tuple[float, float]:
        """Until a process that goes over answers no more for the former generation, and until it does for the other.

        Half of loading is fetching, then it takes about a second; where a step fails the process starts anew, and loads
        all of it. What is never ready hangs while it is fetched, or afterwards.
        """
        if load_seconds == float("inf"):
            return self.random.choice((float("inf"), 2.0)), float("inf")
        fetched = load_seconds / 2
        if self.random.random() < self.trouble * 0.2:
            self.count("swap fails")
            return fetched, fetched + load_seconds
        return fetched, fetched + 0.5 + self.random.random()

    def on_the_way(self, host: Any, seconds: float) -> None:
        """A process that goes over for so long may end meanwhile."""
        if not self.quiet and self.random.random() < self.trouble * 0.1:
            self.world.clock.spawn("crash", self._crash_swapping(host), after=self.random.random() * min(seconds, 20.0))

    def _crash_swapping(self, host: Any) -> Steps:
        if host.goes_over:
            self.count("host crashed while it goes over")
            host.crash(self.world.clock.now + 1 + self.random.random() * 20)
        return
        yield

    def is_invalid(self, model: str, generation: int) -> bool:
        """Whether validation refuses it."""
        return self.bad.get((model, generation)) == "invalid"

    def answers_badly(self, model: str, generation: int) -> bool:
        """Whether a fifth of its answers are errors."""
        return self.bad.get((model, generation)) == "bad answers"

    def body(self) -> Steps:
        """Regions go and come back, hosts crash."""
        while not self.quiet:
            yield self.random.expovariate(self.trouble / 60.0) if self.trouble else 1e6
            if self.quiet:
                return
            self.random.choice((self._partition, self._partition, self._death, self._crash, self._crash))()

    def _partition(self) -> None:
        region = self.random.choice(list(self.world.infra.regions.values()))
        region.away_until = self.world.clock.now + self.random.choice((3.0, 20.0, 90.0, 300.0))
        self.count("region unreachable")
        self.world.tell("fault", f"{region.name} away until {region.away_until:g}")

    def _death(self) -> None:
        region, now = self.random.choice(list(self.world.infra.regions.values())), self.world.clock.now
        until = now + self.random.choice((20.0, 90.0))
        if until <= region.dead_until:
            return
        region.dead_until = until
        for host in region.replicas:
            host.crash(region.dead_until + self.random.random() * 10)
        self.count("region dead")
        self.world.tell("fault", f"{region.name} dead until {region.dead_until:g}")

    def _crash(self) -> None:
        hosts = self.world.infra.hosts(lambda host: bool(host.ready) or host.goes_over)
        if hosts:
            self.random.choice(hosts).crash(self.world.clock.now + 1 + self.random.random() * 20)
            self.count("host crashed")
