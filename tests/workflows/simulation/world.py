"""One history: a world of a seed, run until nothing is left to do."""

import traceback
from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any, NamedTuple

from activities.drained import Drained
from activities.waves import planned_state, route_share

from .carrying import Entity
from .clock import Clock, NeverEnds
from .faults import Faults
from .infrastructure import Deployment, Infrastructure, Key
from .invariants import Invariants, Violated
from .journal import Generation, Journal, Record, Table
from .minds import Minds
from .placing import fleet_placements
from .specs import Scenario, drawn

KNOWN = frozenset({"I1 between"})
"""Invariants that the code does not keep yet (docs/simulation.md tells why): counted, not failed."""

HORIZON = 900.0
"""Seconds after which nothing new happens; then all that was begun has to end."""


class Outcome(NamedTuple):
    """What came of one history."""

    seed: int
    violated: str | None
    told: str
    counted: Counter[str]
    steps: int
    looks: int
    trace: tuple[str, ...]


class World:
    """Everything that one history has."""

    def __init__(
        self,
        seed: int,
        scenario: Scenario,
        *,
        tracing: bool = False,
        stalls: bool = False,
        known: frozenset[str] = KNOWN,
    ) -> None:
        self.random, self.draws = Random(f"world {seed}"), Random(f"requests {seed}")
        self.known = known
        self.scenario, self.fleet = scenario, scenario.fleet
        self.counted: Counter[str] = Counter()
        self.tracing, self.trace = tracing, list[str]()
        self.clock, self.journal, self.states = Clock(), Journal(), dict[Any, Any]()
        self.supply = {(item.region, item.hardware): item.units for item in self.fleet.supply}
        self.infra, self.invariants = Infrastructure(self, self.fleet.regions), Invariants(self)
        self.faults = Faults(self, Random(f"faults {seed}"), scenario.trouble, self.counted, stalls=stalls)
        self.minds = Minds(self, Random(f"minds {seed}"))
        self.drained, self.lost, self.aborted, self.replans = set[str](), set[str](), set[str](), 0
        self.asked: dict[tuple[str, str], Any] = {}
        """What the planner was asked last for a change, and its answer."""
        self.frozen: dict[str, float] = {}
        """Model -> until when its changes wait."""
        for name, spec in scenario.models.items():
            self.journal.records[name] = Record(spec.manifest, spec.refresh)
        self.entities: dict[str, Entity] = {}
        self.entities |= {name: Entity(self, name) for name in scenario.models}
        self._install()
        for name, entity in self.entities.items():
            self.clock.spawn(f"entity {name}", entity.body())

    def run(self, minds: int) -> None:
        """Changes of mind and faults, then peace until all has ended. Violated."""
        self.clock.spawn("minds", self.minds.body(minds))
        self.clock.spawn("faults", self.faults.body())
        self.clock.run(HORIZON)
        self.settle()

    def settle(self) -> None:
        """Faults end, nobody holds anything any more; everything that was begun has to end, too."""
        self.faults.quiet = True
        for entity in self.entities.values():
            entity.hold(held=False)
        self.clock.run()
        self.invariants.at_end()

    def load_of(self, model: str, generation: int) -> tuple[float, bool]:
        """Seconds until a host has loaded a generation, and whether it fails."""
        return self.faults.load_of(model, generation)

    def supply_left(self, *, but: str) -> dict[tuple[str, str], float]:
        """What the plan in force leaves to one model."""
        taken = self.journal.units_entitled(but=but)
        out = self.out.regions
        return {row: 0.0 if row[0] in out else units - taken.get(row, 0.0) for row, units in self.supply.items()}

    @property
    def out(self) -> Drained:
        """Regions out of service, as the real code reads them."""
        lost = frozenset(self.lost)
        return Drained(lost | self.drained, lost, lost)

    def plan_regions(self) -> list[str]:
        """Regions that a plan may use."""
        return [region for region in self.fleet.regions if region not in self.drained | self.lost]

    def count(self, what: str) -> None:
        """One more of it."""
        self.counted[what] += 1

    def tell(self, kind: str, text: str) -> None:
        """A line of the trace."""
        if self.tracing:
            self.trace.append(f"{self.clock.now:9.2f}  {kind:<10} {text}")

    def _install(self) -> None:
        """Most models serve already, where they are placed; the others have never been published."""
        manifests = {n: s.manifest for n, s in self.scenario.models.items() if self.random.random() < 0.85}
        found = fleet_placements(
            self.random, manifests, self.supply, self.fleet.regions, plan_id=self.journal.new_plan()
        )
        for model, placement in found.items():
            record = self.journal.records[model]
            parts = tuple(part.name for part in record.manifest.spec.parts)
            record.generations[1] = Generation(1, parts, validated=True, serving_at=0.0)
            record.placement, record.serving = placement, 1
            self.invariants.published[model] = 1
            self._start(model, record)

    def _start(self, model: str, record: Record) -> None:
        """Replicas and routes of the first generation, ready."""
        options = {(p.name, o.kind): o for p in record.manifest.spec.parts for o in p.hardware}
        state = planned_state(model, 1, record.placement)
        for row in state.replicas:
            key, option = Key(model, row.part, row.region, row.hardware), options[row.part, row.hardware]
            own, swap = {} if record.refresh == "in_place" else {1: row.count}, record.refresh == "swap"
            record.deployments[key] = wanted = Deployment(key, row.count, (1,), option.units, option.qps, own, swap)
            self.infra.apply(wanted)
            for host in self.infra.regions[row.region].sets[key]:
                host.start(1)
        shares = _shares(state.traffic)
        hosting = {row.region for row in state.replicas}
        for region in sorted(hosting | shares.keys()):
            served = frozenset({1}) if region in hosting else frozenset()
            record.tables[region] = Table(region, 1, tuple(shares.get(region, ())), served)
            self.infra.regions[region].routes[model] = (1, record.tables[region].shares)
            self.infra.regions[region].served[model] = served
        self.invariants.begin(model)


def _shares(traffic: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for share in traffic:
        found.setdefault(share.origin, []).append(route_share(share.to, share.generation, share.fraction))
    return found


def history(
    seed: int, *, tracing: bool = False, stalls: bool = False, swaps: bool = True, known: frozenset[str] = KNOWN
) -> Outcome:
    """The history of a seed. The same seed gives the same history, step by step; without `swaps` no process goes over."""
    scenario = drawn(Random(f"scenario {seed}"), Random(f"swaps {seed}") if swaps else None)
    world = World(seed, scenario, tracing=tracing, stalls=stalls, known=known)
    violated, told = None, ""
    try:
        world.run(scenario.minds)
    except Violated as found:
        violated, told = found.name, found.told
    except NeverEnds as found:
        violated, told = "I6 end", str(found)
    except Exception as error:  # noqa: BLE001 - a bug of the code under simulation is a finding with a seed
        violated, told = "bug", "".join(traceback.format_exception(error))[-1500:]
    if violated:
        world.tell("VIOLATED", f"{violated}: {told}")
    steps, looks = world.clock.events, world.invariants.looks
    return Outcome(seed, violated, told, world.counted, steps, looks, tuple(world.trace))
