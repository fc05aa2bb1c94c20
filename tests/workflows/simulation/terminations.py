"""Runs that are ended from outside: by a person who terminates them, or by a limit of the server.

Regions can be away for long, too.
"""

from collections.abc import Callable, Generator
from random import Random
from typing import Any

from tests.workflows.simulation.runs.activity_attempts import linger

from .clock import GONE, join

Steps = Generator[Any, Any, None]
TRIES = 60
"""How often a run of the kind is looked for."""
OFTEN = (
    "terminate lifecycle",
    "terminate transition",
    "terminate lifecycle and transition",
    "region away beyond the deadline",
) * 3
SCHEDULE_SECONDS = 60.0
"""After this long at most a schedule starts the reconciler again, and the API the replan and a drain."""


class Terminations:
    """All of one history, drawn from its seed."""

    def __init__(self, world: Any, random: Random) -> None:
        self.world, self.random = world, random
        self.mean = random.choice((0.0, 200.0, 60.0, 20.0))
        """Seconds between two; 0: none."""
        self.kinds: dict[str, Callable[[], list[Callable[[], None]]]] = {
            "terminate entity": self._entities,
            "history limit": self._entities,
            "entity continues as new": self._long_lived,
            "terminate lifecycle": self._lifecycles,
            "terminate transition": self._transitions,
            "terminate lifecycle and transition": self._both,
            "terminate all of a model": self._all_of_a_model,
            "terminate replan": self._replans,
            "terminate drain": self._drains,
            "terminate reconcile": self._reconcilers,
            "region away beyond the deadline": self._regions,
        }

    def latency(self) -> float:
        """Seconds that one call takes; drawn here, so that faults are drawn as ever."""
        return self.random.random() * 0.4

    def heartbeat(self) -> float:
        """Seconds until an attempt hears that its run has ended."""
        return self.random.choice((0.0, 0.5, 2.0))

    def body(self) -> Steps:
        """One after another, at any time, while there is something to end."""
        while self.mean and not self.world.faults.quiet:
            yield self.random.expovariate(1 / self.mean)
            kind = self.random.choice((*sorted(self.kinds), *OFTEN))
            for _ in range(TRIES):
                if self.world.faults.quiet:
                    return
                if victims := self.kinds[kind]():
                    self.world.faults.count(kind)
                    self.random.choice(victims)()
                    break
                yield self.random.random()

    def keep(self, name: str, body: Callable[[], Steps]) -> Steps:
        """A run that is started again within a minute if it is terminated, until the history is over."""
        while not self.world.over:
            process = self.world.kept[name] = self.world.clock.spawn(name, body())
            if (yield from join(process)) is not GONE:
                return
            yield self.random.random() * SCHEDULE_SECONDS

    def _entities(self) -> list[Callable[[], None]]:
        return [entity.terminate for entity in self.world.entities.values() if entity.runs]

    def _long_lived(self) -> list[Callable[[], None]]:
        return [entity.renew for entity in self.world.entities.values() if entity.runs and entity.rebuilt]

    def _lifecycles(self) -> list[Callable[[], None]]:
        return [run.terminate for run in self.world.runs.values() if run.lives]

    def _transitions(self) -> list[Callable[[], None]]:
        return [run.terminate_walk for run in self.world.runs.values() if run.walks]

    def _both(self) -> list[Callable[[], None]]:
        return [
            lambda run=run: _all(run.terminate_walk, run.terminate)
            for run in self.world.runs.values()
            if run.lives and run.walks
        ]  # type: ignore[misc]

    def _all_of_a_model(self) -> list[Callable[[], None]]:
        found = [
            (self.world.entities[run.change.model], run) for run in self.world.runs.values() if run.lives or run.walks
        ]
        return [lambda e=entity, r=run: _all(e.terminate, r.terminate_walk, r.terminate) for entity, run in found]  # type: ignore[misc]

    def _replans(self) -> list[Callable[[], None]]:
        process = self.world.replanning
        return [self._end_replan] if process is not None and not process.done else []

    def _end_replan(self) -> None:
        self.world.clock.kill(self.world.replanning)
        self.world.replans = max(1, self.world.replans)
        self.world.clock.spawn("schedule", self._replan_again(), after=self.random.random() * SCHEDULE_SECONDS)

    def _replan_again(self) -> Steps:
        self.world.requests.replan()
        return
        yield

    def _drains(self) -> list[Callable[[], None]]:
        kept = self.world.kept
        return [lambda p=p: self.world.clock.kill(p) for n, p in kept.items() if n.startswith("drain") and not p.done]  # type: ignore[misc]

    def _reconcilers(self) -> list[Callable[[], None]]:
        process = self.world.kept["reconcile"]
        return [] if process.done else [lambda: self.world.clock.kill(process)]

    def _regions(self) -> list[Callable[[], None]]:
        return [lambda region=region: self._away(region) for region in self.world.infra.regions.values()]  # type: ignore[misc]

    def _away(self, region: Any) -> None:
        region.away_until = self.world.clock.now + self.random.choice((200.0, 400.0, 800.0))
        self.world.tell("fault", f"{region.name} away until {region.away_until:g}")


def _all(*calls: Callable[[], None]) -> None:
    for call in calls:
        call()


def terminate(world: Any, process: Any, run: Any = None) -> None:
    """Terminate a workflow: its process is gone, an activity that it waits for goes on for a moment."""
    if process is None or process.done:
        return
    world.clock.kill(process)
    if run is not None:
        linger(world, run, process)
