"""One whole configuration for each model, from prices and proposals, that together keep every shared limit.

Called by `planner.fleet.solver`. Models whose best column stands out take it; for the others a small linear program
distributes the rest of the limits. At a vertex no more models are split than limits bind: these get the mean of their
columns, rounded up. Models are moved off limits that this exceeds. Then models are removed and placed again, one or a
few at a time, for as long as that lowers the objective.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import scipy.sparse as sp

from planner.core.arrays import FleetArrays, Floats, Ints, Prices
from planner.fleet.blending import EXACT, blend_columns
from planner.fleet.column_generation import SharedLimits
from planner.fleet.pricing import Columns, Placer, Single

NEAR = 0.05
"""A column takes part in the linear program if it costs at most this share more than its model's best one."""
MOST_NEAR = 30_000
"""Columns beyond their models' best ones that take part, at most."""

WHOLE = 1 - 1e-7
"""A share from here on counts as the whole model."""


@dataclass
class RoundingState:
    """The configuration of each model (or none yet), and the rest of the limits."""

    arrays: FleetArrays
    limits: SharedLimits
    chosen: list[Single | None]
    """(M,)"""
    left: Floats
    """(L,) of each limit; below zero if the models use more than there is."""
    cost: Floats
    """(M,) $/h."""
    takes: Floats
    """(M, L) of each limit."""

    @classmethod
    def empty(cls, arrays: FleetArrays, limits: SharedLimits) -> "RoundingState":
        """Return a holding in which no model has a configuration."""
        models = arrays.models
        takes = np.zeros((models, len(limits.amount)))
        return cls(arrays, limits, [None] * models, limits.amount.copy(), np.zeros(models), takes)

    @classmethod
    def of(cls, arrays: FleetArrays, limits: SharedLimits, columns: Columns) -> "RoundingState":
        """Build a holding with one column for each model, in order, within the limits or not."""
        takes = limits.measure_usage(arrays, columns).toarray()
        chosen: list[Single | None] = [Single.of(columns, m) for m in range(arrays.models)]
        return cls(arrays, limits, chosen, limits.amount - takes.sum(axis=0), columns.cost.copy(), takes)

    def measure_usage(self, m: int, single: Single) -> Floats:
        """Return (L,) the usage of each limit by a configuration of model m."""
        owner = single.hardware * (self.limits.owners == self.arrays.owner[m])
        tail = [single.started] if self.limits.moves else []
        return np.concatenate([single.use(self.arrays)[self.limits.cells], owner, tail])

    def put(self, m: int, single: Single) -> None:
        """Assign this configuration to model m."""
        self.chosen[m] = single
        self.takes[m] = self.measure_usage(m, single)
        self.left -= self.takes[m]
        self.cost[m] = single.cost

    def lift(self, m: int) -> Single | None:
        """Remove the configuration of model m, and return it."""
        single = self.chosen[m]
        if single is not None:
            self.left += self.takes[m]
            self.chosen[m] = None
            self.cost[m] = 0.0
            self.takes[m] = 0.0
        return single

    def over(self) -> float:
        """Return the penalty in $/h for usage beyond the limits: far more than it could save."""
        return float(np.maximum(0.0, -self.left - 1e-9 * self.limits.amount) @ (1e3 * self.limits.scale))

    def supply(self) -> Floats:
        """Return (R, H) units that are left."""
        units = np.zeros(self.arrays.supply.size)
        units[self.limits.cells] = np.maximum(0.0, self.left[: len(self.limits.cells)])
        return units.reshape(self.arrays.supply.shape)

    def dollars(self, m: int) -> float:
        """Return $/h that model m may cost within its budget and the rest of its owner's."""
        budget = float(self.arrays.model_budget[m])
        at = np.flatnonzero(self.limits.owners == self.arrays.owner[m])
        if len(at):
            budget = min(budget, max(0.0, float(self.left[len(self.limits.cells) + at[0]])))
        return budget

    def moves(self) -> float:
        """Return the replicas that may still be started."""
        return max(0.0, float(self.left[-1])) if self.limits.moves else np.inf


def allocate_columns(
    arrays: FleetArrays, limits: SharedLimits, columns: Columns, price: Floats, placer: Placer
) -> RoundingState:
    """Return a configuration for each model: a whole column, or the mean of those that the linear program mixes.

    The means are rounded up, so the limits may be slightly exceeded. A model has none yet if all its columns are above
    its budget.
    """
    columns = columns.take(np.flatnonzero(columns.hardware <= arrays.model_budget[columns.model] * (1 + EXACT)))
    if not len(columns):
        return RoundingState.empty(arrays, limits)
    taken = limits.measure_usage(arrays, columns)
    z = columns.cost + taken @ price
    _, first, segment = np.unique(columns.model, return_index=True, return_inverse=True)
    least = np.minimum.reduceat(z, first)[segment]
    near = _near(z - least, np.abs(least))
    number = np.bincount(segment, weights=near)
    plain = near & (number[segment] == 1)
    rest = np.flatnonzero(near & ~plain)
    holding = RoundingState.empty(arrays, limits)
    for j in np.flatnonzero(plain):
        holding.put(int(columns.model[j]), Single.of(columns, int(j)))
    if len(rest):
        master = _Master(columns.cost[rest], taken[rest], columns.model[rest], holding.left, limits.scale)
        shares = master.shares()
        for j, x in zip(rest, shares, strict=True):
            if x >= WHOLE:
                holding.put(int(columns.model[j]), Single.of(columns, int(j)))
        _blend_the_split(holding, placer, columns.take(rest), shares)
    return holding


def _near(excess: Floats, least: Floats) -> Any:
    """Return (J,) whether a column takes part in the linear program: the most nearly best ones."""
    share = (excess - 1e-9) / np.maximum(least, 1e-9)
    others = np.sort(share[share > 0])
    return share <= (NEAR if len(others) <= MOST_NEAR else min(NEAR, others[MOST_NEAR]))


def _blend_the_split(holding: RoundingState, placer: Placer, columns: Columns, shares: Floats) -> None:
    """Assign the mean of their columns, in whole replicas, to the models that are still split.

    A model whose budget does not allow it stays split.
    """
    for m in np.unique(columns.model[(shares > EXACT) & (shares < WHOLE)]):
        if holding.chosen[m] is None:
            rows = np.flatnonzero((columns.model == m) & (shares > EXACT))
            count, flow = blend_columns(holding.arrays, int(m), columns, rows, shares[rows])
            single = placer.single(int(m), count, flow)
            if single.hardware <= holding.arrays.model_budget[m]:
                holding.put(int(m), single)


class _Master:
    """The linear program over some columns: least cost, each model's shares sum to 1.

    Exceeding a limit is expensive.
    """

    def __init__(self, cost: Floats, taken: Any, model: Ints, left: Floats, scale: Floats) -> None:
        _, segment = np.unique(model, return_inverse=True)
        models, limits, self.columns = int(segment.max()) + 1, len(left), len(cost)
        convexity = sp.csc_array((np.ones(len(cost)), (segment, np.arange(len(cost)))), shape=(models, len(cost)))
        over = [sp.hstack([taken.T, -sp.eye_array(limits)]), sp.hstack([convexity, sp.csc_array((models, limits))])]
        matrix = sp.csc_array(sp.vstack(over, format="csc"))
        lp = highspy.HighsLp()
        lp.num_col_, lp.num_row_ = len(cost) + limits, limits + models
        lp.col_cost_ = np.concatenate([cost, DEAR * scale])
        lp.col_lower_ = np.zeros(len(cost) + limits)
        lp.col_upper_ = np.full(len(cost) + limits, highspy.kHighsInf)
        lp.row_lower_ = np.concatenate([np.full(limits, -highspy.kHighsInf), np.ones(models)])
        lp.row_upper_ = np.concatenate([left, np.ones(models)])
        lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        lp.a_matrix_.start_ = matrix.indptr
        lp.a_matrix_.index_ = matrix.indices
        lp.a_matrix_.value_ = matrix.data
        self.solver: Any = highspy.Highs()  # type: ignore[no-untyped-call]  # highspy has no types
        for option, value in (("output_flag", False), ("threads", 1), ("random_seed", 0)):
            self.solver.setOptionValue(option, value)
        self.solver.passModel(lp)

    def shares(self) -> Floats:
        """Return (J,) of a basic optimum; zeros if the solver fails."""
        status = self.solver.run()
        if status == highspy.HighsStatus.kError or self.solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return np.zeros(self.columns)
        return np.array(self.solver.getSolution().col_value)[: self.columns]


EASE_PASSES = 3
EASE = 5.0
"""Multiple of a unit's natural price that moving a model off an exceeded limit may cost."""

SHORT = 200
"""Models with unmet demand that are served in one pass."""

DEAR = 200.0
"""Multiple of its natural price that a unit beyond a limit costs."""


def complete(holding: RoundingState, placer: Placer, prices: Prices, order: Ints) -> None:
    """Place the models of `order` that have no configuration yet, one after another, on the rest."""
    for m in order:
        if holding.chosen[m] is None:
            holding.put(int(m), place_one(holding, placer, prices, int(m)))


def place_one(holding: RoundingState, placer: Placer, prices: Prices, m: int, effort: int = 200) -> Single:
    """Return the best configuration of model m on the rest of every limit."""
    return placer.within(m, prices, holding.supply(), dollars=holding.dollars(m), moves=holding.moves(), effort=effort)


@dataclass
class Improvement:
    """Removes groups of models from a holding and places them again, keeping changes that lower the objective."""

    holding: RoundingState
    placer: Placer
    prices: Prices
    least: Floats
    """(M,) $/h at the prices of each model's best configuration."""
    effort: int = 60

    def __post_init__(self) -> None:
        self.price = self.holding.limits.values(self.prices)

    def regrets(self) -> Floats:
        """Return (M,) $/h, at the prices, by which each model's configuration is dearer than its best one."""
        return self.holding.cost + self.holding.takes @ self.price - self.least

    def attempt(self, group: list[int], prices: Prices) -> bool:
        """Place a group again in this order; True if that lowered the objective (else all is as before)."""
        h = self.holding
        before = float(h.cost[group].sum()) + h.over()
        kept = [(m, h.lift(m)) for m in group]
        left = h.left.copy()
        for m in group:
            h.put(m, place_one(h, self.placer, prices, m, self.effort))
        if float(h.cost[group].sum()) + h.over() < before * (1 - 1e-9) - 1e-9:
            return True
        for m in group:
            h.lift(m)
        h.left = left
        for m, single in kept:
            if single is not None:
                h.put(m, single)
        return False

    def rivals(self, m: int, number: int) -> list[int]:
        """Return models that hold most of the units that model m needs; the cheapest to leave unserved first."""
        h = self.holding
        wish = self.placer.best(m, self.prices, h.arrays.supply, effort=self.effort)
        short = np.maximum(0.0, h.measure_usage(m, wish) - np.maximum(0.0, h.left + h.takes[m]))
        lacking = np.flatnonzero(short > 1e-9)
        if not len(lacking):
            return []
        worth = (np.minimum(h.takes[:, lacking], short[lacking]) / short[lacking]).sum(axis=1)
        worth /= 1.0 + h.arrays.missed * 1e-3
        worth[m] = 0.0
        return [int(i) for i in np.argsort(-worth, kind="stable")[:number] if worth[i] > 0]

    def exchange(self, m: int, sizes: Sequence[int]) -> bool:
        """Place model m again together with some of its rivals; True if one of the sizes helped."""
        for size in sizes:
            rivals = self.rivals(m, size)
            if rivals and self.attempt([m, *rivals], self.prices):
                return True
            if len(rivals) < size:
                break
        return False

    def serve_short(self) -> None:
        """Make room for models with unmet demand, the dearest first, at the cost of others."""
        h = self.holding
        missing = np.array([0.0 if s is None else s.unmet for s in h.chosen]) * h.arrays.missed
        for m in np.argsort(-missing, kind="stable")[:SHORT]:
            if missing[m] <= 0:
                break
            for _ in range(3):
                single = h.chosen[m]
                if single is None or single.unmet <= 0 or not self.exchange(int(m), (1, 3, 8, 20, 40)):
                    break

    def serve_on_the_rest(self) -> None:
        """Place models with unmet demand again on the rest, whatever that costs in prices; the dearest first."""
        h = self.holding
        missing = np.array([0.0 if s is None else s.unmet for s in h.chosen]) * h.arrays.missed
        free = Prices(np.zeros_like(h.arrays.supply), np.zeros_like(h.arrays.owner_budget), 0.0)
        for m in np.argsort(-missing, kind="stable")[:SHORT]:
            if missing[m] > 0:
                self.attempt([int(m)], free)

    def crowd(self, limit: int) -> list[int]:
        """Return models that use a limit, those with the cheapest unmet demand first."""
        h = self.holding
        taking = np.flatnonzero(h.takes[:, limit] > 0)
        return [int(m) for m in taking[np.argsort(h.arrays.missed[taking], kind="stable")]]

    def find_exceeded(self) -> list[int]:
        """Return the exceeded limits."""
        h = self.holding
        return [int(i) for i in np.flatnonzero(h.left < -1e-9 * np.maximum(h.limits.amount, 1.0))]

    def ease(self, attempts: int, ends: float = math.inf) -> None:
        """Move models off exceeded limits if others have room for them, at no more than a few times the natural price.

        First those whose usage is closest to the excess; no model is served less. After `ends`, by `time.monotonic`, no
        further limit is eased.
        """
        for _ in range(EASE_PASSES):
            for limit in self.find_exceeded():
                if time.monotonic() > ends:
                    return
                self._ease(limit, attempts)

    def _ease(self, limit: int, attempts: int) -> None:
        h = self.holding
        needed = -h.left[limit]
        if needed > 0:
            taking = np.flatnonzero(h.takes[:, limit] > 0)
            far = np.abs(np.log(h.takes[taking, limit] / needed))
            for m in taking[np.argsort(far, kind="stable")][:attempts]:
                if h.left[limit] >= -EXACT * h.limits.amount[limit]:
                    break
                self._move_off(int(m), limit)

    def _move_off(self, m: int, limit: int) -> None:
        h = self.holding
        before, cost, taken = h.over(), float(h.cost[m]), float(h.takes[m, limit])
        kept = h.lift(m)
        left = h.left.copy()
        new = place_one(h, self.placer, self.prices, m, self.effort)
        h.put(m, new)
        dearer, relief = new.cost - cost, taken - float(h.takes[m, limit])
        served = kept is None or new.unmet <= kept.unmet
        if not served or h.over() >= before or dearer > EASE * h.limits.scale[limit] * relief:
            h.lift(m)
            h.left = left
            if kept is not None:
                h.put(m, kept)

    def enforce(self) -> None:
        """Keep every limit, at the cost of unmet demand if nothing else helps."""
        h = self.holding
        for limit in self.find_exceeded():
            for m in self.crowd(limit):
                if h.left[limit] >= -1e-9 * max(h.limits.amount[limit], 1.0):
                    break
                h.lift(m)
                h.put(m, place_one(h, self.placer, self.prices, m, self.effort))
