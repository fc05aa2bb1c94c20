"""One history: a world of a seed, run until nothing is left to do."""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, NamedTuple

from activities.planning.problem import model_problem
from activities.state.drained_fleet import DrainedFleet
from activities.state.wave_state import planned_state, route_share
from tests.workflows.simulation.runs import reconciliation
from tests.workflows.simulation.runs.entity import Entity
from tests.workflows.simulation.runs.lifecycle_run import Run
from tests.workflows.simulation.runs.stage_activities import is_short

from .clock import Clock, NeverEnds, Process
from .faults import Faults
from .infrastructure import Deployment, Infrastructure, Key
from .invariants.invariants import Invariants
from .invariants.report import Violated
from .journal import Generation, Journal, Record, Table
from .manifests_in_force import Manifests
from .placement import draw_fleet_placements
from .specs import Scenario, draw_scenario
from .terminations import Terminations
from .user_requests import UserRequests

KNOWN = frozenset({"I1 between", "I1 ahead", "I3 unused", "rest supply"})
"""Invariants that the code does not keep yet (docs/simulation.md tells why): counted, not failed."""

LOOK_SECONDS = 30.0
PATIENCE = 4 * 3600.0
"""How long the platform has, once all faults have ended, to come to rest."""

IN_ONE_ATTEMPT = 0.8
"""Of histories: in the others snapshots are too large for one activity to go through all stages, or a worker has
plug-ins."""

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
        ends: bool = False,
        prepares: bool | None = None,
        manifests: bool = False,
        parts: bool = False,
        known: frozenset[str] = KNOWN,
    ) -> None:
        self.ends, self.over = ends, False
        drawn_so = ends and Random(f"prepares {seed}").random() < IN_ONE_ATTEMPT
        self.prepares = drawn_so if prepares is None else prepares
        """Whether the stages before a transition are one activity, as far as they are short."""
        self.random, self.draws = Random(f"world {seed}"), Random(f"requests {seed}")
        self.known = known
        self.scenario, self.fleet = scenario, scenario.fleet
        self.counted: Counter[str] = Counter()
        self.tracing, self.trace = tracing, list[str]()
        self.clock, self.states = Clock(), dict[Any, Any]()
        self.journal = Journal(self.clock)
        self.supply = {(item.region, item.hardware): item.units for item in self.fleet.supply}
        self.infra, self.invariants = Infrastructure(self, self.fleet.regions), Invariants(self)
        self.faults = Faults(self, Random(f"faults {seed}"), scenario.trouble, self.counted, stalls=stalls)
        self.terminations = Terminations(self, Random(f"ends {seed}"))
        self.requests = UserRequests(self, Random(f"minds {seed}"))
        self.manifests = Manifests(self, Random(f"manifests {seed}"), counts=manifests)
        if parts:
            self.manifests.change_parts(Random(f"parts {seed}"))
        self.drained, self.lost, self.aborted, self.replans = set[str](), set[str](), set[str](), 0
        self.replans_due = 0
        """Replans that are asked for and wait."""
        self.shortages: set[tuple[str, int]] = set()
        """Model and sequence of changes that a replan was asked for."""
        self.lost_after: dict[str, int] = {}
        """Region -> number of the newest change when it was lost, or came back, for the last time."""
        self.asked: dict[tuple[str, str], Any] = {}
        """What the planner was asked last for a change, and its answer."""
        self.frozen: dict[str, float] = {}
        """Model -> until when its changes wait."""
        for name, spec in scenario.models.items():
            self.journal.records[name] = Record(spec.manifest, spec.refresh)
        self.runs: dict[str, Run] = {}
        self.kept: dict[str, Process] = {}
        """Runs that are started again if they are terminated."""
        self.replanning: Process | None = None
        self.entities: dict[str, Entity] = {}
        self.entities |= {name: Entity(self, name) for name in scenario.models}
        self._install()
        for entity in self.entities.values():
            entity.begin(rebuilt=True)
        if ends:
            self.clock.spawn(
                "keep reconcile", self.terminations.keep("reconcile", lambda: reconciliation.run_passes(self))
            )
            self.clock.spawn("resubmission", reconciliation.resubmit(self))
            if parts:
                self.clock.spawn("schedule", self.requests.schedule())

    def run(self, requests: int) -> None:
        """Requests and faults, then none until all has ended. Violated."""
        self.clock.spawn("minds", self.requests.body(requests))
        self.clock.spawn("faults", self.faults.body())
        if self.ends:
            self.clock.spawn("endings", self.terminations.body())
        self.clock.run(HORIZON)
        self.settle()

    def settle(self) -> None:
        """Faults end, nobody holds anything any more; everything that was begun has to end, too."""
        self.faults.quiet = True
        for entity in self.entities.values():
            entity.hold(held=False)
        latest = self.clock.now + PATIENCE
        while self.ends and self.clock.now < latest and not self._rests():
            self.clock.run(self.clock.now + LOOK_SECONDS)
        self.over = True
        self.clock.run()
        self.invariants.at_end()

    def _rests(self) -> bool:
        """Whether nothing is left to do."""
        changes = (change for record in self.journal.records.values() for change in record.changes)
        if not all(change.state.final for change in changes) or self.replans or self.replans_due or self.out.regions:
            return False
        if any(entity.busy or reconciliation.find_drift(self, entity.model) for entity in self.entities.values()):
            return False
        if any(True for _ in reconciliation.list_unserved(self)):
            return False
        if self.manifests.parts and any(is_short(self, record.placement) for record in self.journal.records.values()):
            return False
        regions, models = self.infra.regions, self.journal.records
        if not all(self.infra.reachable(region) for region in regions):
            return False
        return not any(
            reconciliation.describe_difference(self, region, model) for region in regions for model in models
        )

    def drain(self, name: str, body: Callable[[], Any], *, after: float = 0.0) -> None:
        """A run of workflow `drain`. The API begins one that is terminated again."""
        if not self.ends:
            self.clock.spawn(name, body(), after=after)
        else:
            self.clock.spawn(f"keep {name}", self.terminations.keep(f"drain: {name}", body), after=after)

    def load_of(self, model: str, generation: int) -> tuple[float, bool]:
        """Seconds until a host has loaded a generation, and whether it fails."""
        return self.faults.load_of(model, generation)

    def supply_left(self, *, but: str) -> dict[tuple[str, str], float]:
        """What the plan in force leaves to one model."""
        taken = self.journal.units_entitled(but=but)
        out = self.out.regions
        return {row: 0.0 if row[0] in out else units - taken.get(row, 0.0) for row, units in self.supply.items()}

    @property
    def out(self) -> DrainedFleet:
        """Regions out of service, as the real code reads them."""
        lost = frozenset(self.lost)
        return DrainedFleet(lost | self.drained, lost, lost)

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
        wishes = {n: model_problem(s.manifest) for n, s in self.scenario.models.items() if self.random.random() < 0.85}
        found = draw_fleet_placements(
            self.random, wishes, self.supply, self.fleet.regions, plan_id=self.journal.new_plan()
        )
        for model, placement in found.items():
            record = self.journal.records[model]
            parts = tuple(part.name for part in record.in_force.spec.parts)
            record.generations[1] = Generation(1, parts, validated=True, serving_at=0.0)
            record.placement, record.serving = placement, 1
            self.invariants.changes.published[model] = self.invariants.manifests.succeeded[model] = 1
            self.manifests.serve_first(model)
            self.manifests.keep_parts(model, 1)
            self._start(model, record)

    def _start(self, model: str, record: Record) -> None:
        """Replicas and routes of the first generation, ready."""
        options = {(p.name, o.kind): o for p in record.in_force.spec.parts for o in p.hardware}
        state = planned_state(model, 1, record.placement, parts=record.generations[1].parts)
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
        self.invariants.capacity.begin(model)


def _shares(traffic: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for share in traffic:
        found.setdefault(share.origin, []).append(route_share(share.to, share.generation, share.fraction))
    return found


def history(
    seed: int,
    *,
    tracing: bool = False,
    stalls: bool = False,
    swaps: bool = True,
    ends: bool = True,
    prepares: bool | None = None,
    manifests: bool = False,
    parts: bool = False,
    known: frozenset[str] = KNOWN,
) -> Outcome:
    """The history of a seed. The same seed gives the same history, step by step.

    Without `swaps` no process goes over. Without `ends` no run is ended from outside and nothing is reconciled or
    repaired. `prepares`: whether the stages before a transition are one activity; None: drawn, and never without
    `ends`. `manifests`: whether a manifest has to be accepted and placed before it is in force, and some are refused.
    `parts`: whether some manifests have other parts than those before, too; only with `manifests`.
    """
    scenario = draw_scenario(Random(f"scenario {seed}"), Random(f"swaps {seed}") if swaps else None)
    world = World(
        seed,
        scenario,
        tracing=tracing,
        stalls=stalls,
        ends=ends,
        prepares=prepares,
        manifests=manifests,
        parts=parts,
        known=known,
    )
    violated, told = None, ""
    try:
        world.run(scenario.requests)
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
