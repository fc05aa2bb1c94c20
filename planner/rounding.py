"""From prices and proposals to one whole configuration for each model that together keep every shared limit.

Called by `planner.scale`. Models whose best column stands out take it; for the others a small linear program shares out
what is left of the limits. At a vertex no more models are split than limits bind: these are placed one by one on the rest.
Then models are lifted out and placed anew, one or a few at a time, for as long as that lowers the objective.
"""

from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import scipy.sparse as sp

from planner.arrays import FleetArrays, Floats, Ints, Prices
from planner.price_search import Limits
from planner.pricing import Columns, Placer, Single

NEAR = 0.02
"""A column takes part in the linear program where it costs at most this share more than its model's best one."""

WHOLE = 1 - 1e-7
"""A share from here on is the whole model."""


@dataclass
class Holding:
    """The configuration that each model has (or none yet), and what they leave of the limits."""

    arrays: FleetArrays
    limits: Limits
    chosen: list[Single | None]
    """(M,)"""
    left: Floats
    """(L,) of each limit; below zero where the models take more than there is."""
    cost: Floats
    """(M,) $/h."""
    takes: Floats
    """(M, L) of each limit."""

    @classmethod
    def empty(cls, arrays: FleetArrays, limits: Limits) -> "Holding":
        """No model has a configuration."""
        models = arrays.models
        takes = np.zeros((models, len(limits.amount)))
        return cls(arrays, limits, [None] * models, limits.amount.copy(), np.zeros(models), takes)

    def taken(self, m: int, single: Single) -> Floats:
        """(L,) what a configuration of model m takes of each limit."""
        owner = single.hardware * (self.limits.owners == self.arrays.owner[m])
        tail = [single.started] if self.limits.moves else []
        return np.concatenate([single.use(self.arrays)[self.limits.cells], owner, tail])

    def put(self, m: int, single: Single) -> None:
        """Gives model m this configuration."""
        self.chosen[m] = single
        self.takes[m] = self.taken(m, single)
        self.left -= self.takes[m]
        self.cost[m] = single.cost

    def lift(self, m: int) -> Single | None:
        """Takes its configuration from model m."""
        single = self.chosen[m]
        if single is not None:
            self.left += self.takes[m]
            self.chosen[m] = None
            self.cost[m] = 0.0
            self.takes[m] = 0.0
        return single

    def over(self) -> float:
        """$/h that what is taken beyond the limits counts for: far more than it could save."""
        return float(np.maximum(0.0, -self.left - 1e-9 * self.limits.amount) @ (1e3 * self.limits.scale))

    def supply(self) -> Floats:
        """(R, H) units that are left."""
        units = np.zeros(self.arrays.supply.size)
        units[self.limits.cells] = np.maximum(0.0, self.left[: len(self.limits.cells)])
        return units.reshape(self.arrays.supply.shape)

    def dollars(self, m: int) -> float:
        """$/h that model m may cost on its budget and on what is left of its owner's."""
        budget = float(self.arrays.model_budget[m])
        at = np.flatnonzero(self.limits.owners == self.arrays.owner[m])
        if len(at):
            budget = min(budget, max(0.0, float(self.left[len(self.limits.cells) + at[0]])))
        return budget

    def moves(self) -> float:
        """Replicas that may still be started."""
        return max(0.0, float(self.left[-1])) if self.limits.moves else np.inf


def shared_out(arrays: FleetArrays, limits: Limits, columns: Columns, price: Floats) -> Holding:
    """One whole column for as many models as a vertex of the linear program gives one; the others have none yet."""
    taken = limits.taken(arrays, columns)
    z = columns.cost + taken @ price
    models, first, segment = np.unique(columns.model, return_index=True, return_inverse=True)
    least = np.minimum.reduceat(z, first)[segment]
    near = z <= least + NEAR * np.abs(least) + 1e-9
    number = np.bincount(segment, weights=near)
    plain = near & (number[segment] == 1)
    rest = np.flatnonzero(near & ~plain)
    holding = Holding.empty(arrays, limits)
    for j in np.flatnonzero(plain):
        holding.put(int(columns.model[j]), Single.of(columns, int(j)))
    if len(rest):
        share = _vertex(columns.cost[rest], taken[rest], columns.model[rest], holding.left, limits.scale)
        for j, x in zip(rest, share, strict=True):
            if x >= WHOLE:
                holding.put(int(columns.model[j]), Single.of(columns, int(j)))
    return holding


def _vertex(cost: Floats, taken: Any, model: Ints, left: Floats, scale: Floats) -> Floats:
    """(J,) shares of a basic solution: least cost, each model's sum to 1; going over a limit costs dear."""
    _, segment = np.unique(model, return_inverse=True)
    models, limits, columns = int(segment.max()) + 1, len(left), len(cost)
    dear = 20.0 * scale
    convexity = sp.csc_array((np.ones(columns), (segment, np.arange(columns))), shape=(models, columns))
    matrix = sp.csc_array(
        sp.vstack(
            [
                sp.hstack([taken.T, -sp.eye_array(limits)]),
                sp.hstack([convexity, sp.csc_array((models, limits))]),
            ],
            format="csc",
        )
    )
    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = columns + limits, limits + models
    lp.col_cost_ = np.concatenate([cost, dear])
    lp.col_lower_ = np.zeros(columns + limits)
    lp.col_upper_ = np.full(columns + limits, highspy.kHighsInf)
    lp.row_lower_ = np.concatenate([np.full(limits, -highspy.kHighsInf), np.ones(models)])
    lp.row_upper_ = np.concatenate([left, np.ones(models)])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = matrix.indptr
    lp.a_matrix_.index_ = matrix.indices
    lp.a_matrix_.value_ = matrix.data
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("random_seed", 0)
    solver.passModel(lp)
    status = solver.run()
    if status == highspy.HighsStatus.kError or solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return np.zeros(columns)
    return np.array(solver.getSolution().col_value)[:columns]


def complete(holding: Holding, placer: Placer, prices: Prices, order: Ints) -> None:
    """Places the models of `order` that have no configuration yet, one after another, on what is left."""
    for m in order:
        if holding.chosen[m] is None:
            holding.put(int(m), place_one(holding, placer, prices, int(m)))


def place_one(holding: Holding, placer: Placer, prices: Prices, m: int, effort: int = 200) -> Single:
    """The best configuration of model m on what is left of every limit."""
    return placer.within(
        m, prices, holding.supply(), dollars=holding.dollars(m), moves=holding.moves(), effort=effort
    )


@dataclass
class Improvement:
    """Lifts groups of models out of a holding and places them anew, keeping what lowers the objective."""

    holding: Holding
    placer: Placer
    prices: Prices
    columns: Columns
    effort: int = 60

    def __post_init__(self) -> None:
        h = self.holding
        self.price = h.limits.values(self.prices)
        z = self.columns.cost + h.limits.taken(h.arrays, self.columns) @ self.price
        models, first = np.unique(self.columns.model, return_index=True)
        self.least = np.zeros(h.arrays.models)
        self.least[models] = np.minimum.reduceat(z, first)

    def regrets(self) -> Floats:
        """(M,) $/h, at the prices, by which each model's configuration is dearer than its best one."""
        return self.holding.cost + self.holding.takes @ self.price - self.least

    def attempt(self, group: list[int], prices: Prices) -> bool:
        """Places a group anew in this order; True where that lowered the objective (else all is as before)."""
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
        """Models that hold most of what model m would need to have its way; the cheapest to leave unserved first."""
        h = self.holding
        wish = self.placer.best(m, self.prices, h.arrays.supply, effort=self.effort)
        short = np.maximum(0.0, h.taken(m, wish) - np.maximum(0.0, h.left + h.takes[m]))
        lacking = np.flatnonzero(short > 1e-9)
        if not len(lacking):
            return []
        worth = (np.minimum(h.takes[:, lacking], short[lacking]) / short[lacking]).sum(axis=1)
        worth /= 1.0 + h.arrays.missed * 1e-3
        worth[m] = 0.0
        return [int(i) for i in np.argsort(-worth, kind="stable")[:number] if worth[i] > 0]
