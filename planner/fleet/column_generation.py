"""Prices of the shared limits, at which the models, each on its own, demand no more than there is.

Lagrangian relaxation of supply, owners' budgets and moves, solved by column generation with a smoothed master. In each
round every model proposes its best configuration at the prices, and the prices then maximise the dual over all
proposals so far, within a trust region around the best prices known. Instead of a linear program with a row for each
model, the master is smoothed (each model mixes its columns by a soft minimum, Nesterov 2005) and has a variable for
each limit only.
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize

from planner.core.arrays import FleetArrays, Floats, Ints, Prices
from planner.fleet.pricing import Columns, best_columns, join_columns

SOFTNESS = 3e-3
"""Of a model's cost: excess over the best column at which a column still gets a noticeable share."""


@dataclass(frozen=True)
class SharedLimits:
    """The L shared limits that are finite: cells with supply, owners with a budget, moves."""

    cells: Ints
    owners: Ints
    moves: bool
    amount: Floats
    """(L,)"""
    scale: Floats
    """(L,) a natural price of one unit, > 0."""

    @classmethod
    def of(cls, arrays: FleetArrays) -> "SharedLimits":
        """Return the limits of a problem."""
        cells = np.flatnonzero(arrays.supply.ravel() > 0)
        owners = np.flatnonzero(np.isfinite(arrays.owner_budget))
        moves = bool(np.isfinite(arrays.max_moves))
        cost = arrays.unit_cost.ravel()[cells]
        usual = float(cost.mean()) if len(cost) and cost.any() else 1.0
        tail = [arrays.max_moves] if moves else []
        move = [max(arrays.move_cost, usual)] if moves else []
        return cls(
            cells=cells,
            owners=owners,
            moves=moves,
            amount=np.concatenate([arrays.supply.ravel()[cells], arrays.owner_budget[owners], tail]),
            scale=np.concatenate([np.where(cost > 0, cost, usual), np.ones(len(owners)), move]),
        )

    def prices(self, arrays: FleetArrays, value: Floats) -> Prices:
        """Convert prices by limit to prices of the fleet."""
        supply, owner = np.zeros(arrays.supply.size), np.zeros(len(arrays.owner_budget))
        c, o = len(self.cells), len(self.owners)
        supply[self.cells] = value[:c]
        owner[self.owners] = value[c : c + o]
        return Prices(supply.reshape(arrays.supply.shape), owner, float(value[c + o]) if self.moves else 0.0)

    def values(self, prices: Prices) -> Floats:
        """Convert prices of the fleet to prices by limit."""
        tail = [prices.moves] if self.moves else []
        return np.concatenate([prices.supply.ravel()[self.cells], prices.owner[self.owners], tail])

    def measure_usage(self, arrays: FleetArrays, columns: Columns) -> Any:
        """Return (J, L) sparse: the usage of each limit by each column."""
        pieces = [columns.use(arrays)[:, self.cells]]
        if len(self.owners):
            owner = arrays.owner[columns.model]
            rows = np.arange(len(columns))
            whole = sp.csr_array((columns.hardware, (rows, owner)), shape=(len(columns), len(arrays.owner_budget)))
            pieces.append(whole[:, self.owners])
        if self.moves:
            pieces.append(sp.csr_array(columns.started[:, None]))
        return sp.csr_array(sp.hstack(pieces, format="csr"))


@dataclass(frozen=True)
class Found:
    """The best prices, the dual value there over the proposals, and all proposals."""

    prices: Prices
    value: float
    columns: Columns
    rounds: int


@dataclass
class Master:
    """The smoothed restricted dual over the columns so far."""

    cost: Floats
    taken: Any
    first: Ints
    """Index of each model's first column."""
    segment: Ints
    amount: Floats
    softness: Floats

    @classmethod
    def of(cls, arrays: FleetArrays, limits: SharedLimits, columns: Columns, softness: float) -> "Master":
        """Build the master; `columns` are ordered by model."""
        _, first, segment = np.unique(columns.model, return_index=True, return_inverse=True)
        least = np.minimum.reduceat(columns.cost, first)
        return cls(
            cost=columns.cost,
            taken=limits.measure_usage(arrays, columns),
            first=first,
            segment=segment,
            amount=limits.amount,
            softness=softness * np.maximum(least, 1e-9),
        )

    def shares(self, price: Floats) -> tuple[float, Floats]:
        """Return the smoothed dual value, and (J,) the mix of columns of each model."""
        z = self.cost + self.taken @ price
        least = np.minimum.reduceat(z, self.first)
        soft = self.softness
        e = np.exp(-(z - least[self.segment]) / soft[self.segment])
        total = np.add.reduceat(e, self.first)
        value = float((least - soft * np.log(total)).sum() - price @ self.amount)
        return value, e / total[self.segment]

    def value(self, price: Floats) -> float:
        """Return the Lagrangian's value over these columns."""
        least = np.minimum.reduceat(self.cost + self.taken @ price, self.first)
        return float(least.sum() - price @ self.amount)

    def best(self, start: Floats, low: Floats, high: Floats, scale: Floats, rounds: int) -> Floats:
        """Return the prices between `low` and `high` that maximise the smoothed dual."""
        size = max(1.0, float(np.minimum.reduceat(self.cost, self.first).sum()))

        def descent(x: Floats) -> tuple[float, Floats]:
            value, share = self.shares(x * scale)
            slope = self.taken.T @ share - self.amount
            return -value / size, -slope * scale / size

        found = minimize(
            descent,
            start / scale,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low / scale, high / scale, strict=True)),
            options={"maxiter": rounds, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-8},
        )
        return np.clip(found.x * scale, low, high)


@dataclass(frozen=True)
class SearchEffort:
    """Limits of a search."""

    rounds: int
    effort: int = 1
    """Evaluations for each model and round."""
    width: float = 1.0
    """Of the trust region at the start: of a price, and of the limit's natural price."""
    enough: float = 2e-4
    """Stop if the proposals leave no more than this share to gain."""


def search(
    arrays: FleetArrays,
    models: Ints,
    effort: SearchEffort,
    *,
    start: Prices | None = None,
    columns: Columns | None = None,
    amount: Floats | None = None,
    ends: float = math.inf,
) -> Found:
    """Find prices for `models`, from `start` and earlier proposals.

    `amount` (L,) of each limit is theirs (else all of it). After `ends`, by `time.monotonic`, no further round begins.
    """
    limits = SharedLimits.of(arrays) if amount is None else replace(SharedLimits.of(arrays), amount=amount)
    centre = limits.values(start) if start is not None else np.zeros(len(limits.amount))
    price, best, width = centre, -np.inf, effort.width
    pool, done = columns, 0
    while True:
        done += 1
        fresh = best_columns(arrays, limits.prices(arrays, price), models, effort=effort.effort)
        pool = fresh if pool is None else join_columns([pool, fresh])
        master = Master.of(arrays, limits, pool, SOFTNESS)
        value, best = master.value(price), master.value(centre)
        if value >= best:
            best, centre = value, price
        else:
            width *= 0.6
        reach = width * (centre + 0.3 * limits.scale)
        price = master.best(centre, np.maximum(0.0, centre - reach), centre + reach, limits.scale, 80)
        promised = master.shares(price)[0]
        if done >= effort.rounds or promised - best <= effort.enough * abs(best) or time.monotonic() > ends:
            return Found(limits.prices(arrays, centre), best, pool, done)
