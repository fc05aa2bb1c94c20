"""Requests of users and schedules: what they ask for, at any time, and how it reaches the entities."""

from collections.abc import Generator, Mapping
from random import Random
from typing import Any

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState

from . import region_loss
from .journal import Change, Generation, Placement, placed_units
from .manifests_in_force import BEYOND, TOO_LARGE
from .placement import draw_placement
from .specs import demand_item

Steps = Generator[Any, Any, Any]
KINDS = (
    "publish", "publish", "publish", "publish in a rush", "two owners at once", "rollback", "rollback", "apply",
    "replan", "replan", "drain", "abort", "retire", "pause", "freeze", "lose a region",
)  # fmt: skip
REPAIRED_KINDS = (*KINDS, "repair")
SCHEDULED_SECONDS = 3600.0
"""Between two replans on schedule, as temporal-dev.yaml has it. Most histories are at rest before the first."""

PLANS = 3
"""How often a replan is tried that came too late."""


class UserRequests:
    """Asks and submits."""

    def __init__(self, world: Any, random: Random) -> None:
        self.world, self.random = world, random
        self.outbox: dict[str, float] = {}

    def body(self, count: int, begins: float = 0.0) -> Steps:
        """Make so many requests, some close together, some far apart."""
        yield begins
        self.world.clock.spawn("people", self._people())
        for _ in range(count):
            kinds = REPAIRED_KINDS if self.world.ends else KINDS
            self.ask(self.random.choice(kinds), self.random.choice(sorted(self.world.journal.records)))
            for after, kind, model in self.world.manifests.further():
                self.world.clock.spawn("mind", self._ask_later(kind, model), after=after)
            yield self.random.choice((0.0, 0.5, 5.0, 20.0, 100.0)) * self.random.random()

    def _people(self) -> Steps:
        """Whoever looks now and then at what waits for a person: most of it is approved, some of it promoted."""
        while not self.world.faults.quiet:
            for entity in self.world.entities.values():
                run = entity.running
                if run is not None and run.command.name == "person" and self.random.random() < 0.8:
                    run.approve()
                elif run is not None and self.random.random() < 0.03:
                    run.promote()
            yield 3.0 + self.random.random() * 20

    def _ask_later(self, kind: str, model: str) -> Steps:
        self.ask(kind, model)
        return
        yield

    def ask(self, kind: str, model: str) -> None:
        """One of KINDS. What the API would refuse does nothing."""
        record = self.world.journal.records[model]
        if record.retired:
            return
        self.world.count(f"mind: {kind}")
        {
            "publish": lambda: self.publish(model),
            "publish in a rush": lambda: [self.publish(model) for _ in range(4)],
            "two owners at once": lambda: [self.publish(m) for m in sorted(self.world.journal.records)],
            "rollback": lambda: self.rollback(model),
            "apply": lambda: self.apply(model),
            "replan": self.replan,
            "drain": self.drain,
            "abort": lambda: self.abort(model),
            "pause": lambda: self.pause(model),
            "freeze": lambda: self.freeze(model),
            "lose a region": self.lose,
            "retire": lambda: self.record(model, ChangeKind.RETIRE),
            "repair": lambda: self.repair(model),
        }[kind]()

    def record(self, model: str, kind: ChangeKind, **more: Any) -> Change | None:
        """Acknowledge a change; the outbox hands it on, in order, and now and then twice."""
        record = self.world.journal.records[model]
        if record.retired or _retires(record):
            return None
        change = self.world.journal.record(model, kind, self.world.clock.now, **more)
        self.world.tell("asked", f"{kind} {change.id} generation {change.generation}")
        now, entity = self.world.clock.now, self.world.entities[model]
        at = self.outbox[model] = max(now + self.random.random() * 2, self.outbox.get(model, 0.0) + 0.01)
        times = 2 if self.random.random() < 0.1 else 1
        for n in range(times):
            self.world.clock.spawn(f"outbox {change.id}", _submission(entity, change), after=at - now + n * 3)
        return change

    def publish(self, model: str) -> None:
        """The next generation."""
        record = self.world.journal.records[model]
        if record.retired or _retires(record):
            return
        number = max(record.generations, default=0) + 1
        parts = tuple(part.name for part in record.manifest.spec.parts)
        record.generations[number] = Generation(number, parts)
        self.world.faults.draw_fault(model, number)
        self.record(model, ChangeKind.PUBLISH, generation=number)

    def rollback(self, model: str) -> None:
        """To a generation that has served: the newest other one, or any."""
        record = self.world.journal.records[model]
        former = [g.number for g in record.generations.values() if g.serving_at is not None]
        asked = [c.generation for c in record.changes if c.kind is ChangeKind.PUBLISH]
        target = asked[-1] if asked else record.serving
        chosen = [number for number in former if number != target]
        if chosen:
            self.record(model, ChangeKind.ROLLBACK, generation=self.random.choice((chosen[-1], *chosen)))

    def apply(self, model: str) -> None:
        """Another demand, now and then from other regions."""
        record = self.world.journal.records[model]
        factor = self.random.choice((0.5, 0.8, 1.25, 2.0))
        spec = record.in_force.spec.model_copy(update={})
        spec.demand = [demand_item(d.region, d.qps * factor) for d in spec.demand]
        self.world.manifests.draw_parts(model, spec)
        if self.world.manifests.kind(model, record.revision + 1) == TOO_LARGE:
            spec.demand = [demand_item(d.region, d.qps * BEYOND) for d in spec.demand]
        record.apply_manifest(record.manifest.model_copy(update={"spec": spec}))
        self.record(model, ChangeKind.APPLY)

    def repair(self, model: str) -> None:
        """By a person. Asked while one is open, it is the same change."""
        record = self.world.journal.records[model]
        if record.serving is not None and not any(
            c.kind is ChangeKind.REPAIR and not c.state.final for c in record.changes
        ):
            self.record(model, ChangeKind.REPAIR)

    def pause(self, model: str) -> None:
        """Hold a model's changes for a while."""
        entity = self.world.entities[model]
        entity.hold(held=True)
        self.world.clock.spawn("resume", _resumption(entity), after=self.random.choice((5.0, 60.0, 250.0)))

    def freeze(self, model: str) -> None:
        """A freeze holds a model's changes back until then."""
        self.world.frozen[model] = self.world.clock.now + self.random.choice((10.0, 120.0))

    def lose(self) -> None:
        """A region is gone for good, so someone says; it comes back much later."""
        world, region = self.world, self.random.choice(self.world.fleet.regions)
        if region in world.drained | world.lost or len(world.drained | world.lost) + 1 >= len(world.fleet.regions):
            return
        region_loss.lose(world, region)
        world.drain(f"around {region}", lambda: region_loss.send_users_around(world, region))
        world.drain(
            f"return {region}", lambda: region_loss.return_region(world, region), after=100 + self.random.random() * 400
        )

    def abort(self, model: str) -> None:
        """Cancel the run that is under way; a rollback, and a retirement that waits for no freeze, go to their end."""
        run = self.world.entities[model].running
        if run is not None and self.world.entities[model].knows and (not run.urgent or run.change.frozen):
            self.world.aborted.add(run.change.id)
            run.stop()

    def drain(self) -> None:
        """A plan without a region, and later one with it again."""
        region = self.random.choice(self.world.fleet.regions)
        if region in self.world.out.regions or len(self.world.out.regions) + 1 >= len(self.world.fleet.regions):
            return
        self.world.drained.add(region)
        self.replan()
        self.world.clock.spawn("undrain", self._undrain(region), after=60 + self.random.random() * 300)

    def replan(self) -> None:
        """Ask for a plan of the whole fleet; one at a time."""
        self.world.replans += 1
        running = self.world.replanning is not None and not self.world.replanning.done
        if not running if self.world.ends else self.world.replans == 1:
            self.world.replanning = self.world.clock.spawn("replan", self._replan(), after=self.random.random())

    def replan_later(self, seconds: float) -> None:
        """Ask for one that is due later."""
        self.world.replans_due += 1
        self.world.clock.spawn("replan later", self._replan_due(), after=seconds)

    def _replan_due(self) -> Steps:
        self.world.replans_due -= 1
        self.replan()
        return
        yield

    def schedule(self) -> Steps:
        """The schedule of replans; at rest it finds nothing better than the plan in force."""
        while True:
            yield SCHEDULED_SECONDS
            if self.world.over:
                return
            self.replan()

    def _undrain(self, region: str) -> Steps:
        self.world.drained.discard(region)
        self.replan()
        return
        yield

    def _replan(self) -> Steps:
        while self.world.replans:
            self.world.replans = 0
            for _ in range(PLANS):
                before = self._find_plans()
                found = self._fleet_plan()
                yield self.random.random() * 30
                if self._adopt(found, before):
                    break
            for model in self._to_move():
                placement = self.world.journal.records[model].placement
                if placement is None:
                    continue
                self.record(model, ChangeKind.MOVE, id=f"move-{placement.plan_id}-{model}", plan_id=placement.plan_id)
                yield self.random.random() * 3

    def _find_plans(self) -> Mapping[str, str]:
        records = self.world.journal.records
        return {m: r.placement.plan_id for m, r in records.items() if r.placement is not None}

    def _fleet_plan(self) -> dict[str, Placement]:
        """Some stay where they are, the others go elsewhere."""
        world, records = self.world, self.world.journal.records
        left = dict(world.supply)
        wanted = [m for m, r in sorted(records.items()) if not r.retired and (r.serving or r.placement)]
        found: dict[str, Placement] = {}
        wishes = {model: world.manifests.planned_wishes(model) for model in wanted}
        for model in [m for m in wanted if records[m].placement and self.random.random() < 0.4]:
            placement = records[model].placement
            stays = not {row.region for row in placement.replicas} & world.out.regions
            if stays and placement.parts == {part.part for part in wishes[model].parts}:
                found[model] = placement
                _take(left, placement)
        for model in sorted(sorted(set(wanted) - found.keys()), key=lambda _: self.random.random()):
            regions = world.plan_regions()
            placement = draw_placement(self.random, wishes[model], left, regions, plan_id="")
            if placement is None:
                return {}
            found[model] = placement
            _take(left, placement)
        plan_id = world.journal.new_plan()
        world.journal.fleet_plans.add(plan_id)
        for model, placement in found.items():
            if not placement.plan_id:
                placement.revision = world.invariants.manifests.check_plan(
                    model, world.manifests.find_planned(records[model])
                )
            placement.plan_id = placement.plan_id or plan_id
        return found

    def _adopt(self, found: dict[str, Placement], before: Mapping[str, str]) -> bool:
        """Models that were placed meanwhile keep their newer place; False where both together do not fit."""
        journal = self.world.journal
        now = self._find_plans()
        changed = {m for m in before.keys() | now.keys() if before.get(m) != now.get(m)}
        merged = {m: p for m, p in found.items() if m not in changed and not journal.records[m].retired}
        total: dict[tuple[str, str], float] = {}
        for model, record in journal.records.items():
            placement = merged.get(model, record.placement)
            for row, units in placed_units(placement).items():
                total[row] = total.get(row, 0.0) + units
        if not found or any(units > self.world.supply.get(row, 0.0) + 1e-6 for row, units in total.items()):
            return False
        for model, placement in merged.items():
            journal.records[model].placement = placement
        self.world.invariants.supply.check_plan(merged)
        return True

    def _to_move(self) -> list[str]:
        """Models that serve and were placed by a plan of the fleet, not moved there yet."""
        journal = self.world.journal
        return [
            model
            for model, record in sorted(journal.records.items())
            if record.serving and record.placement and record.placement.plan_id in journal.fleet_plans
            if f"move-{record.placement.plan_id}-{model}" not in journal.by_id
        ]


def _retires(record: Any) -> bool:
    """Whether it is retired, or to be; a retirement that was ended from outside may be followed by anything."""
    changes = [change for change in record.changes if change.kind is ChangeKind.RETIRE]
    return any(not change.state.final or change.state is ChangeState.DONE for change in changes)


def _take(left: dict[tuple[str, str], float], placement: Placement) -> None:
    for row, units in placed_units(placement).items():
        left[row] = left.get(row, 0.0) - units


def _resumption(entity: Any) -> Steps:
    entity.hold(held=False)
    return
    yield


def _submission(entity: Any, change: Change) -> Steps:
    entity.submit(change)
    return
    yield
