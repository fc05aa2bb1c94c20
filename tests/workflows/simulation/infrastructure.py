"""The pretended infrastructure.

Hosts that load generations, gateways that follow route tables, regions that go away.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from ipnext.errors import Unavailable
from ipnext.infra.assignment import assign_processes
from ipnext.model.deployment.replica import ReplicaPhase

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

    @property
    def clients_replicas(self) -> int:
        """All of them: no change of the simulation has a shadow."""
        return self.replicas

    @property
    def clients_generations(self) -> frozenset[int]:
        """The same for generations."""
        return frozenset(self.generations)

    def replicas_of(self, generation: int) -> int:
        """Processes that hold a generation."""
        if self.own:
            return self.own.get(generation, 0)
        return self.replicas if generation in self.generations else 0


class Own(NamedTuple):
    """Processes that hold one generation, as the real choice of processes reads them."""

    replicas: int
    digests: frozenset[int]
    own: bool = True
    apart: frozenset[int] = frozenset()


class Failure(NamedTuple):
    """A generation that a host cannot load."""

    generations: tuple[int, ...]
    code: str
    message: str
    adapter: str | None = None


class Host:
    """One process: each generation it holds is ready from some time on, or never.

    It may go over from one to another.
    """

    __slots__ = (
        "alone", "due", "failing", "fetched_at", "former", "id", "interrupted", "key", "leaves", "log", "lost",
        "message", "number", "only", "over_to", "ready_at", "restarts", "takes", "world",
    )  # fmt: skip
    phase = ReplicaPhase.RUNNING

    def __init__(self, world: Any, key: Key, number: int, only: int | None) -> None:
        self.world, self.key, self.id, self.only = world, key, f"{key.model}.{key.part}.{number}", only
        self.number, self.over_to, self.former = number, None, None
        self.alone: int | None = None
        """The generation that it came to by starting with it, without the others of its model."""
        self.fetched_at = self.takes = 0.0
        """Until when it fetches what it goes over to, and how many seconds it answers for neither generation then."""
        self.ready_at: dict[int, float] = {}
        self.lost: dict[int, float] = {}
        self.failing: dict[int, float] = {}
        self.leaves: dict[int, float] = {}
        """Generation -> until when it answers for it, while it goes over to another one."""
        self.due: dict[int, float] = {}
        """Generation -> from when on it would answer for it, had no fault come on its way there."""
        self.interrupted: set[int] = set()
        """Generations that it was going over to when it was lost for long."""
        self.restarts, self.message, self.log = 0, "", None

    @property
    def ready(self) -> list[int]:
        """Generations it takes traffic for."""
        now = self.world.clock.now
        return [g for g, at in self.ready_at.items() if at <= now < self.leaves.get(g, NEVER)]

    @property
    def coming(self) -> list[int]:
        """Generations that it loads."""
        now = self.world.clock.now
        return [g for g, at in self.ready_at.items() if at > now and g not in self.failing]

    @property
    def goes_over(self) -> bool:
        """Whether it is on its way from one generation to another."""
        return self.over_to is not None and self.ready_at[self.over_to] > self.world.clock.now

    @property
    def failures(self) -> list[Failure]:
        """Loads that have failed by now."""
        if not self.failing:
            return []
        now = self.world.clock.now
        return [Failure((g,), "LoadFailed", "cannot load") for g, at in self.failing.items() if at <= now]

    def able(self, generation: int, now: float) -> bool:
        """Whether it answers for a generation, or would if a fault had not taken it away for a while."""
        missed = self.lost.get(generation, -1.0) > now >= self.due.get(generation, -1.0)
        there = self.ready_at.get(generation, NEVER) <= now or missed
        return there and now < self.leaves.get(generation, NEVER)

    def start(self, generation: int) -> None:
        """It has been ready for a generation from the beginning."""
        self.ready_at[generation] = 0.0
        self._forget_able()

    def crash(self, until: float) -> None:
        """Lose all that is loaded; it is loaded again by `until`.

        What goes over starts with the generation it goes over to.
        """
        now = self.world.clock.now
        if self.goes_over:
            self._start_over(until)
            self.world.infra.regions[self.key.region].together(self.key.model)
        else:
            self.over_to = None
        for generation, at in self.ready_at.items():
            if at <= now:
                self.lost[generation] = self.ready_at[generation] = until
        self._forget_able()

    def recover(self, until: float) -> None:
        """All that it has ever loaded is there again by `until`."""
        for generation, at in self.ready_at.items():
            if generation in self.interrupted:
                seconds, _ = self.world.load_of(self.key.model, generation)
                self.lost[generation] = self.ready_at[generation] = until + seconds
            elif at == NEVER and generation in self.lost:
                self.lost[generation] = self.ready_at[generation] = until
        self.interrupted.clear()
        self._forget_able()

    def go_over(self, generation: int) -> None:
        """Fetch a generation while the former one answers, then answer for neither until it is loaded.

        Back, where it was on its way from it.
        """
        now, former = self.world.clock.now, self.former if self.still_answers else self.only
        self.only, self.alone = generation, self.alone if self.apart else None
        if self.ready_at.get(generation, NEVER) <= now < self.leaves.get(generation, NEVER):
            self._keep(generation)
            return
        seconds, fails = self.world.load_of(self.key.model, generation)
        if former not in self.ready:
            self._keep()
            self._load(generation, now + seconds, fails=fails)
            self.over_to = self.alone = generation
            return
        self._keep(former)
        if fails:  # seen while it is fetched: nothing is taken from the former one
            self._load(generation, now + seconds / 2, fails=True)
            self.fetched_at = NEVER
        else:
            leaves, ready = self.world.faults.swap_seconds(seconds)
            self.leaves[former] = self.fetched_at = now + leaves
            self.takes = ready - leaves if ready < NEVER else NEVER
            self._load(generation, now + ready)
            self.world.faults.on_the_way(self, ready)
        self.former, self.over_to = former, generation

    @property
    def apart(self) -> bool:
        """Whether it holds, or loads, what it came to without the others."""
        return self.alone is not None and (self.alone in self.ready or self.alone == self.only)

    @property
    def still_answers(self) -> bool:
        """Whether it is to go over, and has not left the former generation yet."""
        return self.goes_over and self.former is not None and self.former in self.ready

    def leave_at(self, at: float) -> None:
        """It leaves the former generation then, with the others."""
        self.leaves[self.former] = at
        if self.over_to not in self.failing:
            self.ready_at[self.over_to] = at + self.takes
        self._forget_able()

    def _keep(self, *generations: int) -> None:
        """Forget all others; these are kept for good."""
        for held in (self.ready_at, self.lost, self.failing, self.due):
            for generation in held.keys() - set(generations):
                del held[generation]
        self.leaves.clear()
        self.interrupted.clear()
        self.over_to = self.former = None

    def _load(self, generation: int, at: float, *, fails: bool = False) -> None:
        self.ready_at[generation] = NEVER if fails else at
        if fails:
            self.failing[generation] = at

    def _start_over(self, until: float) -> None:
        """Its process has ended on its way, and begins anew with what it was to hold."""
        generation, failing = self.only, dict(self.failing)
        at = self.ready_at[generation]
        due = min(at, self.due.get(generation, at))
        self._keep()
        self.failing |= failing
        self.over_to = self.alone = generation
        self.ready_at[generation] = NEVER if at == NEVER else until + self.world.load_of(self.key.model, generation)[0]
        if at < NEVER:
            self.due[generation], self.lost[generation] = due, self.ready_at[generation]
        if until == NEVER and at < NEVER:
            self.interrupted.add(generation)

    def _forget_able(self) -> None:
        self.world.infra.regions[self.key.region].forget_able(self.key.model)


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
            known = self._able[model] = self.count_able(model, now)
        return known.qps

    def forget_able(self, model: str) -> None:
        """Hosts of a model are no longer what they were."""
        self._able.pop(model, None)

    def together(self, model: str) -> None:
        """No process of a model leaves its generation before all that go over have fetched."""
        waiting = [h for key, hosts in self.sets.items() if key.model == model for h in hosts if h.still_answers]
        if waiting:
            at = max(waiting[0].world.clock.now, *(host.fetched_at for host in waiting))
            for host in waiting:
                host.leave_at(at)

    def count_able(self, model: str, now: float) -> Able:
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
                for at in (*host.ready_at.values(), *host.lost.values(), *host.leaves.values(), *host.due.values()):
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
        if wanted.swap:
            kept, groups = self._swap(hosts, wanted), {}
        for only, count in groups.items():
            found = sorted((h for h in hosts if h.only == only), key=lambda h: -len(h.ready))[:count]
            found += [self._host(key, only) for _ in range(count - len(found))]
            kept += found
        if not wanted.swap:
            for host in kept:
                self._hold(host, wanted.generations if host.only is None else (host.only,))
            _hand_over((host for host in hosts if host not in kept), kept)
        region.sets[key], region.wanted[key] = kept, wanted
        region.together(key.model)
        region.forget_able(key.model)
        self._count(key, before * former, len(kept) * wanted.units)

    def _swap(self, hosts: Iterable[Host], wanted: Deployment) -> list[Host]:
        """By the real choice: who stays, who goes over, and who is new; the others end."""
        by_worth = sorted(hosts, key=lambda h: (not h.ready, h.still_answers, h.number))
        staying = [(h, frozenset({h.former if h.still_answers else h.only})) for h in by_worth]
        sets = [Own(count, frozenset({generation})) for generation, count in sorted(wanted.own.items())]
        members, _ = assign_processes(cast("Any", sets), cast("Any", staying), swap=True)
        kept: list[Host] = []
        for (generation, count), found in zip(sorted(wanted.own.items()), members, strict=True):
            for host in found:
                if host.only != generation:
                    self.world.faults.count("goes over")
                    host.go_over(generation)
            new = [self._host(wanted.key, generation) for _ in range(count - len(found))]
            for host in new:
                self._hold(host, (generation,))
            kept += [*found, *new]
        return kept

    def delete(self, key: Key) -> None:
        """End a replica set."""
        region = self.region(key.region)
        hosts, wanted = region.sets.pop(key, []), region.wanted.pop(key, None)
        region.forget_able(key.model)
        if wanted is not None:
            self._count(key, len(hosts) * wanted.units, 0.0)

    def hosts(self, choose: Callable[[Host], bool]) -> list[Host]:
        """Hosts everywhere."""
        return [host for region in self.regions.values() for host in region.replicas if choose(host)]

    def _count(self, key: Key, before: float, after: float) -> None:
        row = (key.region, key.hardware)
        self.units[row] = self.units.get(row, 0.0) + after - before
        self.world.invariants.supply.check(row, rising=after > before, grower=key.model)

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


def _hand_over(ended: Iterable[Host], kept: Sequence[Host]) -> None:
    """A host that loads a generation is kept in place of one that a fault took away, and is missed as long at most."""
    for gone in ended:
        for generation, until in gone.lost.items():
            now = gone.world.clock.now
            loading = (h for h in kept if generation in h.coming and not h.able(generation, now))
            if gone.able(generation, now) and generation not in gone.ready and (host := next(loading, None)):
                host.lost[generation] = min(until, host.ready_at[generation])
