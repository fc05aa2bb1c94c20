"""What must hold after every step, looked at from outside.

Hosts, gateways and supply as they are, not as they are written down.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from activities.state import wave_state as waves
from activities.transition import admission as admitting
from ipnext.model.lifecycle.messages import ChangeKind, ChangeState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import Dip

from . import reconciliation
from .activity_attempts import HEARTBEAT_SECONDS, Limits
from .infrastructure import Key, Region
from .journal import UNDER_WAY, Placement, placed_units
from .transition_walk import WAITS, Command

SLACK = 1e-4
ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})
LONGEST_QUEUE = 1
"""Publishes of one model that may wait."""
Place = tuple[str, str, int | None]
"""Region, part, generation; None: all of the processes, where one holds several generations."""


class Violated(Exception):
    """An invariant that does not hold."""

    def __init__(self, name: str, told: str) -> None:
        super().__init__(f"{name}: {told}")
        self.name, self.told = name, told


class Invariants:
    """All of them. The first that does not hold ends the history."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.demand: dict[str, dict[str, float]] = {}
        self.lacking: dict[str, dict[Place, float]] = {}
        self.dips: dict[str, dict[tuple[str, str], float]] = {}
        """Model -> (region, part) -> fraction of the traffic that its transition may miss."""
        self.going_along: dict[str, dict[tuple[str, str], float]] = {}
        """Model -> (region, part) -> requests/s that all its generations together lacked when its rollback was
        planned."""
        self.passing: dict[str, frozenset[str]] = {}
        """Model -> regions that its transition only passes through: what lacks goes along to them with the users."""
        self.known: dict[str, frozenset[int]] = {}
        self.published: dict[str, int] = {}
        self.overrun: dict[tuple[str, str], bool] = {}
        """Rows in which more runs than there is since a way back."""
        self.stopped_by_loss: set[str] = set()
        """Changes that were stopped for a lost region."""
        self.left_behind: set[str] = set()
        """Models whose way back was left half done, until the next one is through."""
        self.abandoned: dict[str, dict[tuple[str, str], float]] = {}
        """Model -> (region, part) -> requests/s that may be missing since a way back was given up as processes went
        over."""
        self.strained: set[str] = set()
        """Models that lack what a lost region took, until their next transition is planned."""
        self.halfway: dict[str, set[tuple[Any, ...]]] = {}
        """Model -> what was more than is carried while its gateways followed one by one: it stays so while one can't be
        reached."""
        self.crossing: set[str] = set()
        """Models whose gateways are told to send a region too much: no order sends less, or one of them stays as it is
        for now."""
        self.unanswered: set[tuple[str, str]] = set()
        """(Users' region, model) of users whom only a lost region answered, until the wave at hand has moved its
        traffic."""
        self.sent: dict[tuple[str, str], Any] = {}
        """(Users' region, model) -> the shares that the last look saw."""
        self.succeeded: dict[str, int] = {}
        """Model -> revision of the manifest of the last rollout that succeeded."""
        self.adopted: dict[str, int] = {}
        """Change -> revision of the manifest that its placement was adopted by."""
        self.looks, self.breaches = 0, 0
        self.held: dict[str, Any] = {}
        """Model -> what a look at it saw that found nothing: while that is the same, another one finds nothing
        either."""

    def settled(self, model: str) -> None:
        """All gateways of a model follow."""
        self.halfway.pop(model, None)
        self.crossing.discard(model)

    def begin(
        self,
        model: str,
        dips: Iterable[Dip] = (),
        *,
        rollback: bool = False,
        manifest: Any | None = None,
        passing: frozenset[str] = frozenset(),
    ) -> None:
        """A transition is planned for the demand of now; what is short at its beginning may stay so, and what it dips.

        A rollback and a repair go back at the capacity that is there: what one generation lacks goes along to the
        other, and what processes lack that all generations share.
        """
        self.passing[model] = passing
        self.dips[model] = {(dip.region, dip.part): dip.fraction for dip in dips}
        manifest = manifest or self.world.journal.records[model].in_force
        self.demand[model] = {item.region: item.qps for item in manifest.spec.demand}
        loads = self._loads(model, faults=False)
        self.strained.discard(model)
        self.settled(model)
        lacking = {place: load - able for place, (load, able) in loads.items() if load > able}
        short = _short(loads)
        for (region, part, generation), (load, able) in loads.items():
            if (
                generation is None and short[region, part] > 0
            ):  # a process that holds nothing of what is sent carries none of it
                lacking[region, part, None] = max(load - able, short[region, part])
        along = {place: max(missing, lacking.get((*place, None), 0.0)) for place, missing in short.items()}
        self.lacking[model], self.going_along[model] = lacking, along if rollback else {}

    def broken(self, name: str, told: str) -> None:
        """One that does not hold ends the history; a known weakness is counted."""
        self.breaches += 1
        if name not in self.world.known:
            raise Violated(name, told)
        self.world.count(f"known: {name}")
        self.world.tell("known", f"{name}: {told}")

    def look(self, model: str, where: str, *, between: bool = False) -> None:
        """I1, I2 and I5 of one model. `between`: some of its gateways have moved, others not yet."""
        self.looks += 1
        seen, breaches = self._seen(model), self.breaches
        asked = self.world.draws.random()
        if self.held.get(model) == seen:
            return
        self._routes(model, where, asked)
        if not (model in self.left_behind or model in self.strained):
            self._carried(model, where, between=between)
        if self.breaches == breaches:
            self.held[model] = seen

    def _seen(self, model: str) -> tuple[Any, ...]:
        """All that the outcome of a look depends on; which generations are validated, and their parts, only grow."""
        now = self.world.clock.now
        of_model = [
            (self._out(r), r.dead_until > now, r.routes.get(model), r.served.get(model), r.able(model, now))
            for r in self.world.infra.regions.values()
        ]
        excused = model in self.left_behind or model in self.strained
        return (
            excused,
            self.demand.get(model),
            self.lacking.get(model),
            self.going_along.get(model),
            self.passing.get(model),
            self.dips.get(model),
            self._swapping(model),
            self.abandoned.get(model),
            of_model,
        )

    def _carried(self, model: str, where: str, *, between: bool) -> None:
        """I1: what is sent is carried."""
        if self.world.journal.records[model].refresh == "swap":
            self._carried_apart(model, where, between=between)
            return
        excused, dips = self.lacking.get(model, {}), self.dips.get(model, {})
        loads = self._loads(model)
        for (region, part, generation), (load, able) in loads.items():
            if load <= able + SLACK:
                continue
            along = self._along(model, (region, part, generation), loads)
            lacked = max(excused.get((region, part, generation), 0.0), along)
            if load * (1 - dips.get((region, part), 0.0)) > able + lacked + SLACK:
                seen = (region, part, generation, load, able)
                stays = (between and model in self.crossing) or seen in self.halfway.get(model, ())
                if stays:
                    self.halfway.setdefault(model, set()).add(seen)
                which = "all generations" if generation is None else f"generation {generation}"
                told = f"{where}: {model}/{part} in {region}: {load:g} requests/s to {which}, which carries {able:g}"
                self.broken(
                    "I1 between" if stays else self._way_back(model) if self._goes_back(model) else "I1 capacity", told
                )

    def _along(self, model: str, place: Place, loads: Mapping[Place, tuple[float, float]]) -> float:
        """What a generation may lack as its model was short, or all of a region that is passed through; never more."""
        (region, part, generation), short = place, _short(loads)
        along, passing = self.going_along.get(model, {}), self.passing.get(model, frozenset())
        regions = {region, *passing, *(name for name, _ in along)} if region in passing else {region}
        load, able = loads[place]
        others = 0.0 if generation is None else short[region, part] - (load - able)
        others += sum(short.get((name, part), 0.0) for name in regions - {region})
        return sum(along.get((name, part), 0.0) for name in regions) - others

    def _carried_apart(self, model: str, where: str, *, between: bool) -> None:
        """I1 where processes go over: what is short goes along with them, so it counts for all generations together.

        So much more may be missing as those carry that go over in the wave at hand, until its traffic has moved.
        """
        lacking, dips, loads = self.lacking.get(model, {}), self.dips.get(model, {}), self._loads(model)
        whole: dict[tuple[str, str], float] = defaultdict(float)
        missing: dict[tuple[str, str], float] = defaultdict(float)
        for (region, part, _), (load, able) in loads.items():
            whole[region, part] += load
            missing[region, part] += max(0.0, load * (1 - dips.get((region, part), 0.0)) - able)
        over, abandoned = self._swapping(model), self.abandoned.get(model, {})
        for place, short in missing.items():
            may = max(_at(lacking, place) + over.get(place, 0.0), abandoned.get(place, 0.0))
            if short <= may + SLACK:
                continue
            seen = (*place, short)
            stays = (between and model in self.crossing) or seen in self.halfway.get(model, ())
            if stays:
                self.halfway.setdefault(model, set()).add(seen)
            told = (
                f"{where}: {model}/{place[1]} in {place[0]}: {short:g} of {whole[place]:g} requests/s are "
                f"missing, {may:g} may"
            )
            self.broken(
                "I1 between" if stays else self._way_back(model) if self._goes_back(model) else "I1 capacity", told
            )

    def _swapping(self, model: str) -> Mapping[tuple[str, str], float]:
        """(Region, part) -> requests/s that the processes carry which go over in the wave at hand."""
        wave = self._swapping_wave(model)
        if wave is None:
            return {}
        deployments = self.world.journal.records[model].deployments
        over: dict[tuple[str, str], float] = defaultdict(float)
        for slot, (gone, _) in self._over(model, *wave).items():
            stored = deployments.get(Key(model, *slot))
            over[slot[1], slot[0]] += gone * stored.qps if stored is not None else 0.0
        return dict(over)

    def _swapping_wave(self, model: str) -> tuple[Any, int] | None:
        """Transition and number of the wave at hand, where processes go over in it and its traffic has not moved."""
        run = self._moved_by(model) if self.world.journal.records[model].refresh == "swap" else None
        if run is None or run.step.name not in {"ensure_capacity", "shift_traffic"}:
            return None
        moving = self.world.journal.find_transition(run.change.id)
        if moving is None or not waves.swaps(moving.transition, model, run.step.index):
            return None
        return moving.transition, run.step.index

    def _over(self, model: str, transition: Any, index: int) -> Mapping[waves.Slot, tuple[int, float]]:
        """Slot -> processes that go over in a wave, or back, and their largest fraction of those of a generation."""
        before = waves.state_undone(transition, model, index, "released").counts
        after = waves.state_at(transition, model, index, "scaled_up").counts
        over: dict[waves.Slot, tuple[int, float]] = {}
        for slot, generation in before.keys() | after.keys():
            held = slot, generation
            count, changed = before.get(held, 0), before.get(held, 0) - after.get(held, 0)
            gone, least = over.get(slot, (0, 0.0))
            if changed > 0:
                over[slot] = gone + changed, max(least, changed / count)
        return over

    def left(self, model: str) -> None:
        """A step of a way back could not be done: what is short for it may stay so until a transition is through."""
        self.left_behind.add(model)

    def given_up(self, model: str) -> None:
        """A way back was ended from outside until no other run took it over.

        Its processes may stay where its wave left them. Until the processes of the next transition have all been told:
        it begins with them.
        """
        lacking, over = self.lacking.get(model, {}), self._swapping(model)
        if over:
            self.abandoned[model] = {place: _at(lacking, place) + qps for place, qps in over.items()}

    def one_mover(self, model: str) -> None:
        """No two transitions of a model are open."""
        open_ones = [m.id for m in self.world.journal.records[model].transitions if m.state in UNDER_WAY]
        if len(open_ones) > 1:
            raise Violated("one mover", f"{' and '.join(open_ones)} move {model} at the same time")

    def gave_way(self, change: Any) -> None:
        """I4: a run gives way only to what brings its own change, too."""
        kinds = {ChangeKind.PUBLISH, ChangeKind.ROLLBACK, ChangeKind.RETIRE} | ({change.kind} & {ChangeKind.APPLY})
        newer = [c for c in self.world.journal.records[change.model].changes if c.sequence > change.sequence]
        if not any(c.kind in kinds for c in newer):
            raise Violated("I4 lost", f"{change.id} gave way, and nothing newer brings it")

    def supply(self, row: tuple[str, str], *, rising: bool, grower: str | None = None) -> None:
        """I3: what runs of all models together, whenever it grows."""
        used, most = self.world.infra.units[row], self.world.supply.get(row, 0.0)
        if rising and used > most + SLACK:
            back = self.overrun.get(row, False) or (grower is not None and self._goes_back(grower))
            self.overrun[row] = back
            name = "I3 way back" if back else "I3 supply"
            if self.world.manifests.parts and grower and used - self._unused(grower, row) <= most + SLACK:
                name = "I3 unused"
            self.broken(name, f"{row[0]}/{row[1]}: {used:g} units run where {most:g} are")
        elif used <= most + SLACK:
            self.overrun.pop(row, None)

    def _unused(self, model: str, row: tuple[str, str]) -> float:
        """Units of replicas that no wave knows, and that stay while a gateway of the model can't be reached."""
        record = self.world.journal.records[model]
        moving = next((found for found in reversed(record.transitions) if found.state in UNDER_WAY), None)
        away = (r for r in record.tables if r not in self.world.lost and not self.world.infra.reachable(r))
        if moving is None or not any(away):
            return 0.0
        region, known = self.world.infra.regions[row[0]], waves.peak(moving.transition, model)
        return sum(
            len(hosts) * region.wanted[key].units
            for key, hosts in region.sets.items()
            if key.model == model and key.hardware == row[1] and (key.part, key.region, key.hardware) not in known
        )

    def planned(self, adopted: Mapping[str, Placement]) -> None:
        """I3: a plan promises no more than there is, wherever what it adopts takes anything."""
        promised = self.world.journal.units_entitled(but="")
        for row in {row for placement in adopted.values() for row in placed_units(placement)}:
            if promised[row] > self.world.supply.get(row, 0.0) + SLACK:
                told = f"{row[0]}/{row[1]}: {promised[row]:g} units are promised of {self.world.supply[row]:g}"
                raise Violated("I3 plan", told)

    def routed(self, model: str, region: str, before: Any, after: Any) -> None:
        """Pace: the first share of a new generation, and how much of a region's traffic one wave moves."""
        run, rollout = self._moved_by(model), self.world.journal.records[model].in_force.spec.rollout
        paced = run is not None and run.command.name == "shift_traffic" and not run.command.back
        if not paced or run.change.kind in admitting.AT_ONCE or model in self.left_behind or not before:
            return
        if region not in self.demand[model]:
            return
        before = [share for share in before if share.to not in self.world.lost]
        if not before or (region, model) in self.unanswered:  # nobody answered them: whoever is ready does
            return
        moved = _moved(before, after)
        if model in self.strained:  # what was sent around may come home at once; no new generation may grow
            moved = _sum(self._new_of(model, after)) - _sum(self._new_of(model, before))
        if moved <= SLACK:
            return
        fresh, swap = _sum(self._new_of(model, after)), self._swapping_wave(model)
        least = max((part for _, part in self._over(model, *swap).values()), default=0.0) if swap is not None else 0.0
        if run.command.index == 0 and fresh > max(rollout.canary, least) + SLACK:
            told = f"{model} in {region}: a new generation starts at {fresh:g}, the canary is {rollout.canary:g}"
            raise Violated("pace", told)
        if moved > max(rollout.max_step, least) + SLACK:
            raise Violated("pace", f"{model} in {region}: {moved:g} of the traffic move, {rollout.max_step:g} may")

    def around(self, model: str, region: str, before: Iterable[Any], stored: Iterable[Any], after: Any) -> None:
        """Users were sent around a lost region: their gateway's shares before, the stored ones of then, and those now.

        What the stored ones send to regions that are left stands in for nothing: a failover knows no other ones.
        """
        before = list(before)
        if all(share.to in self.world.lost for share in before):
            self.unanswered.add((region, model))
        serving, now = self.world.journal.records[model].serving, self.world.clock.now
        kept, now_sent = Counter[int](), Counter[int]()
        for share in stored:
            kept[share.generation] += share.fraction if share.to not in self.world.lost else 0.0
        for share in after:
            now_sent[share.generation] += share.fraction
        grown = {number for number, fraction in now_sent.items() if fraction > kept[number] + SLACK}
        others = grown - {serving, *self._serving(model)}
        left = [found for found in self.world.infra.regions.values() if found.name not in self.world.lost]
        ready = [found.name for found in left if found.dead_until <= now and self._whole(found, model, serving)]
        if others and ready:
            told = f"{model} in {region}: users are sent to {sorted(others)}, {serving} serves and is ready in {ready}"
            raise Violated("I4 lost", told)

    def _new_of(self, model: str, shares: Iterable[Any]) -> list[Any]:
        return [share for share in shares if share.generation not in self.known[model]]

    def gate(self, wave: Any, *, errors: int, rate: float, passed: bool) -> None:
        """A generation that answers badly does not pass."""
        if passed and errors / 200 > rate:
            raise Violated("gate", f"{wave.model} wave {wave.index}: {errors} errors of 200 pass")

    def commanded(self, run: Any, command: Command) -> None:
        """A run that was asked to stop begins no further wave; it begins with what serves being known."""
        if command.name == "shift_traffic":
            self.abandoned.pop(run.change.model, None)
        else:
            self.unanswered = {found for found in self.unanswered if found[1] != run.change.model}
        if command.back:
            return
        if run.stops and command.name in {"ensure_capacity", "shift_traffic", *WAITS}:
            self.broken("stop", f"{run.name} was asked to stop and begins {command.name} of wave {command.index + 1}")
        if command.index == 0 and command.name == "ensure_capacity":
            self.known[run.change.model] = self._serving(run.change.model)

    def queued(self, model: str, queue: Any) -> None:
        """I6: publishes do not pile up, and what waits is in order."""
        waiting = [change for change in queue if change.kind is ChangeKind.PUBLISH]
        if len(waiting) > LONGEST_QUEUE:
            raise Violated("I6 queue", f"{model}: {len(waiting)} publishes wait")
        if [change.sequence for change in queue] != sorted(change.sequence for change in queue):
            raise Violated("I4 order", f"{model}: what waits is not in order")

    def ended(self, change: Any, state: ChangeState) -> None:
        """I4: a superseded change has a newer one. One that is done has cleared up what was left behind."""
        if state is ChangeState.DONE and change.kind is not ChangeKind.RETIRE:
            self.left_behind.discard(change.model)
        if state is ChangeState.SUPERSEDED and change.by is not None and change.by <= change.sequence:
            raise Violated("I4 order", f"{change.id} is superseded by the older {change.by}")

    def serving(self, change: Any, generation: int) -> None:
        """I4: generations become serving in rising order, but for rollbacks."""
        if change.kind is not ChangeKind.PUBLISH:
            return
        newest = self.published.get(change.model, 0)
        if generation <= newest:
            raise Violated("I4 order", f"{change.model}: generation {generation} serves after {newest}")
        self.published[change.model] = generation

    def serves_on(self, change: Any, generation: int) -> None:
        """I4: a move or a repair ends on the generation that serves, so it undoes no publish."""
        serving = self.world.journal.records[change.model].serving
        if generation != serving:
            raise Violated("I4 undone", f"{change.id} moved {change.model} to {generation}; {serving} serves")

    def placed_by(self, change: Any, revision: int) -> None:
        """The unit of work that adopts the placement of a change: from then on its manifest may be carried out."""
        if change.kind in ROLLS_OUT:
            self.adopted[change.id] = revision

    def in_force(self, change: Any, *, done: bool) -> None:
        """The end of a change: its manifest is in force for good if it succeeded, else the one of before."""
        revision = self.adopted.pop(change.id, None)
        if done and revision is not None:
            self.succeeded[change.model] = revision

    def planned_revision(self, model: str, manifest: Any) -> int:
        """A plan of the fleet takes no manifest that is not in force. Return the revision of the one that it takes."""
        record = self.world.journal.records[model]
        revision = next(number for number, known in record.manifests.items() if known is manifest)
        self._is_in_force(model, revision, f"a replan plans {model}")
        return revision

    def goes_by(self, change: Any, revision: int) -> None:
        """A change carries out its own manifest, or the one of what serves; a repair that of what serves alone."""
        told, model = f"{change.kind} {change.id}", change.model
        if change.kind in ROLLS_OUT:
            if self.world.manifests.counts and revision != self.adopted.get(change.id):
                raise Violated("in force", f"{told} carries out revision {revision}, not its own")
            return
        self._is_in_force(model, revision, told)
        record = self.world.journal.records[model]
        former = record.former
        waits = former is not None and former.plan_id == record.placement.plan_id and former.placement is not None
        fits = waits and not any(r.region in self.world.out.lost for r in former.placement.replicas if r.count)
        if change.kind is ChangeKind.REPAIR and fits and revision != self.succeeded.get(model, revision):
            raise Violated("in force", f"{told} carries out revision {revision} of a change that waits")

    def _is_in_force(self, model: str, revision: int, who: str) -> None:
        """One that a change was placed by which is open, or has succeeded as the last one."""
        if not self.world.manifests.counts or model not in self.succeeded:
            return
        journal = self.world.journal
        adopted = {number for name, number in self.adopted.items() if journal.by_id[name].model == model}
        wishes = self._wishes(model, revision)
        if all(self._wishes(model, number) != wishes for number in {self.succeeded[model], *adopted}):
            told = f"{who} carries out revision {revision}; {self.succeeded[model]} succeeded last"
            raise Violated("in force", told)

    def lacks(self, change: Any, generation: Any, manifest: Any, told: str) -> None:
        """Parts: a generation is refused for one that nothing is placed for only if the manifest lost it before.

        The generation never served then.
        """
        named = {part.name for part in manifest.spec.parts}
        lost = change.kind in ROLLS_OUT and generation.serving_at is None and set(generation.parts) - named
        self.world.count("parts: refused for one that the manifest lost")
        if not lost:
            raise Violated("parts", f"{change.kind} {change.id}: {told}")

    def changed_parts(self, change: Any, generation: int) -> None:
        """Count how a model comes to other parts, or keeps those that its manifest lost."""
        record = self.world.journal.records[change.model]
        parts = set(record.generations[generation].parts)
        before = set(record.generations[record.serving].parts) if record.serving else parts
        if before != parts:
            self.world.count(f"parts: {change.kind} to {'fewer' if parts < before else 'other'} ones")
        if parts - {part.name for part in record.in_force.spec.parts}:
            self.world.count(f"parts: {change.kind} of one that the manifest lost")

    def in_time(self, name: str, seconds: float, limits: Limits) -> None:
        """I6: no wait beyond its deadline; one attempt may have begun just before."""
        if limits.all is not None and seconds > limits.all + 2 * HEARTBEAT_SECONDS:
            raise Violated("I6 deadline", f"{name} took {seconds:g} s of {limits.all:g}")

    def at_end(self) -> None:
        """Every change has ended, every run too, and nothing runs that no one knows of."""
        for model, record in self.world.journal.records.items():
            for change in record.changes:
                if not change.state.final:
                    raise Violated("I4 lost", f"{change.kind} {change.id} is {change.state} for ever")
            self._newest_counts(model, record)
            self._force_at_rest(model, record)
            self.look(model, "at the end")
            for region in self.world.infra.regions.values():
                orphans = [
                    k for k, hosts in region.sets.items() if k.model == model and hosts and k not in record.deployments
                ]
                if orphans:
                    raise Violated("I6 orphan", f"{orphans[0]} runs and is not known")
            if self.world.ends:
                self._at_rest(model)
        for entity in self.world.entities.values():
            if entity.busy or entity.queue:
                raise Violated("I6 end", f"{entity.model} still runs {entity.running}")

    def _at_rest(self, model: str) -> None:
        """What every region has is what the store wants, and users are answered by the generation that serves."""
        record = self.world.journal.records[model]
        if any(moving.state in UNDER_WAY for moving in record.transitions):
            raise Violated("rest transition", f"a transition of {model} is open for ever")
        self._parts_at_rest(model, record)
        for region in self.world.infra.regions.values():
            sent = {s.generation for s in region.routes.get(model, (0, ()))[1] if s.fraction > 0}
            if sent - {record.serving}:
                told = f"{region.name} sends {model} to generation {sorted(sent)}; generation {record.serving} serves"
                self.broken("rest supply" if _waits_for_supply(record) else "rest generation", told)
            if told := reconciliation.difference(self.world, region.name, model):
                raise Violated("rest region", f"{region.name} is not as the store wants it: {told}")

    def _parts_at_rest(self, model: str, record: Any) -> None:
        """What runs, and what supply is kept for, are the parts of the generation that serves."""
        if record.serving is None or (record.changes and _waits_for_supply(record)):
            return
        parts = set(record.generations[record.serving].parts)
        running = {key.part for key, found in record.deployments.items() if found.replicas}
        placed = {row.part for row in record.placement.replicas if row.count} if record.placement else set()
        for found, what in ((running, "runs"), (placed, "is placed")):
            if found - parts:
                told = f"{', '.join(sorted(found - parts))} of {model} {what}; generation {record.serving} has {parts}"
                raise Violated("rest parts", told)

    def _wishes(self, model: str, revision: int) -> dict[str, float]:
        """The demand of a revision of the manifest: two that want the same may share a placement."""
        return {item.region: item.qps for item in self.world.journal.records[model].manifests[revision].spec.demand}

    def _force_at_rest(self, model: str, record: Any) -> None:
        """At rest the manifest in force is that of the last rollout that succeeded."""
        if not self.world.manifests.counts or record.retired or model not in self.succeeded:
            return
        if record.former is not None or record.revision_in_force != self.succeeded[model]:
            told = f"revision {record.revision_in_force} of {model} is in force; {self.succeeded[model]} succeeded last"
            raise Violated("in force", told)

    def _newest_counts(self, model: str, record: Any) -> None:
        """I4: the newest of what was asked is never given up for something older."""
        asked = [c for c in record.changes if c.kind in {ChangeKind.PUBLISH, ChangeKind.ROLLBACK, ChangeKind.RETIRE}]
        if asked and asked[-1].state is ChangeState.SUPERSEDED and asked[-1].id not in self.world.aborted:
            raise Violated("I4 lost", f"{asked[-1].id} is the newest of {model}, and superseded")
        runs = self.world.runs
        stopped = (
            asked and asked[-1].id in self.stopped_by_loss and runs[asked[-1].id].reason is Reason.REGION_UNREACHABLE
        )
        if self.world.ends and stopped:
            raise Violated("I4 lost", f"{asked[-1].id} is the newest of {model}, and was given up for a lost region")

    def _goes_back(self, model: str) -> bool:
        """Whether a model's transition is on its way back, capacity first."""
        run = self._moved_by(model)
        return run is not None and run.command.back

    def _moved_by(self, model: str) -> Any:
        """The run that moves a model, else the one that the entity carries out; None if there is none.

        The wait of a run that a repair passes may end at any moment: then that run moves the model, and the repair
        waits.
        """
        mover, entity = self.world.journal.find_mover(model), self.world.entities.get(model)
        found = self.world.runs.get(mover.id) if mover is not None else None
        return found if found is not None or entity is None else entity.running

    def _serving(self, model: str) -> frozenset[int]:
        routes = [region.routes.get(model, (0, ()))[1] for region in self.world.infra.regions.values()]
        return frozenset(share.generation for shares in routes for share in shares if share.fraction > 0)

    def _routes(self, model: str, where: str, asked: float) -> None:
        record = self.world.journal.records[model]
        for origin in self.world.infra.regions.values():
            if self._out(origin):
                self.sent.pop((origin.name, model), None)
                continue
            passed = 0.0
            self._dropped(origin, model, where)
            for share in origin.routes.get(model, (0, ()))[1]:
                if share.fraction <= 0:
                    continue
                if not record.generations[share.generation].validated:
                    raise Violated("I2 validated", f"{where}: {origin.name} sends to generation {share.generation}")
                whole = self._whole(self.world.infra.regions[share.to], model, share.generation)
                if not (whole or self._waits(self.world.infra.regions[share.to], model, share.generation)):
                    mine = passed <= asked < passed + share.fraction
                    name = "I5 answer" if mine else "I2 ready"
                    if origin.name not in self.demand.get(model, {}):
                        name = "I2 undemanded"
                    elif self._goes_back(model):
                        name = self._way_back(model)
                    elif self.world.ends and self._is_ahead(origin, model):
                        name = "I1 ahead"
                    told = (
                        f"{where}: {origin.name} sends {model} generation {share.generation} to {share.to}, "
                        "not whole there"
                    )
                    self.broken(name, told)
                passed += share.fraction

    def _way_back(self, model: str) -> str:
        """I1 ahead: a gateway follows what was never written down, for the run that told it has gone."""
        ahead = any(self._is_ahead(origin, model) for origin in self.world.infra.regions.values())
        return "I1 ahead" if self.world.ends and ahead else "I1 way back"

    def _is_ahead(self, origin: Region, model: str) -> bool:
        """Whether a gateway follows a table that was never written down, until it is told again."""
        stored = self.world.journal.records[model].tables.get(origin.name)
        return bool(origin.routes.get(model, (0, ()))[0] > (stored.revision if stored else 0))

    def _dropped(self, origin: Region, model: str, where: str) -> None:
        """I5: of users who are answered not all lose their answers as long as everything that gave them does."""
        before, now = self.sent.get((origin.name, model), ()), origin.routes.get(model, (0, ()))[1]
        self.sent[origin.name, model] = now
        demand = {item.region for item in self.world.journal.records[model].in_force.spec.demand}
        if any(share.fraction > 0 for share in now) or origin.name not in demand.intersection(
            self.demand.get(model, {})
        ):
            return
        sent = [share for share in before if share.fraction > 0]
        if not sent or self._ends_for(model, origin.name):
            return
        regions = self.world.infra.regions
        if all(not self._out(regions[s.to]) and self._whole(regions[s.to], model, s.generation) for s in sent):
            self.broken("I5 dropped", f"{where}: users of {origin.name} were answered, and {model} has no answer now")

    def _ends_for(self, model: str, origin: str) -> bool:
        """Whether nobody is to answer these users.

        The model is retired, its first generation is reverted, or none has served and it is withdrawn.
        """
        run, record = self._moved_by(model), self.world.journal.records[model]
        if run is None:
            return record.serving is None and all(change.state.final for change in record.changes)
        if run.change.kind == ChangeKind.RETIRE:
            return True
        moving = self.world.journal.find_transition(run.change.id)
        return moving is not None and origin not in {share.origin for share in moving.transition.origin.traffic}

    def _out(self, origin: Region) -> bool:
        """Whether what a gateway sends says nothing: its region is dead, or was said to be lost and is not back yet.

        One that was lost, stands up again and can't be reached goes by what it held; nobody waits for it.
        """
        return origin.dead_until > self.world.clock.now or origin.name in self.world.lost

    def _waits(self, region: Region, model: str, generation: int) -> bool:
        """Whether requests for a generation are answered with another one, or wait for one, where processes go over.

        In the wave at hand, or left so by a way back, or one that was given up; the region's router has to know both.
        They wait for what fetches, too, if a process started anew came to its generation before the others.
        """
        served = region.served.get(model, frozenset())
        goes_over = self._swapping_wave(model) or model in self.left_behind or model in self.abandoned
        if not goes_over or generation not in served:
            return False
        hosts = [host for key, hosts in region.sets.items() if key.model == model for host in hosts]
        mixed = any(host.apart for host in hosts)
        coming = {host.over_to for host in hosts if host.goes_over and (mixed or not host.ready)}
        return any(number in coming or self._whole(region, model, number) for number in served)

    def _whole(self, region: Region, model: str, generation: int) -> bool:
        """Whether a region can answer with a generation.

        Its router knows it, and each part has a host that is ready.
        """
        now = self.world.clock.now
        if region.dead_until > now:
            return True
        if generation not in region.served.get(model, frozenset()):
            return False
        able, parts = region.able(model, now), self.world.journal.records[model].generations[generation].parts
        absent = [part for part in parts if (part, generation) not in able]
        return all((region.name, part, generation) in self.lacking.get(model, {}) for part in absent)

    def _loads(self, model: str, *, faults: bool = True) -> dict[Place, tuple[float, float]]:
        record, regions, now = self.world.journal.records[model], self.world.infra.regions, self.world.clock.now
        load: dict[Place, float] = defaultdict(float)
        together = record.refresh == "in_place"
        for name, qps in self.demand.get(model, {}).items():
            origin = regions[name]
            if faults and self._out(origin):
                continue
            for share in origin.routes.get(model, (0, ()))[1]:
                if share.fraction <= 0 or (faults and regions[share.to].dead_until > now):
                    continue
                for part in record.generations[share.generation].parts:
                    load[share.to, part, share.generation] += qps * share.fraction
                    if together:
                        load[share.to, part, None] += qps * share.fraction
        able = {name: regions[name].able(model, now) for name in {place[0] for place in load}}
        return {place: (qps, able[place[0]].get(place[1:], 0.0)) for place, qps in load.items()}


def _moved(before: Iterable[Any], after: Iterable[Any]) -> float:
    """How much of the requests is answered elsewhere, or by another generation."""
    then = {(share.to, share.generation): share.fraction for share in before}
    return sum(max(0.0, s.fraction - then.get((s.to, s.generation), 0.0)) for s in after)


def _sum(shares: Iterable[Any]) -> float:
    """The fraction of the requests that is sent by shares."""
    return float(sum(share.fraction for share in shares))


def _at(lacking: Mapping[Place, float], place: tuple[str, str]) -> float:
    """Requests/s that all generations of a part lack in a region."""
    return sum(qps for (*found, _), qps in lacking.items() if tuple(found) == place)


def _short(loads: Mapping[Place, tuple[float, float]]) -> dict[tuple[str, str], float]:
    """(Region, part) -> requests/s that its generations lack together."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for (region, part, generation), (load, able) in loads.items():
        if generation is not None:
            found[region, part] += max(0.0, load - able)
    return found


def _waits_for_supply(record: Any) -> bool:
    """Whether the last change is a repair that the planner refused.

    The surge is not there, and the dip would be too large.
    """
    last = record.changes[-1]
    return last.kind is ChangeKind.REPAIR and last.state is ChangeState.REFUSED and last.message.startswith("supply: ")
