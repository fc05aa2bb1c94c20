"""From one state of the fleet to another in safe waves. Called by the transition activity and the command.

Each model walks its own steps (`planner.steps`). Models walk side by side as far as the supply holds them; one that needs
what another frees waits until that one has arrived. Where the steps do not fit they are made smaller; where no order fits
the transition is refused, with the surge it would need. What leaves here has passed `check_transition`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ipnext.errors import InvalidInput
from ipnext.model.plan import Problem
from ipnext.model.rollout import FleetState, GenerationReplicas, RouteChange, Share, SurgeItem, Transition, Wave
from planner.replay import Fleet, check_state, check_transition
from planner.solution import rules_of
from planner.steps import ONE_BY_ONE, Copy, Flow, Gate, Standing, Step, StepPolicy, steps

__all__ = ["StepPolicy", "check_transition", "plan_transition"]

Row = tuple[str, str]
"""Region, hardware."""
FINER = (1, 2, 4, 8, ONE_BY_ONE)
"""How many times smaller steps may get before a transition is refused."""
SLACK = 1e-6


def plan_transition(
    problem: Problem, origin: FleetState, to: FleetState, policies: Mapping[str, StepPolicy]
) -> Transition:
    """Waves from `origin` to `to`, or the reason why there are none in `refused`.

    A model without a policy has the default one. In a refused transition `surge` is what the waves would need beyond the
    larger of the two states. Raises InvalidInput for names that the problem does not have.
    """
    check_names(problem, origin, "from")
    check_names(problem, to, "to")
    broken = check_state(problem, to, origin, policies)
    if broken:
        reason = f"the target breaks {'; '.join(rules_of(broken))}"
        return Transition(origin=origin, to=to, refused=reason)
    planning = _Planning(problem, origin, to, policies)
    walked = planning.walked()
    if walked is None:
        return planning.refused()
    transition = Transition(origin=origin, to=to, waves=tuple(planning.waves(walked)), surge=planning.surge(walked))
    found = check_transition(problem, transition, policies)
    if found:
        return Transition(origin=origin, to=to, refused=f"the waves would break {'; '.join(rules_of(found))}")
    return transition


def check_names(problem: Problem, state: FleetState, field: str) -> None:
    """Raises InvalidInput for a name that the problem does not have, an entry that stands twice or a sum above 1."""
    options = {f"{m.model}/{p.part}/{o.hardware}" for m in problem.models for p in m.parts for o in p.options}
    seen: set[tuple[str | int, ...]] = set()
    for index, item in enumerate(state.replicas):
        where = f"{field}.replicas[{index}]"
        _known(where, f"{item.model}/{item.part}/{item.hardware}", options)
        _known(f"{where}.region", item.region, problem.regions)
        _new(where, (item.model, item.part, item.region, item.hardware, item.generation), seen)
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for index, share in enumerate(state.traffic):
        where = f"{field}.traffic[{index}]"
        _known(f"{where}.model", share.model, [model.model for model in problem.models])
        _known(f"{where}.from", share.origin, problem.regions)
        _known(f"{where}.to", share.to, problem.regions)
        _new(where, (share.model, share.origin, share.to, share.generation), seen)
        sums[share.model, share.origin] += share.fraction
        if sums[share.model, share.origin] > 1 + SLACK:
            msg = f"{where}: the shares of {share.model} from {share.origin} sum to more than 1"
            raise InvalidInput(msg, field=where, value=sums[share.model, share.origin], allowed=["a sum of at most 1"])


def _known(field: str, name: str, known: Sequence[str] | set[str]) -> None:
    if name not in known:
        listed = sorted(known)
        msg = f"{field}: unknown {name!r}; known: {', '.join(listed)}"
        raise InvalidInput(msg, field=field, value=name, allowed=listed)


def _new(field: str, key: tuple[str | int, ...], seen: set[tuple[str | int, ...]]) -> None:
    if key in seen:
        named = "/".join(map(str, key))
        msg = f"{field}: {named} stands twice; allowed: each entry once"
        raise InvalidInput(msg, field=field, value=named, allowed=["each entry once"])
    seen.add(key)


@dataclass(frozen=True)
class _Batch:
    """Models that walk side by side, each with its steps."""

    walks: Mapping[str, Sequence[Step]]

    @property
    def length(self) -> int:
        return max(map(len, self.walks.values()))


class _Planning:
    def __init__(
        self, problem: Problem, origin: FleetState, to: FleetState, policies: Mapping[str, StepPolicy]
    ) -> None:
        self.problem, self.state, self.goal = problem, origin, to
        names = [model.model for model in problem.models]
        self.policies = {name: policies.get(name, StepPolicy()) for name in names}
        self.origin, self.to = standings(origin), standings(to)
        self.moving = [name for name in sorted(names) if self.at(self.origin, name) != self.at(self.to, name)]
        self.units = {
            (m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options
        }
        self.before = self._total({name: self.at(self.origin, name).counts for name in names})
        self.after = self._total({name: self.at(self.to, name).counts for name in names})
        self.limits = Fleet(problem).limits(self.before)

    @staticmethod
    def at(standing: Mapping[str, Standing], model: str) -> Standing:
        return standing.get(model, Standing())

    def used(self, model: str, counts: Mapping[Copy, int]) -> dict[Row, float]:
        """Units of one model by region and hardware."""
        groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for (part, region, hardware, _), count in counts.items():
            groups[part, region, hardware].append(count)
        joined = max if self.policies[model].refresh == "in_place" else sum
        units: dict[Row, float] = defaultdict(float)
        for (part, region, hardware), of_generations in groups.items():
            units[region, hardware] += joined(of_generations) * self.units[model, part, hardware]
        return units

    def _total(self, counts: Mapping[str, Mapping[Copy, int]]) -> dict[Row, float]:
        total: dict[Row, float] = defaultdict(float)
        for model in sorted(counts):
            for row, units in self.used(model, counts[model]).items():
                total[row] += units
        return total

    def walked(self) -> list[_Batch] | None:
        """Batches that fit the supply, by the first order of the models that leads to the end."""
        orders: Sequence[Callable[[str], object]] = (
            lambda name: name,
            self._net_units,
            lambda name: [-ord(c) for c in name],
        )
        for order in orders:
            batches, stuck = self._batches(sorted(self.moving, key=order))  # type: ignore[arg-type]  # keys of one order compare
            if not stuck:
                return batches
        return None

    def _net_units(self, model: str) -> float:
        """Units that a model takes more at its end than at its start: those that free come first."""
        before, after = self.at(self.origin, model), self.at(self.to, model)
        return sum(self.used(model, after.counts).values()) - sum(self.used(model, before.counts).values())

    def _batches(self, order: Sequence[str]) -> tuple[list[_Batch], list[str]]:
        """Batches as far as they go, and the models that no batch could take."""
        pending, batches, total = list(order), list[_Batch](), dict(self.before)
        while pending:
            batch = self._batch(pending, total)
            if not batch.walks:
                return batches, pending
            batches.append(batch)
            pending = [name for name in pending if name not in batch.walks]
            for name in batch.walks:
                _add(total, self.used(name, self.at(self.to, name).counts), 1.0)
                _add(total, self.used(name, self.at(self.origin, name).counts), -1.0)
        return batches, []

    def _batch(self, pending: Sequence[str], total: Mapping[Row, float]) -> _Batch:
        """Every pending model that can walk beside the ones before it; with smaller steps where none can else."""
        for finer in FINER:
            walks: dict[str, Sequence[Step]] = {}
            phases = [dict(total)]  # units after the scale-up of each wave; the last one stands for all later ones
            for name in pending:
                walk = steps(self.at(self.origin, name), self.at(self.to, name), self.policies[name], finer=finer)
                tried = self._beside(phases, name, walk)
                if all(units <= self.limits[row] + SLACK for phase in tried for row, units in phase.items()):
                    walks[name], phases = walk, tried
            if walks:
                return _Batch(walks)
        return _Batch({})

    def _beside(self, phases: Sequence[Mapping[Row, float]], name: str, walk: Sequence[Step]) -> list[dict[Row, float]]:
        """The units of each wave when one more model walks along."""
        own = self.used(name, self.at(self.origin, name).counts)
        taken = [self.used(name, step.up) for step in walk] + [self.used(name, walk[-1].down)]
        joined: list[dict[Row, float]] = []
        for wave in range(max(len(phases), len(taken))):
            phase = dict(phases[min(wave, len(phases) - 1)])
            _add(phase, own, -1.0)
            _add(phase, taken[min(wave, len(taken) - 1)], 1.0)
            joined.append(phase)
        return joined

    def waves(self, batches: Sequence[_Batch]) -> Iterator[Wave]:
        """The waves of all batches, one batch after the other."""
        standing = dict(self.origin)
        for batch in batches:
            for k in range(batch.length):
                yield self._wave({m: walk[k] for m, walk in batch.walks.items() if k < len(walk)}, standing)

    def _wave(self, taken: Mapping[str, Step], standing: dict[str, Standing]) -> Wave:
        up, down, route = list[GenerationReplicas](), list[GenerationReplicas](), list[RouteChange]()
        for model, step in sorted(taken.items()):
            now = self.at(standing, model)
            up += _replicas(model, step.up, now.counts)
            route += _routes(model, now.shares, step.shares)
            down += _replicas(model, step.down, step.up)
            standing[model] = Standing(step.down, step.shares)
        gates = {step.gate for step in taken.values()}
        gate: Gate = "canary" if "canary" in gates else "step" if "step" in gates else "final"
        hold = max(self.policies[model].hold_seconds for model in taken)
        return Wave(scale_up=tuple(up), route=tuple(route), scale_down=tuple(down), hold_seconds=hold, gate=gate)

    def surge(self, batches: Sequence[_Batch]) -> tuple[SurgeItem, ...]:
        """Units that the waves take beyond the larger of the two states, at their highest."""
        return self._beyond(self._peak(batches))

    def _beyond(self, peak: Mapping[Row, float]) -> tuple[SurgeItem, ...]:
        over = {row: units - max(self.before.get(row, 0.0), self.after.get(row, 0.0)) for row, units in peak.items()}
        return tuple(
            SurgeItem(region=row[0], hardware=row[1], units=round(units, 9))
            for row, units in sorted(over.items())
            if units > SLACK
        )

    def _peak(self, batches: Sequence[_Batch]) -> dict[Row, float]:
        standing = {name: self.at(self.origin, name).counts for name in self.policies}
        peak: dict[Row, float] = {}
        for batch in batches:
            for k in range(batch.length):
                step = {m: walk[k] for m, walk in batch.walks.items() if k < len(walk)}
                for row, units in self._total({**standing, **{m: s.up for m, s in step.items()}}).items():
                    peak[row] = max(peak.get(row, 0.0), units)
                standing |= {m: s.down for m, s in step.items()}
        return peak

    def refused(self) -> Transition:
        """The refusal: what the models that no order can take would need, one after the other in the smallest steps."""
        batches, stuck = self._batches(self.moving)
        for name in stuck:
            walk = steps(self.at(self.origin, name), self.at(self.to, name), self.policies[name], finer=FINER[-1])
            batches.append(_Batch({name: walk}))
        peak = self._peak(batches)
        short = {
            row: units - self.limits[row] for row, units in sorted(peak.items()) if units > self.limits[row] + SLACK
        }
        needs = ", ".join(f"{units:.9g} units more of {r}/{h} than its supply" for (r, h), units in short.items())
        dips = ", ".join(
            f"{self._dip(stuck, row, units):.0%} of their throughput in {row[0]}" for row, units in short.items()
        )
        reason = f"supply: {', '.join(stuck)} cannot move without a surge of {needs or 'no one row'}; without it they dip by {dips or 'an unknown part'}"
        return Transition(origin=self.state, to=self.goal, surge=self._beyond(peak), refused=reason)

    def _dip(self, stuck: Sequence[str], row: Row, units: float) -> float:
        """Part of the stuck models' units of a row that would have to go before it is replaced."""
        held = sum(self.used(name, self.at(self.origin, name).counts).get(row, 0.0) for name in stuck)
        return min(1.0, units / held) if held else 1.0


def standings(state: FleetState) -> dict[str, Standing]:
    """A fleet's state by model, without zeros."""
    counts: dict[str, dict[Copy, int]] = defaultdict(dict)
    shares: dict[str, dict[Flow, float]] = defaultdict(dict)
    for item in state.replicas:
        if item.count:
            counts[item.model][item.part, item.region, item.hardware, item.generation] = item.count
    for share in state.traffic:
        if share.fraction:
            shares[share.model][share.origin, share.to, share.generation] = share.fraction
    return {model: Standing(counts.get(model, {}), shares.get(model, {})) for model in sorted({*counts, *shares})}


def _add(total: dict[Row, float], units: Mapping[Row, float], sign: float) -> None:
    for row, amount in units.items():
        total[row] = total.get(row, 0.0) + sign * amount


def _replicas(model: str, counts: Mapping[Copy, int], before: Mapping[Copy, int]) -> list[GenerationReplicas]:
    """New absolute counts of what changes."""
    return [
        GenerationReplicas(
            model=model, part=copy[0], generation=copy[3], region=copy[1], hardware=copy[2], count=counts.get(copy, 0)
        )
        for copy in sorted(counts.keys() | before.keys())
        if counts.get(copy, 0) != before.get(copy, 0)
    ]


def _routes(model: str, before: Mapping[Flow, float], after: Mapping[Flow, float]) -> list[RouteChange]:
    """The whole new shares of every region of users whose shares change."""
    changes = []
    for origin in sorted({flow[0] for flow in [*before, *after]}):
        old = {flow: fraction for flow, fraction in before.items() if flow[0] == origin}
        new = {flow: fraction for flow, fraction in sorted(after.items()) if flow[0] == origin}
        if old != new:
            shares = tuple(Share(to=to, generation=g, fraction=fraction) for (_, to, g), fraction in new.items())
            changes.append(RouteChange(model=model, origin=origin, shares=shares))
    return changes
