"""Plans for whole fleets: prices, configurations for each model, whole numbers, and a proof of their quality.

Called by `planner.solve`. The stated problem falls into one small problem for each model once every unit of supply,
every dollar of an owner's budget and every move has a price (Lagrangian relaxation). `planner.fleet.column_generation`
finds the prices, `planner.fleet.configuration` the best configuration of a model at them, `planner.fleet.rounding` one
whole configuration for each model within all limits, and `planner.bound.bound` proves how much less any plan could
cost. The work is counted, not timed: the same problem gives the same plan, unless the time limit ends the search.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from ipnext.model.planning.plan import Problem
from planner.bound.bound import Hints, lower_bounds, total_bound
from planner.core.arrays import FleetArrays, Floats, Ints, Prices
from planner.fleet.column_generation import Found, SearchEffort, SharedLimits, search
from planner.fleet.pricing import POLISHED, Columns, Placer, Single, best_columns, join_columns
from planner.fleet.rounding import Improvement, RoundingState, allocate_columns, complete
from planner.kernels import prepare


@dataclass(frozen=True)
class FleetAnswer:
    """A configuration for each model, the bound on the cost of any plan, and the prices that prove it."""

    configurations: tuple[Single, ...]
    objective: float
    """$/h"""
    bound: float
    """$/h, over all plans of the stated problem."""
    considered: int
    """Configurations that the price search generated, all models together."""
    considered_bound: float
    """$/h, over plans made of these alone; the difference is the cost of the rounding."""
    prices: Prices
    rounds: int
    out_of_time: bool

    @property
    def gap(self) -> float:
        """Of the objective."""
        return (self.objective - self.bound) / self.objective if self.objective > 0 else 0.0


def solve_fleet(problem: Problem, arrays: FleetArrays | None = None, *, from_scratch: bool = False) -> FleetAnswer:
    """Return the best plan found for a valid problem, of any size.

    If most models run already, their placements are adapted to the problem. Everything is planned again if that proves
    too expensive, if nothing runs, or if `from_scratch` requests it. The time limit begins once the kernels are ready.
    """
    prepare()
    ends = time.monotonic() + problem.limits.time_seconds
    fleet = FleetArrays.of(problem) if arrays is None else arrays
    with threadpool_limits(
        limits=1, user_api="blas"
    ):  # the vectors are short, and more threads would also sum in another order
        return _solve_from_scratch(fleet, ends) if from_scratch else _solve_fleet(problem, fleet, ends)


def _solve_fleet(problem: Problem, fleet: FleetArrays, ends: float) -> FleetAnswer:
    if _mostly_running(fleet):
        adapted = _adapt(fleet, ends, problem.limits.gap)
        late = fleet.models <= FEW and adapted.out_of_time
        if late or adapted.gap <= max(problem.limits.gap, ADAPTED_GAP):
            return adapted
    return _solve_from_scratch(fleet, ends)


ADAPTED_GAP = 0.03
"""If an adapted plan has a wider gap than this (and than requested), a new one replaces it."""


def _mostly_running(arrays: FleetArrays) -> bool:
    """Check whether at least half of the demand is of models that run already."""
    first = arrays.option_start[arrays.part_start]
    running = np.concatenate([[0], np.cumsum(arrays.current.sum(axis=1) > 0)])
    alive = running[first[1:]] > running[first[:-1]]
    size = size_of(arrays)
    return bool(size[alive].sum() > 0.5 * size.sum())


def _solve_from_scratch(fleet: FleetArrays, ends: float) -> FleetAnswer:
    """Plan everything again.

    Among few models the time limit holds for each step: after it, a step does the least that gives a plan and a bound.
    Among many it ends the improvement alone, as a plan without prices and a proof of all would be worth little.
    """
    strict = ends if fleet.models <= FEW else math.inf
    found = find_prices(fleet, strict)
    every = np.arange(fleet.models, dtype=np.int64)
    last = EFFORT_QUICK if _is_over(strict) else _effort_last(fleet)
    columns = join_columns([found.columns, best_columns(fleet, found.prices, every, effort=last)])
    limits = SharedLimits.of(fleet)
    price = limits.values(found.prices)
    effort = EFFORT_PROOF if fleet.models <= MANY else EFFORT_PROOF_OF_MANY
    least = _least(limits, fleet, columns, price)
    effort = EFFORT_PROOF_ADAPTED if _is_over(strict) else effort
    bounds = lower_bounds(fleet, found.prices, Hints(upper=least), effort)
    if not _is_over(strict):
        doubtful = np.flatnonzero(least - bounds > DOUBTFUL * least)
        polished = best_columns(fleet, found.prices, doubtful, effort=POLISHED + _moves_tried(fleet))
        columns = join_columns([columns, polished])
    placer = Placer(fleet)
    holding = allocate_columns(fleet, limits, columns, price, placer)
    complete(holding, placer, found.prices, _largest_first(fleet, every))
    least = _least(limits, fleet, columns, price)
    improvement = Improvement(holding, placer, found.prices, least)
    improvement.ease(ATTEMPTS_EASE, strict)
    out_of_time = improve(improvement, ends, _rounds(fleet), ATTEMPTS) or _is_over(strict)
    if _is_over(strict):
        bound = max(0.0, total_bound(fleet, found.prices, bounds))
    else:
        bound = proven(fleet, found.prices, least, bounds, effort)
    among = float(least.sum() - price @ limits.amount)
    return _answer(holding, bound, found, (len(columns), among), out_of_time=out_of_time)


def _is_over(ends: float) -> bool:
    return time.monotonic() > ends


def _adapt(fleet: FleetArrays, ends: float, enough: float) -> FleetAnswer:
    """Adapt the running placements with as few changes as today's demand needs, then place the worst models again.

    If the first step is proved good enough already (`enough`, the requested gap), nothing else moves.
    """
    every = np.arange(fleet.models, dtype=np.int64)
    limits = SharedLimits.of(fleet)
    strict = ends if fleet.models <= FEW else math.inf
    kept = best_columns(fleet, nothing(fleet), every, effort=0)
    holding = RoundingState.of(fleet, limits, kept)
    sampled = _sampled_prices(fleet, holding, strict)
    least = lower_bounds(
        fleet, sampled.prices, None, EFFORT_PROOF_OF_MANY if fleet.models <= MANY else EFFORT_PROOF_ADAPTED
    )
    bound = max(0.0, total_bound(fleet, sampled.prices, least))
    fits = bool((holding.left >= 0).all() and (kept.hardware <= fleet.model_budget).all() and not kept.unmet.any())
    if fits and holding.cost.sum() * (1 - enough) <= bound:
        return _answer(holding, bound, sampled, (0, 0.0), out_of_time=False)
    found = _priced_changes(fleet, sampled, kept, least, strict)
    price = limits.values(found.prices)
    placer = Placer(fleet)
    holding = allocate_columns(fleet, limits, found.columns, price, placer)
    complete(holding, placer, found.prices, _largest_first(fleet, every))
    improvement = Improvement(holding, placer, found.prices, _least(limits, fleet, found.columns, price))
    improvement.ease(ATTEMPTS_EASE, strict)
    out_of_time = improve(improvement, ends, ROUNDS_ADAPTED, ATTEMPTS_ADAPTED) or _is_over(strict)
    return _answer(holding, bound, found, (0, 0.0), out_of_time=out_of_time)


def _priced_changes(fleet: FleetArrays, sampled: Found, kept: Columns, least: Floats, ends: float) -> Found:
    """Return prices and configurations near the running ones.

    New ones too for models that today's prices make expensive.
    """
    every = np.arange(fleet.models, dtype=np.int64)
    limits = SharedLimits.of(fleet)
    pool = join_columns([kept, sampled.columns, best_columns(fleet, sampled.prices, every, effort=0)])
    regret = _least(limits, fleet, pool, limits.values(sampled.prices)) - least
    dear = np.sort(np.argsort(-regret, kind="stable")[: max(DEAR_LEAST, int(DEAR_SHARE * fleet.models))])
    pool = join_columns([pool, best_columns(fleet, sampled.prices, dear, effort=EFFORT_DEAR)])
    near = SearchEffort(rounds=12, effort=0, width=0.3)
    return search(fleet, every, near, start=sampled.prices, columns=pool, ends=ends)


ATTEMPTS_EASE = 150
"""Models that may be moved off a limit that rounding exceeds."""

DEAR_SHARE, DEAR_LEAST, EFFORT_DEAR = 0.15, 300, 20
"""Models that are planned again when a plan is adapted, and the evaluations for each."""


def _answer(
    holding: RoundingState, bound: float, found: Found, among: tuple[int, float], *, out_of_time: bool
) -> FleetAnswer:
    return FleetAnswer(
        configurations=tuple(single for single in holding.chosen if single is not None),
        objective=float(holding.cost.sum()),
        bound=bound,
        considered=among[0],
        considered_bound=among[1],
        prices=found.prices,
        rounds=found.rounds,
        out_of_time=out_of_time,
    )


def _least(limits: SharedLimits, arrays: FleetArrays, columns: Columns, price: Floats) -> Floats:
    """Return (M,) the priced cost of each model's best column; `columns` has some of every model."""
    z = columns.cost + limits.measure_usage(arrays, columns) @ price
    least: Floats = np.minimum.reduceat(z, np.unique(columns.model, return_index=True)[1])
    return least


def nothing(arrays: FleetArrays) -> Prices:
    """Return prices of zero."""
    return Prices(np.zeros_like(arrays.supply), np.zeros_like(arrays.owner_budget), 0.0)


def _sampled_prices(arrays: FleetArrays, holding: RoundingState, ends: float) -> Found:
    """Return prices from a few models, on their part of each limit."""
    some = _sample(arrays, SAMPLE, LARGE)
    amount = _part_of(holding.limits.amount, holding.takes[some].sum(axis=0), holding.takes.sum(axis=0))
    quick = SearchEffort(rounds=8, effort=EFFORT_QUICK, enough=3e-3)
    return search(arrays, some, quick, amount=amount, ends=ends)


SAMPLE, LARGE = 500, 200
"""Models that an adapted plan takes its prices from; of these, the largest."""


def _sample(arrays: FleetArrays, number: int, largest: int) -> Ints:
    """Sample `number` models (or all): the `largest` ones and random others."""
    order = _largest_first(arrays, np.arange(arrays.models, dtype=np.int64))
    others = order[largest:]
    if len(others) > number - largest:
        others = np.random.Generator(np.random.PCG64(0)).choice(others, number - largest, replace=False)
    return np.sort(np.concatenate([order[:largest], others]))


def _part_of(amount: Floats, taken: Floats, all_taken: Floats) -> Floats:
    """Return (L,) the part of each limit for some models, by their share of its total usage.

    Zero if no model uses it.
    """
    return amount * np.where(all_taken > 0, taken / np.where(all_taken > 0, all_taken, 1.0), 0.0)


EFFORT_QUICK, EFFORT_FIRST = 4, 40
"""Evaluations for a model in the first rounds of the price search, and in the later ones."""


def _effort_last(arrays: FleetArrays) -> int:
    """Return evaluations for a model at the final prices: fewer if there are many models."""
    return 300 if arrays.models <= MANY else 80


def _rounds(arrays: FleetArrays) -> int:
    """Return rounds of placing models again: among many models each one matters less."""
    return ROUNDS if arrays.models <= FEW else 1


FEW, MANY = 300, 3_000

DOUBTFUL = 2e-3
"""Share of its cost by which a model's best configuration may exceed its bound without being polished."""


def _moves_tried(arrays: FleetArrays) -> int:
    """Return moves of load that are tried for a doubtful model."""
    return 300 if arrays.models <= MANY else 60


def prices_of(problem: Problem) -> Prices:
    """Return the value of one more unit of each shared limit, as near to the best dual prices as the search comes."""
    return find_prices(FleetArrays.of(problem)).prices


def find_prices(arrays: FleetArrays, ends: float = math.inf) -> Found:
    """Find prices from quick proposals first, then from good ones; after `ends`, by `time.monotonic`, from none more.

    In a large fleet, proposals of some models come first, then those of all.
    """
    every = np.arange(arrays.models, dtype=np.int64)
    if arrays.models <= MANY:
        return _search_columns(arrays, every, None, ends)
    first = best_columns(arrays, nothing(arrays), every, effort=EFFORT_QUICK)
    some = _sample(arrays, SAMPLE_ANEW, LARGE_ANEW)
    limits = SharedLimits.of(arrays)
    taken = limits.measure_usage(arrays, first)
    share = _part_of(limits.amount, taken[some].sum(axis=0), taken.sum(axis=0))
    found = _search_columns(arrays, some, share, ends)
    last = SearchEffort(rounds=ROUNDS_LAST, effort=EFFORT_QUICK, width=0.2)
    return search(arrays, every, last, start=found.prices, columns=join_columns([first, found.columns]), ends=ends)


def _search_columns(arrays: FleetArrays, models: Ints, amount: Floats | None, ends: float) -> Found:
    quick = search(arrays, models, SearchEffort(rounds=8, effort=EFFORT_QUICK, enough=2e-3), amount=amount, ends=ends)
    if _is_over(ends):
        return quick
    more = SearchEffort(rounds=8, effort=EFFORT_FIRST, width=0.3)
    return search(arrays, models, more, start=quick.prices, columns=quick.columns, amount=amount, ends=ends)


SAMPLE_ANEW, LARGE_ANEW = 3_000, 1_000
"""Models that a large fleet takes its first prices from; of these, the largest."""
ROUNDS_LAST = 4
"""Rounds in which all its models then propose."""


def size_of(arrays: FleetArrays) -> Floats:
    """Return (M,) $/h of the demand on the cheapest hardware of each part, roughly."""
    offered = arrays.supply > 0
    usual = float(arrays.unit_cost[offered].mean()) if offered.any() else 1.0
    cost = np.where(offered, arrays.unit_cost, 0.0).sum(axis=0) / np.maximum(1, offered.sum(axis=0))
    kind = np.where(offered.any(axis=0), cost, usual)
    each = arrays.option_units * kind[arrays.option_hardware] / arrays.option_qps
    if not len(each):
        return np.zeros(arrays.models)
    part = np.minimum.reduceat(each, arrays.option_start[:-1])
    size: Floats = arrays.qps.sum(axis=1) * np.add.reduceat(part, arrays.part_start[:-1])
    return size


def _largest_first(arrays: FleetArrays, models: Ints) -> Ints:
    return models[np.argsort(-size_of(arrays)[models], kind="stable")]


def improve(improvement: Improvement, ends: float, rounds: int, attempts: int) -> bool:
    """Run rounds of placing models again, the worst placed first. True if the time limit ended it."""
    improvement.serve_short()
    late = _improve(improvement, ends, rounds, attempts)
    improvement.enforce()
    improvement.serve_on_the_rest()
    return late


def _improve(improvement: Improvement, ends: float, rounds: int, attempts: int) -> bool:
    holding = improvement.holding
    free = nothing(holding.arrays)
    for _ in range(rounds):
        before = float(holding.cost.sum()) + holding.over()
        regret = improvement.regrets()
        worst = [int(m) for m in np.argsort(-regret, kind="stable")[:attempts] if regret[m] > 1e-9]
        for number, m in enumerate(worst):
            if time.monotonic() > ends:
                return True
            if number < attempts // 4:
                improvement.exchange(m, (2, 5))
            improvement.attempt([m], free)
        improvement.serve_short()
        after = float(holding.cost.sum()) + holding.over()
        if before - after < 1e-4 * before:
            break
    return False


ROUNDS, ROUNDS_ADAPTED = 3, 1
ATTEMPTS, ATTEMPTS_ADAPTED = 200, 40
"""Models placed again in a round."""

EFFORT_PROOF, EFFORT_PROOF_OF_MANY, EFFORT_PROOF_ADAPTED = 40, 20, 2
"""Steps of the proof for each model."""


BRANCHES, BRANCHES_OF_MANY = 12, 2
"""Branches of the proof, for each model on average."""
MOST_BRANCHES, FEWEST_BRANCHES = 200, 4
"""Branches for one model; if its share would be fewer, none."""


def proven(arrays: FleetArrays, prices: Prices, least: Floats, bounds: Floats, effort: int) -> float:
    """Return the $/h that no plan of the stated problem undercuts.

    `least` (M,) is the best known cost of the models, and `bounds` (M,) their lower bound: if that leaves a gap, the
    models are bounded again, with branches distributed by the gaps.
    """
    gap = np.maximum(0.0, least - bounds)
    total = arrays.models * (BRANCHES if arrays.models <= MANY else BRANCHES_OF_MANY)
    nodes = np.minimum(total * gap / max(float(gap.sum()), 1e-300), MOST_BRANCHES).astype(np.int64)
    nodes[nodes < FEWEST_BRANCHES] = 0
    again = lower_bounds(arrays, prices, Hints(upper=least), effort, nodes)
    return max(0.0, total_bound(arrays, prices, np.maximum(bounds, again)))
