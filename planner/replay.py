"""The independent check of a transition: walks its waves and looks at every rule after every phase.

It shares no step rule with `planner.steps`. Called by `planner.transition` before a transition leaves, by the command and by
tests.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property

from ipnext.model.plan import Problem
from ipnext.model.rollout import FleetState, GenerationReplicas, RouteChange, Transition, Wave
from planner.solution import TOLERANCE, Violation
from planner.steps import StepPolicy

Held = dict[tuple[str, str, str, str, int], int]
"""Replicas by model, part, region, hardware, generation."""
Sent = dict[tuple[str, str, str, int], float]
"""Shares by model, region of the users, region that serves, generation."""
Row = tuple[str, str]


class Fleet:
    """The figures of a problem that transitions are checked with."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @cached_property
    def option(self) -> Mapping[tuple[str, str, str], tuple[float, float]]:
        """Units and QPS of a replica by model, part, hardware."""
        return {
            (m.model, p.part, o.hardware): (o.units, o.qps)
            for m in self.problem.models
            for p in m.parts
            for o in p.options
        }

    @cached_property
    def demand(self) -> Mapping[tuple[str, str], float]:
        """QPS by model and region of the users."""
        return {(m.model, d.region): d.qps for m in self.problem.models for d in m.demand}

    @cached_property
    def late(self) -> frozenset[tuple[str, str, str]]:
        """Model, region of the users and region that serves, beyond the model's tolerance."""
        names = self.problem.regions
        return frozenset(
            (m.model, s, r)
            for m in self.problem.models
            for i, s in enumerate(names)
            for j, r in enumerate(names)
            if self.problem.rtt_ms[i][j] > m.latency_tolerance_ms
        )

    def limits(self, running: Mapping[Row, float]) -> dict[Row, float]:
        """Units of each row: the supply, or what runs there already where supply was taken away."""
        rows = {(r, h): 0.0 for r in self.problem.regions for h in self.problem.hardware}
        rows |= {(item.region, item.hardware): item.units for item in self.problem.supply}
        return {row: max(units, running.get(row, 0.0)) for row, units in rows.items()}

    def used(self, held: Held, policies: Mapping[str, StepPolicy]) -> dict[Row, float]:
        """Units by row: a process that holds several generations counts once, else each generation counts."""
        alone: dict[tuple[str, str, str, str], list[int]] = defaultdict(list)
        for (model, part, region, hardware, _), count in held.items():
            alone[model, part, region, hardware].append(count)
        total: dict[Row, float] = defaultdict(float)
        for (model, part, region, hardware), counts in sorted(alone.items()):
            beside = policies.get(model, StepPolicy()).refresh == "in_place"
            replicas = max(counts) if beside else sum(counts)
            total[region, hardware] += replicas * self.option[model, part, hardware][0]
        return total

    def short(
        self, held: Held, sent: Sent, policies: Mapping[str, StepPolicy]
    ) -> dict[tuple[str, str, str, int | None], tuple[float, float]]:
        """Load and throughput by model, part, region and generation, where the load is above zero.

        Where one process holds several generations the entry with generation None is all of them together.
        """
        parts = {m.model: tuple(p.part for p in m.parts) for m in self.problem.models}
        load: dict[tuple[str, str, str, int | None], float] = defaultdict(float)
        for (model, origin, to, generation), fraction in sent.items():
            policy, qps = policies.get(model, StepPolicy()), fraction * self.demand.get((model, origin), 0.0)
            for part in policy.calls.get(generation, parts[model]):
                load[model, part, to, generation] += qps
                if policy.refresh == "in_place":
                    load[model, part, to, None] += qps
        able = self._able(held)
        return {key: (qps, able.get(key, 0.0)) for key, qps in load.items() if qps > 0}

    def _able(self, held: Held) -> dict[tuple[str, str, str, int | None], float]:
        """QPS by model, part, region and generation; None: of the processes, whatever they hold."""
        processes: dict[tuple[str, str, str, str], int] = defaultdict(int)
        able: dict[tuple[str, str, str, int | None], float] = defaultdict(float)
        for (model, part, region, hardware, generation), count in held.items():
            able[model, part, region, generation] += count * self.option[model, part, hardware][1]
            key = (model, part, region, hardware)
            processes[key] = max(processes[key], count)
        for (model, part, region, hardware), count in processes.items():
            able[model, part, region, None] += count * self.option[model, part, hardware][1]
        return able


def check_transition(
    problem: Problem, transition: Transition, policies: Mapping[str, StepPolicy]
) -> tuple[Violation, ...]:
    """Every rule that the transition breaks, with the wave and phase; empty for a valid one.

    Rules: `names`, `order` (a scale_up that takes away, a scale_down that adds), `capacity` for each generation,
    `supply` (the larger of the supply and what ran at the start), `latency`, `served`, `max_step`, `canary`, `surge` (less
    stated than taken), `end`, `refused` (with waves). What the start already lacks may stay lacking, never more.
    """
    names = tuple(_names(problem, transition))
    if names:
        return names
    if transition.refused is not None:
        return tuple(_refused(transition))
    return tuple(_Replay(problem, transition, policies).violations())


def check_state(
    problem: Problem, state: FleetState, origin: FleetState, policies: Mapping[str, StepPolicy]
) -> tuple[Violation, ...]:
    """The rules that a state breaks as the end of a transition from `origin`."""
    still = Transition(origin=origin, to=state)
    return tuple(_Replay(problem, still, policies).at_end())


def _refused(transition: Transition) -> Iterator[Violation]:
    if transition.waves:
        yield Violation(rule="refused", subject="waves", message="a refused transition has no waves")
    if not transition.refused:
        yield Violation(rule="refused", subject="refused", message="gives no reason")


def _names(problem: Problem, transition: Transition) -> Iterator[Violation]:
    """Names and entries that the problem does not have."""
    options = {(m.model, p.part, o.hardware) for m in problem.models for p in m.parts for o in p.options}
    models, regions = {m.model for m in problem.models}, set(problem.regions)
    waves = transition.waves
    replicas = [*transition.origin.replicas, *transition.to.replicas]
    replicas += [item for wave in waves for item in (*wave.scale_up, *wave.scale_down)]
    for item in replicas:
        if (item.model, item.part, item.hardware) not in options or item.region not in regions:
            where = f"{item.model}/{item.part}/{item.region}/{item.hardware}"
            yield Violation(rule="names", subject=where, message="no such model, part, region or option in the problem")
    flows = [(t.model, t.origin, t.to) for t in (*transition.origin.traffic, *transition.to.traffic)]
    flows += [(c.model, c.origin, share.to) for wave in waves for c in wave.route for share in c.shares]
    flows += [(c.model, c.origin, c.origin) for wave in waves for c in wave.route]
    for model, origin, to in flows:
        if model not in models or origin not in regions or to not in regions:
            yield Violation(rule="names", subject=f"{model}/{origin}/{to}", message="no such model or region")


class _Replay:
    def __init__(self, problem: Problem, transition: Transition, policies: Mapping[str, StepPolicy]) -> None:
        self.fleet = Fleet(problem)
        self.policies = policies
        self.transition = transition
        self.held, self.sent = _held(transition.origin), _sent(transition.origin)
        self.end = _held(transition.to), _sent(transition.to)
        self.first = self.fleet.used(self.held, policies)
        self.limits = self.fleet.limits(self.first)
        self.lacking = {
            key: max(0.0, load - able) for key, (load, able) in self.fleet.short(self.held, self.sent, policies).items()
        }
        self.start = dict(self.sent)
        self.sums = _sums(self.sent), _sums(self.end[1])
        self.peak = dict(self.first)

    def at_end(self) -> Iterator[Violation]:
        """The rules that the end breaks."""
        self.held, self.sent = self.end
        yield from self._rules("to")

    def violations(self) -> Iterator[Violation]:
        """Every wave, phase by phase, then the end and the surge."""
        for number, wave in enumerate(self.transition.waves):
            yield from self._wave(f"wave {number}", wave)
        yield from self._ends()
        yield from self._surge()

    def _wave(self, at: str, wave: Wave) -> Iterator[Violation]:
        yield from self._scale(f"{at} scale_up", wave.scale_up, 1)
        yield from self._rules(f"{at} scale_up")
        before = dict(self.sent)
        yield from self._route(f"{at} route", wave.route)
        yield from self._paced(f"{at} route", before)
        yield from self._rules(f"{at} route")
        yield from self._scale(f"{at} scale_down", wave.scale_down, -1)
        yield from self._rules(f"{at} scale_down")

    def _scale(self, at: str, items: tuple[GenerationReplicas, ...], sign: int) -> Iterator[Violation]:
        for item in items:
            key = (item.model, item.part, item.region, item.hardware, item.generation)
            now = self.held.pop(key, 0)
            if (item.count - now) * sign < 0:
                where = "/".join(map(str, key))
                yield Violation(rule="order", subject=f"{at}: {where}", message=f"goes from {now} to {item.count}")
            if item.count:
                self.held[key] = item.count

    def _route(self, at: str, changes: tuple[RouteChange, ...]) -> Iterator[Violation]:
        seen: set[tuple[str, str]] = set()
        for change in changes:
            if (change.model, change.origin) in seen:
                subject = f"{at}: {change.model} from {change.origin}"
                yield Violation(rule="names", subject=subject, message="stands twice")
            seen.add((change.model, change.origin))
            self.sent = {k: f for k, f in self.sent.items() if k[:2] != (change.model, change.origin)}
            for share in change.shares:
                if share.fraction:
                    self.sent[change.model, change.origin, share.to, share.generation] = share.fraction

    def _rules(self, at: str) -> Iterator[Violation]:
        yield from self._capacity(at)
        yield from self._supply(at)
        yield from self._latency(at)
        yield from self._served(at)

    def _capacity(self, at: str) -> Iterator[Violation]:
        for key, (load, able) in sorted(self._loads().items(), key=str):
            spare = able + self.lacking.get(key, 0.0)
            if load > spare + TOLERANCE * max(1.0, spare):
                model, part, region, generation = key
                which = "all generations" if generation is None else f"generation {generation}"
                subject = f"{at}: {model}/{part} {which} in {region}"
                message = f"{load:.9g} QPS sent to replicas that do {able:.9g} QPS"
                yield Violation(rule="capacity", subject=subject, message=message)

    def _loads(self) -> dict[tuple[str, str, str, int | None], tuple[float, float]]:
        return self.fleet.short(self.held, self.sent, self.policies)

    def _supply(self, at: str) -> Iterator[Violation]:
        for row, units in sorted(self.fleet.used(self.held, self.policies).items()):
            self.peak[row] = max(self.peak.get(row, 0.0), units)
            if units > self.limits[row] + TOLERANCE * max(1.0, self.limits[row]):
                message = f"{units:.9g} units taken of {self.limits[row]:.9g}"
                yield Violation(rule="supply", subject=f"{at}: {row[0]}/{row[1]}", message=message)

    def _latency(self, at: str) -> Iterator[Violation]:
        for (model, origin, to, generation), fraction in sorted(self.sent.items()):
            if (model, origin, to) not in self.fleet.late:
                continue
            allowed = sum(f for k, f in self.start.items() if k[:3] == (model, origin, to))
            if fraction > allowed + TOLERANCE:
                subject = f"{at}: {model} from {origin} to {to} generation {generation}"
                yield Violation(rule="latency", subject=subject, message="beyond the model's latency tolerance")

    def _served(self, at: str) -> Iterator[Violation]:
        now = _sums(self.sent)
        for key in sorted(self.sums[0].keys() | self.sums[1].keys() | now.keys()):
            ends = (self.sums[0].get(key, 0.0), self.sums[1].get(key, 0.0))
            total = now.get(key, 0.0)
            if not min(ends) - TOLERANCE <= total <= max(ends) + TOLERANCE:
                message = f"the shares sum to {total:.9g}, at the start to {ends[0]:.9g}, at the end to {ends[1]:.9g}"
                yield Violation(rule="served", subject=f"{at}: {key[0]} from {key[1]}", message=message)

    def _paced(self, at: str, before: Sent) -> Iterator[Violation]:
        """How much one route phase moves, and how much a new generation gets at first."""
        old, new = _sums(before), _sums(self.sent)
        served = {(model, generation) for (model, _, _, generation), f in before.items() if f > 0}
        for model, origin in sorted(old.keys() & new.keys()):
            policy = self.policies.get(model, StepPolicy())
            keys = [k for k in {**before, **self.sent} if k[:2] == (model, origin)]
            change = [self.sent.get(k, 0.0) - before.get(k, 0.0) for k in keys]
            moved = max(sum(c for c in change if c > 0), -sum(c for c in change if c < 0))
            subject = f"{at}: {model} from {origin}"
            if moved > policy.max_step + TOLERANCE:
                message = f"moves {moved:.9g} of the traffic where max_step is {policy.max_step:g}"
                yield Violation(rule="max_step", subject=subject, message=message)
            fresh = sum(self.sent[k] for k in keys if k in self.sent and (model, k[3]) not in served)
            if fresh > policy.canary + TOLERANCE:
                message = f"a new generation starts at {fresh:.9g} where the canary is {policy.canary:g}"
                yield Violation(rule="canary", subject=subject, message=message)

    def _ends(self) -> Iterator[Violation]:
        held, sent = self.end
        if self.held != held:
            wrong = sorted(k for k in {**held, **self.held} if held.get(k, 0) != self.held.get(k, 0))
            where = "/".join(map(str, wrong[0]))
            yield Violation(rule="end", subject=where, message="the replicas after the last wave are not the target's")
        off = [k for k in {**sent, **self.sent} if abs(sent.get(k, 0.0) - self.sent.get(k, 0.0)) > TOLERANCE]
        if off:
            where = "/".join(map(str, min(off)))
            yield Violation(rule="end", subject=where, message="the traffic after the last wave is not the target's")

    def _surge(self) -> Iterator[Violation]:
        stated = {(item.region, item.hardware): item.units for item in self.transition.surge}
        last = self.fleet.used(self.end[0], self.policies)
        for row, units in sorted(self.peak.items()):
            over = units - max(self.first.get(row, 0.0), last.get(row, 0.0))
            if over > stated.get(row, 0.0) + TOLERANCE * max(1.0, units):
                message = f"{over:.9g} units taken beyond both states, {stated.get(row, 0.0):.9g} stated"
                yield Violation(rule="surge", subject=f"{row[0]}/{row[1]}", message=message)


def _held(state: FleetState) -> Held:
    return {(r.model, r.part, r.region, r.hardware, r.generation): r.count for r in state.replicas if r.count}


def _sent(state: FleetState) -> Sent:
    return {(t.model, t.origin, t.to, t.generation): t.fraction for t in state.traffic if t.fraction}


def _sums(sent: Sent) -> dict[tuple[str, str], float]:
    total: dict[tuple[str, str], float] = defaultdict(float)
    for (model, origin, _, _), fraction in sent.items():
        total[model, origin] += fraction
    return total
