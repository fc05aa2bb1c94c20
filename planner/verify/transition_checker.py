"""The independent check of a transition: executes its waves and checks every rule after every phase.

Written from the rules alone: it shares nothing with the planner of transitions but the values that both read. Called by
`planner.transition.planner` before it returns a transition, by the command and by tests. Only models that a phase
touches are checked again.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping

from ipnext.model.planning.plan import Problem
from ipnext.model.planning.transition import FleetState, GenerationReplicas, RouteChange, Transition, Wave
from planner.core.step_policy import StepPolicy
from planner.verify.plan_checker import TOLERANCE, Violation
from planner.verify.transition_model import Need, ProblemFigures, ReplayState, Row, Sent
from planner.verify.transition_swaps import ModelSwaps, SwapCount


def check_transition(
    problem: Problem, transition: Transition, policies: Mapping[str, StepPolicy]
) -> tuple[Violation, ...]:
    """Return every rule that the transition breaks, with the wave and phase; empty for a valid one.

    Rules: `names`, `order` (a scale_up that removes, a scale_down that adds), `capacity` for each generation (less the
    stated dip), `dip` (more than the policy allows), `supply` (the larger of the supply and the usage at the start),
    `latency`, `served`, `max_step`, `canary`, `surge`, `swap` (less stated than actual), `end`, `refused` (with waves).
    A shortage at the start may remain, but never grow. Replicas that swap (`planner.verify.transition_swaps`) may be
    missing until the wave's traffic moves.
    """
    names = tuple(_names(problem, transition))
    if names:
        return names
    if transition.refused is not None:
        return tuple(_check_refused(transition))
    return tuple(_Replay(problem, transition, policies).violations())


def check_state(
    problem: Problem, state: FleetState, origin: FleetState, policies: Mapping[str, StepPolicy]
) -> tuple[Violation, ...]:
    """Return the rules that a state breaks as the end of a transition from `origin`."""
    still = Transition(origin=origin, to=state)
    return tuple(_Replay(problem, still, policies).at_end())


def _check_refused(transition: Transition) -> Iterator[Violation]:
    if transition.waves:
        yield Violation(rule="refused", subject="waves", message="a refused transition has no waves")
    if not transition.refused:
        yield Violation(rule="refused", subject="refused", message="gives no reason")


def _names(problem: Problem, transition: Transition) -> Iterator[Violation]:
    """Find names and entries that the problem does not have."""
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
    parts = {(m.model, p.part) for m in problem.models for p in m.parts}
    for dip in transition.dips:
        if (dip.model, dip.part) not in parts or dip.region not in regions:
            where = f"dip {dip.model}/{dip.part}/{dip.region}"
            yield Violation(rule="names", subject=where, message="no such model, part or region in the problem")
    for swap in transition.swaps:
        if (swap.model, swap.part) not in parts or swap.region not in regions:
            where = f"swap {swap.model}/{swap.part}/{swap.region}"
            yield Violation(rule="names", subject=where, message="no such model, part or region in the problem")


class _Replay:
    def __init__(self, problem: Problem, transition: Transition, policies: Mapping[str, StepPolicy]) -> None:
        self.facts = ProblemFigures(problem, policies)
        self.transition = transition
        self.now = _standings(transition.origin)
        self.end = _standings(transition.to)
        self.first = _copy_standings(self.now)
        self.loads: dict[str, dict[Need, float]] = {}
        """Model -> load of its traffic, until that moves."""
        self.ends: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
        self.units = {model: self.facts.used(model, s.held) for model, s in self.now.items()}
        self.began = self._total()
        self.total = dict(self.began)
        self.peak = dict(self.began)
        self.lacking = {model: self.facts.lacking(model, s) for model, s in self.now.items()}
        self.swaps = SwapCount(transition.swaps)
        self.swapping: dict[str, ModelSwaps] = {}
        """Model -> replicas that swap in the current wave."""
        self.dips = {(dip.model, dip.part, dip.region): dip.fraction for dip in transition.dips}

    def at_end(self) -> Iterator[Violation]:
        """Yield the rules that the end breaks."""
        self.now = _copy_standings(self.end)
        yield from self._rules("to", sorted(self.first.keys() | self.end.keys()))

    def violations(self) -> Iterator[Violation]:
        """Yield violations of every wave, phase by phase, then of the end, the surge and the dips."""
        yield from self._allowed_dips()
        for number, wave in enumerate(self.transition.waves):
            yield from self._wave(f"wave {number}", wave)
        yield from self._ends()
        yield from self._surge()
        yield from self.swaps.violations()

    def _wave(self, at: str, wave: Wave) -> Iterator[Violation]:
        held = {model: dict(self._at(model).held) for model in _models(wave.scale_up) if self.facts.swaps(model)}
        yield from self._scale(f"{at} scale_up", wave.scale_up, 1)
        self.swapping = {model: ModelSwaps(old, dict(self._at(model).held)) for model, old in held.items()}
        yield from self._check_swap_end(f"{at} scale_up")
        yield from self._rules(f"{at} scale_up", _models(wave.scale_up), meanwhile=True)
        routed = _models(wave.route)
        before = {model: dict(self._at(model).sent) for model in routed}
        yield from self._route(f"{at} route", wave.route)
        for model in routed:
            yield from self._check_pace(f"{at} route", model, before[model])
        yield from self._rules(f"{at} route", routed)
        yield from self._scale(f"{at} scale_down", wave.scale_down, -1)
        yield from self._rules(f"{at} scale_down", _models(wave.scale_down))

    def _at(self, model: str) -> ReplayState:
        return self.now.setdefault(model, ReplayState({}, {}))

    def _scale(self, at: str, items: Iterable[GenerationReplicas], sign: int) -> Iterator[Violation]:
        for item in items:
            held, key = self._at(item.model).held, (item.part, item.region, item.hardware, item.generation)
            now = held.pop(key, 0)
            if (item.count - now) * sign < 0 and not (sign > 0 and self.facts.swaps(item.model)):
                where = "/".join(map(str, (item.model, *key)))
                yield Violation(rule="order", subject=f"{at}: {where}", message=f"goes from {now} to {item.count}")
            if item.count:
                held[key] = item.count

    def _check_swap_end(self, at: str) -> Iterator[Violation]:
        """Check that a replica that swaps still exists afterwards."""
        for model, swapping in self.swapping.items():
            for slot in swapping.fallen:
                subject = f"{at}: {'/'.join((model, *slot))}"
                yield Violation(rule="order", subject=subject, message="has fewer replicas than before")

    def _route(self, at: str, changes: Iterable[RouteChange]) -> Iterator[Violation]:
        seen: set[tuple[str, str]] = set()
        for change in changes:
            if (change.model, change.origin) in seen:
                subject = f"{at}: {change.model} from {change.origin}"
                yield Violation(rule="names", subject=subject, message="stands twice")
            seen.add((change.model, change.origin))
            sent = self._at(change.model).sent
            self.loads.pop(change.model, None)
            for key in [key for key in sent if key[0] == change.origin]:
                del sent[key]
            for share in change.shares:
                if share.fraction:
                    key = change.origin, share.to, share.generation
                    sent[key] = sent.get(key, 0.0) + share.fraction

    def _rules(self, at: str, models: Collection[str], *, meanwhile: bool = False) -> Iterator[Violation]:
        """Check the rules of some models. `meanwhile`: replicas that swap in this wave do not answer yet."""
        for model in models:
            if self.facts.swaps(model):
                yield from self._capacity_apart(at, model, meanwhile=meanwhile)
            else:
                yield from self._capacity(at, model)
            yield from self._latency(at, model)
            yield from self._check_served(at, model)
        yield from self._supply(at, models)

    def _load(self, model: str) -> dict[Need, float]:
        if model not in self.loads:
            self.loads[model] = self.facts.load(model, self._at(model).sent)
        return self.loads[model]

    def _capacity_apart(self, at: str, model: str, *, meanwhile: bool) -> Iterator[Violation]:
        """Check capacity of swapping models.

        A shortage at the start follows the replicas: it counts for all generations together.
        """
        load, able = self._load(model), self.facts.able(model, self._at(model).held)
        leaving = self.swapping[model].leaving if meanwhile and model in self.swapping else {}
        gone = self.facts.able(model, leaving)
        short: dict[tuple[str, str], float] = defaultdict(float)
        over = {need: max(0.0, qps - able.get(need, 0.0)) for need, qps in load.items()}
        for need, missing in over.items():
            dip = load[need] * self.dips.get((model, *need[:2]), 0.0)
            short[need[:2]] += max(0.0, missing - dip - gone.get(need, 0.0))
        for (part, region), missing in short.items():
            lacking = sum(qps for need, qps in self.lacking.get(model, {}).items() if need[:2] == (part, region))
            if missing > lacking + TOLERANCE * max(1.0, missing):
                message = f"{missing:.9g} QPS more sent than its replicas do, less what goes over"
                yield Violation(rule="capacity", subject=f"{at}: {model}/{part} in {region}", message=message)
        if leaving:
            self.swaps.note(model, leaving, {n: min(qps, gone.get(n, 0.0)) for n, qps in over.items()}, load)

    def _capacity(self, at: str, model: str) -> Iterator[Violation]:
        lacking, standing = self.lacking.get(model, {}), self._at(model)
        throughput = self.facts.able(model, standing.held)
        for key, load in self._load(model).items():
            able = throughput.get(key, 0.0)
            if load <= able:
                continue
            part, region, generation = key
            dip = self.dips.get((model, part, region), 0.0)
            needed = load * (1.0 - dip) - lacking.get(key, 0.0)
            if needed > able + TOLERANCE * max(1.0, able):
                which = "all generations" if generation is None else f"generation {generation}"
                subject = f"{at}: {model}/{part} {which} in {region}"
                less = f", with the stated dip of {dip:.9g}" if dip else ""
                message = f"{load:.9g} QPS sent to replicas that do {able:.9g} QPS{less}"
                yield Violation(rule="capacity", subject=subject, message=message)

    def _supply(self, at: str, models: Collection[str]) -> Iterator[Violation]:
        touched: set[Row] = set()
        for model in models:
            old, new = self.units.get(model, {}), self.facts.used(model, self._at(model).held)
            for row in old.keys() | new.keys():
                if old.get(row, 0.0) != new.get(row, 0.0):
                    self.total[row] = self.total.get(row, 0.0) + new.get(row, 0.0) - old.get(row, 0.0)
                    touched.add(row)
            self.units[model] = new
        for row in sorted(touched):
            units, limit = self.total[row], max(self.facts.supply.get(row, 0.0), self.began.get(row, 0.0))
            self.peak[row] = max(self.peak.get(row, 0.0), units)
            if units > limit + TOLERANCE * max(1.0, limit):
                message = f"{units:.9g} units taken of {limit:.9g}"
                yield Violation(rule="supply", subject=f"{at}: {row[0]}/{row[1]}", message=message)

    def _total(self) -> dict[Row, float]:
        total: dict[Row, float] = defaultdict(float)
        for of_model in self.units.values():
            for row, units in of_model.items():
                total[row] += units
        return dict(total)

    def _latency(self, at: str, model: str) -> Iterator[Violation]:
        late: dict[tuple[str, str], float] = defaultdict(float)
        for (origin, to, _), fraction in self._at(model).sent.items():
            if self.facts.late(model, origin, to):
                late[origin, to] += fraction
        for (origin, to), fraction in sorted(late.items()):
            start = self.first.get(model, ReplayState({}, {})).sent
            if fraction > sum(f for key, f in start.items() if key[:2] == (origin, to)) + TOLERANCE:
                subject = f"{at}: {model} from {origin} to {to}"
                yield Violation(rule="latency", subject=subject, message="beyond the model's latency tolerance")

    def _check_served(self, at: str, model: str) -> Iterator[Violation]:
        """Check that no region of users is served less than at both ends, or more."""
        empty = ReplayState({}, {})
        if model not in self.ends:
            start, end = (_sums(ends.get(model, empty).sent) for ends in (self.first, self.end))
            self.ends[model] = start, end
        start, end = self.ends[model]
        now = _sums(self._at(model).sent)
        for origin in sorted(start.keys() | end.keys() | now.keys()):
            ends, total = (start.get(origin, 0.0), end.get(origin, 0.0)), now.get(origin, 0.0)
            if not min(ends) - TOLERANCE <= total <= max(ends) + TOLERANCE:
                message = f"the shares sum to {total:.9g}, at the start to {ends[0]:.9g}, at the end to {ends[1]:.9g}"
                yield Violation(rule="served", subject=f"{at}: {model} from {origin}", message=message)

    def _check_pace(self, at: str, model: str, before: Sent) -> Iterator[Violation]:
        """Check the size of one route phase, and the first share of a new generation.

        The traffic of the smallest number of replicas that can swap in a region moves with them, however much it is.
        """
        after, policy = self._at(model).sent, self.facts.policy(model)
        swapping = self.swapping.get(model, ModelSwaps())
        served = {generation for _, _, generation in before}
        for origin in sorted(_sums(before).keys() & _sums(after).keys()):
            keys = [
                key
                for key in {**before, **after}
                if key[0] == origin and not _belongs_to_swap(key, before, after, swapping)
            ]
            change = [after.get(key, 0.0) - before.get(key, 0.0) for key in keys]
            moved = max(sum(c for c in change if c > 0), -sum(c for c in change if c < 0))
            subject = f"{at}: {model} from {origin}"
            if moved > policy.max_step + TOLERANCE:
                message = f"moves {moved:.9g} of the traffic; max_step is {policy.max_step:g}"
                yield Violation(rule="max_step", subject=subject, message=message)
            fresh = sum(after.get(key, 0.0) for key in keys if key[2] not in served)
            if fresh > policy.canary + TOLERANCE:
                message = f"a new generation starts at {fresh:.9g}; the canary is {policy.canary:g}"
                yield Violation(rule="canary", subject=subject, message=message)

    def _ends(self) -> Iterator[Violation]:
        empty = ReplayState({}, {})
        for model in sorted(self.now.keys() | self.end.keys()):
            now, end = self.now.get(model, empty), self.end.get(model, empty)
            wrong = [k for k in {**end.held, **now.held} if end.held.get(k, 0) != now.held.get(k, 0)]
            if wrong:
                where, what = "/".join(map(str, (model, *min(wrong)))), "the replicas after the last wave"
                yield Violation(rule="end", subject=where, message=f"{what} are not the target's")
            off = [k for k in {**end.sent, **now.sent} if abs(end.sent.get(k, 0.0) - now.sent.get(k, 0.0)) > TOLERANCE]
            if off:
                where, what = "/".join(map(str, (model, *min(off)))), "the traffic after the last wave"
                yield Violation(rule="end", subject=where, message=f"{what} is not the target's")

    def _surge(self) -> Iterator[Violation]:
        stated = {(item.region, item.hardware): item.units for item in self.transition.surge}
        last: dict[Row, float] = defaultdict(float)
        for model, standing in self.end.items():
            for row, units in self.facts.used(model, standing.held).items():
                last[row] += units
        for row, units in sorted(self.peak.items()):
            over = units - max(self.began.get(row, 0.0), last.get(row, 0.0))
            if over > stated.get(row, 0.0) + TOLERANCE * max(1.0, units):
                message = f"{over:.9g} units taken beyond both states, {stated.get(row, 0.0):.9g} stated"
                yield Violation(rule="surge", subject=f"{row[0]}/{row[1]}", message=message)

    def _allowed_dips(self) -> Iterator[Violation]:
        for (model, part, region), fraction in sorted(self.dips.items()):
            policy = self.facts.policy(model)
            most = policy.max_dip if policy.when_short == "dip" else 0.0
            if fraction > most + TOLERANCE:
                message = f"a dip of {fraction:.9g} is stated; the policy allows {most:.9g}"
                yield Violation(rule="dip", subject=f"{model}/{part} in {region}", message=message)


def _belongs_to_swap(key: tuple[str, str, int], before: Sent, after: Sent, swapping: ModelSwaps) -> bool:
    """Check whether a move of one region's users within a serving region belongs to its smallest possible swap."""
    origin, region, _ = key
    here = [other for other in {**before, **after} if other[:2] == (origin, region)]
    change = {other: after.get(other, 0.0) - before.get(other, 0.0) for other in here}
    old = sum(before.get(other, 0.0) for other in here if change[other] < 0)
    moved = sum(c for c in change.values() if c > 0)
    return abs(sum(change.values())) <= TOLERANCE and 0 < moved <= old * swapping.least(region) + TOLERANCE


def _models(items: Iterable[GenerationReplicas | RouteChange]) -> list[str]:
    return sorted({item.model for item in items})


def _standings(state: FleetState) -> dict[str, ReplayState]:
    found: dict[str, ReplayState] = defaultdict(lambda: ReplayState({}, {}))
    for row in state.replicas:
        if row.count:
            found[row.model].held[row.part, row.region, row.hardware, row.generation] = row.count
    for share in state.traffic:
        if share.fraction:
            found[share.model].sent[share.origin, share.to, share.generation] = share.fraction
    return dict(found)


def _copy_standings(standings: Mapping[str, ReplayState]) -> dict[str, ReplayState]:
    return {model: ReplayState(dict(s.held), dict(s.sent)) for model, s in standings.items()}


def _sums(sent: Sent) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for (origin, _, _), fraction in sent.items():
        total[origin] += fraction
    return total
