"""The pretended infrastructure: hosts that load generations, gateways that follow route tables, regions that go away."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ipnext.errors import Unavailable
from ipnext.model.deployment import ReplicaPhase

NEVER = float("inf")


class Key(NamedTuple):
    """Names a replica set."""

    model: str
    part: str
    region: str
    hardware: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """A replica set as it is wanted; the attributes are those of the real one that decisions read."""

    key: Key
    replicas: int
    generations: tuple[int, ...]
    units: float
    qps: float
    own: Mapping[int, int]
    swap: bool = False
    """Left out here: no process goes over."""

    def replicas_of(self, generation: int) -> int:
        """Processes that hold a generation."""
        if self.own:
            return self.own.get(generation, 0)
        return self.replicas if generation in self.generations else 0


class Failure(NamedTuple):
    """A generation that a host cannot load."""

    generations: tuple[int, ...]
    code: str
    message: str


class Host:
    """One process: each generation it holds is ready from some time on, or never."""

    __slots__ = ("failing", "id", "key", "log", "lost", "message", "only", "ready_at", "restarts", "world")
    phase = ReplicaPhase.RUNNING

    def __init__(self, world: Any, key: Key, number: int, only: int | None) -> None:
        self.world, self.key, self.id, self.only = world, key, f"{key.model}.{key.part}.{number}", only
        self.ready_at: dict[int, float] = {}
        self.lost: dict[int, float] = {}
        self.failing: dict[int, float] = {}
        self.restarts, self.message, self.log = 0, "", None

    @property
    def ready(self) -> list[int]:
        """Generations it takes traffic for."""
        now = self.world.clock.now
        return [generation for generation, at in self.ready_at.items() if at <= now]

    @property
    def failures(self) -> list[Failure]:
        """Loads that have failed by now."""
        if not self.failing:
            return []
        now = self.world.clock.now
        return [Failure((g,), "LoadFailed", "cannot load") for g, at in self.failing.items() if at <= now]

    def able(self, generation: int, now: float) -> bool:
        """Whether it answers for a generation, or would if a fault had not taken it away for a while."""
        return self.ready_at.get(generation, NEVER) <= now or self.lost.get(generation, -1.0) > now

    def start(self, generation: int) -> None:
        """It has been ready for a generation from the beginning."""
        self.ready_at[generation] = 0.0
        self._changed()

    def crash(self, until: float) -> None:
        """Lose all that is loaded; it is loaded again by `until`."""
        now = self.world.clock.now
        for generation, at in self.ready_at.items():
            if at <= now:
                self.lost[generation] = self.ready_at[generation] = until
        self._changed()

    def recover(self, until: float) -> None:
        """All that it has ever loaded is there again by `until`."""
        for generation, at in self.ready_at.items():
            if at == NEVER and generation in self.lost:
                self.lost[generation] = self.ready_at[generation] = until
        self._changed()

    def _changed(self) -> None:
        self.world.infra.regions[self.key.region].changed(self.key.model)


class Able(NamedTuple):
    """What the hosts of one model in one region carry, until the next of them gets ready or is missed."""

    until: float
    qps: Mapping[tuple[str, int | None], float]
    """(part, generation) -> requests a second of the hosts that answer; generation None: of all that answer for any."""


class Region:
    """Hosts and the gateway of one region."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sets: dict[Key, list[Host]] = {}
        self.wanted: dict[Key, Deployment] = {}
        self.routes: dict[str, tuple[int, tuple[Any, ...]]] = {}
        self.served: dict[str, frozenset[int]] = {}
        self.away_until = self.dead_until = -1.0
        self._able: dict[str, Able] = {}

    @property
    def replicas(self) -> Iterable[Host]:
        """Every host, as the port reports it."""
        return (host for hosts in self.sets.values() for host in hosts)

    def able(self, model: str, now: float) -> Mapping[tuple[str, int | None], float]:
        """What a model's hosts carry now; counted again once one of them has changed."""
        known = self._able.get(model)
        if known is None or now >= known.until:
            known = self._able[model] = self.counted(model, now)
        return known.qps

    def changed(self, model: str) -> None:
        """Hosts of a model are no longer what they were."""
        self._able.pop(model, None)

    def counted(self, model: str, now: float) -> Able:
        """What a model's hosts carry now, host by host."""
        until, found = NEVER, dict[tuple[str, int | None], float]()
        for key, hosts in self.sets.items():
            if key.model != model:
                continue
            qps = self.wanted[key].qps
            for host in hosts:
                able = [generation for generation in host.ready_at if host.able(generation, now)]
                for generation in (*able, None) if able else ():
                    found[key.part, generation] = found.get((key.part, generation), 0.0) + qps
                for at in (*host.ready_at.values(), *host.lost.values()):
                    if now < at < until:
                        until = at
        return Able(until, found)


class Seen(NamedTuple):
    """One model's hosts in a region."""

    replicas: tuple[Host, ...]


class Infrastructure:
    """All regions. A region that is away answers nothing to the platform and goes on serving."""

    def __init__(self, world: Any, regions: Iterable[str]) -> None:
        self.world = world
        self.regions = {name: Region(name) for name in regions}
        self.units: dict[tuple[str, str], float] = {}
        self._numbers = 0

    def reachable(self, region: str) -> bool:
        """Whether the platform reaches it now."""
        found = self.regions[region]
        return max(found.away_until, found.dead_until) <= self.world.clock.now

    def region(self, name: str) -> Region:
        """A region that answers. Unavailable."""
        if not self.reachable(name):
            msg = f"region {name!r} does not answer"
            raise Unavailable(msg)
        return self.regions[name]

    def observe(self, model: str, regions: Iterable[str]) -> tuple[dict[str, Seen], list[str]]:
        """What a model has where, and the regions that do not answer."""
        states, silent = {}, []
        for name in sorted(set(regions)):
            if self.reachable(name):
                sets = self.regions[name].sets
                states[name] = Seen(tuple(h for key, hosts in sets.items() if key.model == model for h in hosts))
            else:
                silent.append(name)
        return states, silent

    def apply(self, wanted: Deployment) -> None:
        """Hosts start, load, drop what they need not hold any more, or end: those first that are least ready."""
        region, key = self.region(wanted.key.region), wanted.key
        hosts = region.sets.setdefault(key, [])
        before, former = len(hosts), region.wanted.get(key, wanted).units
        groups = wanted.own or {None: wanted.replicas}
        kept: list[Host] = []
        for only, count in groups.items():
            found = sorted((h for h in hosts if h.only == only), key=lambda h: -len(h.ready))[:count]
            found += [self._host(key, only) for _ in range(count - len(found))]
            kept += found
        for host in kept:
            self._hold(host, wanted.generations if host.only is None else (host.only,))
        region.sets[key], region.wanted[key] = kept, wanted
        region.changed(key.model)
        self._count(key, before * former, len(kept) * wanted.units)

    def delete(self, key: Key) -> None:
        """End a replica set."""
        region = self.region(key.region)
        hosts, wanted = region.sets.pop(key, []), region.wanted.pop(key, None)
        region.changed(key.model)
        if wanted is not None:
            self._count(key, len(hosts) * wanted.units, 0.0)

    def hosts(self, choose: Callable[[Host], bool]) -> list[Host]:
        """Hosts everywhere."""
        return [host for region in self.regions.values() for host in region.replicas if choose(host)]

    def _count(self, key: Key, before: float, after: float) -> None:
        row = (key.region, key.hardware)
        self.units[row] = self.units.get(row, 0.0) + after - before
        self.world.invariants.supply(row, rising=after > before, grower=key.model)

    def _host(self, key: Key, only: int | None) -> Host:
        self._numbers += 1
        return Host(self.world, key, self._numbers, only)

    def _hold(self, host: Host, generations: Iterable[int]) -> None:
        now, wanted = self.world.clock.now, set(generations)
        for generation in [g for g in host.ready_at if g not in wanted]:
            del host.ready_at[generation]
            host.failing.pop(generation, None)
        for generation in sorted(wanted - host.ready_at.keys()):
            seconds, fails = self.world.load_of(host.key.model, generation)
            host.ready_at[generation] = NEVER if fails else now + seconds
            if fails:
                host.failing[generation] = now + seconds
