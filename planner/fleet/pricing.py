"""The best configurations of many models at given prices, in parallel on all cores.

Called by the price search, the rounding and the incremental placement. Configurations are kept sparse: a *column* is
one configuration of one model, with its cost and its usage of each shared limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from planner.core.arrays import FleetArrays, Floats, Ints, Prices
from planner.fleet.configuration import configure
from planner.fleet.polishing import polish
from planner.fleet.replica_allocation import Model
from planner.jit import entry_kernel, side_by_side


@dataclass(frozen=True)
class Columns:
    """J configurations. Rows of `counts` and `flows` are adjacent for each column, columns by model."""

    model: Ints
    """(J,) index of the model."""
    cost: Floats
    """(J,) $/h by the objective: hardware, latency, replicas started, unmet demand."""
    hardware: Floats
    """(J,) $/h of hardware alone, which budgets limit."""
    started: Floats
    """(J,) replicas beyond the running ones."""
    unmet: Floats
    """(J,) QPS left unserved."""
    count_start: Ints
    """(J + 1,)"""
    count_at: Ints
    """(N,) option x R + region."""
    count_n: Ints
    """(N,) replicas, > 0."""
    flow_start: Ints
    """(J + 1,)"""
    flow_at: Ints
    """(F,) users' region x R + region."""
    flow_qps: Floats
    """(F,) QPS, > 0."""

    def __len__(self) -> int:
        return len(self.model)

    def take(self, rows: Ints) -> "Columns":
        """Return the columns of these rows, in this order."""
        counts, count_start = _slices(self.count_start, rows)
        flows, flow_start = _slices(self.flow_start, rows)
        return Columns(
            model=self.model[rows],
            cost=self.cost[rows],
            hardware=self.hardware[rows],
            started=self.started[rows],
            unmet=self.unmet[rows],
            count_start=count_start,
            count_at=self.count_at[counts],
            count_n=self.count_n[counts],
            flow_start=flow_start,
            flow_at=self.flow_at[flows],
            flow_qps=self.flow_qps[flows],
        )

    def use(self, arrays: FleetArrays) -> "sp.csr_array":
        """Return (J, R x H) units of each cell."""
        regions, kinds = arrays.supply.shape
        option, region = np.divmod(self.count_at, regions)
        cell = region * kinds + arrays.option_hardware[option]
        units = self.count_n * arrays.option_units[option]
        return sp.csr_array((units, cell, self.count_start), shape=(len(self), regions * kinds))

    @cached_property
    def digest(self) -> Ints:
        """(J,) digest of the replicas of each column: columns of one model with the same digest are the same."""
        mixed = (self.count_at * 1_000_003 + self.count_n) * 2_654_435_761 % 2_147_483_647
        total = np.concatenate([[0], np.cumsum(mixed * (self.count_at % 8191 + 1) % 2_147_483_647)])
        difference: Ints = total[self.count_start[1:]] - total[self.count_start[:-1]]
        return difference


def join_columns(pieces: Sequence[Columns]) -> Columns:
    """Return all columns, ordered by model (stable within a model), each kept once."""
    whole = _concatenate(pieces)
    order = np.lexsort((whole.digest, whole.model))
    same = (np.diff(whole.model[order]) == 0) & (np.diff(whole.digest[order]) == 0)
    first = order[np.concatenate([[True], ~same])] if len(order) else order
    return whole.take(np.sort(first)[np.argsort(whole.model[np.sort(first)], kind="stable")])


def best_columns(
    arrays: FleetArrays, prices: Prices, models: Ints, *, effort: int, supply: Floats | None = None
) -> Columns:
    """Return the best configuration found of each of `models` at the prices, in blocks that bound the memory."""
    costs = prices.option_cost(arrays)
    room = arrays.supply if supply is None else supply
    blocks = [models[i : i + BLOCK] for i in range(0, len(models), BLOCK)] or [models]
    return _concatenate([_block(arrays, costs, prices.moves, block, effort, room) for block in blocks])


POLISHED = 300
"""Number of evaluations from which a configuration is polished as well, by as many moves of load as there are more."""
BLOCK = 4_000
"""Models priced at once: their flows are dense for that time (R x R floats each)."""


def _block(arrays: FleetArrays, costs: Floats, moves: float, models: Ints, effort: int, supply: Floats) -> Columns:
    regions = arrays.regions
    start = arrays.option_start[arrays.part_start]
    lengths = start[models + 1] - start[models]
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count = np.zeros((int(offset[-1]), regions), dtype=np.int64)
    flow = np.zeros((len(models), regions, regions))
    each = (
        models,
        offset,
        count,
        flow,
        costs,
        arrays.move_cost + moves,
        arrays.latency_weight,
        effort,
        supply,
        arrays.rtt,
        arrays.qps,
        arrays.tolerance,
        arrays.missed,
        arrays.survives,
        arrays.part_start,
        arrays.part_min,
        arrays.option_start,
        arrays.option_hardware,
        arrays.option_units,
        arrays.option_qps,
        arrays.current,
    )
    side_by_side(len(models), lambda begin, end: _configure_some(begin, end, *each))
    return columns_of(arrays, models, count, flow)


def columns_of(arrays: FleetArrays, models: Ints, count: Ints, flow: Floats) -> Columns:
    """Convert dense configurations (all options of `models` x R; models x S x R) to columns."""
    regions = arrays.regions
    start = arrays.option_start[arrays.part_start]
    lengths = start[models + 1] - start[models]
    owner = np.repeat(np.arange(len(models)), lengths)
    offset = np.concatenate([[0], np.cumsum(lengths)])
    option = np.arange(len(owner)) - np.repeat(offset[:-1], lengths) + np.repeat(start[models], lengths)
    row, region = np.nonzero(count)
    n = count[row, region]
    which = option[row]
    of = owner[row]
    dollars = n * arrays.option_units[which] * arrays.unit_cost[region, arrays.option_hardware[which]]
    hardware = _sums(of, dollars, len(models))
    begun = _sums(of, np.maximum(0, n - arrays.current[which, region]), len(models))
    item, origin, to = np.nonzero(flow)
    qps = flow[item, origin, to]
    served = _sums(item, qps, len(models))
    latency = _sums(item, qps * arrays.rtt[origin, to], len(models))
    unmet = np.maximum(0.0, arrays.qps[models].sum(axis=1) - served)
    unmet[unmet < 1e-8 * arrays.qps[models].sum(axis=1)] = 0.0
    cost = hardware + arrays.latency_weight * latency + arrays.move_cost * begun + arrays.missed[models] * unmet
    return Columns(
        model=models,
        cost=cost,
        hardware=hardware,
        started=begun,
        unmet=unmet,
        count_start=_starts_of(of, len(models)),
        count_at=which * regions + region,
        count_n=n,
        flow_start=_starts_of(item, len(models)),
        flow_at=origin * regions + to,
        flow_qps=qps,
    )


@dataclass(frozen=True)
class Single:
    """One configuration of one model."""

    cost: float
    hardware: float
    started: float
    unmet: float
    count_at: Ints
    count_n: Ints
    flow_at: Ints
    flow_qps: Floats

    @classmethod
    def of(cls, columns: Columns, row: int) -> "Single":
        """Return one row of the columns."""
        n = slice(columns.count_start[row], columns.count_start[row + 1])
        f = slice(columns.flow_start[row], columns.flow_start[row + 1])
        return cls(
            cost=float(columns.cost[row]),
            hardware=float(columns.hardware[row]),
            started=float(columns.started[row]),
            unmet=float(columns.unmet[row]),
            count_at=columns.count_at[n],
            count_n=columns.count_n[n],
            flow_at=columns.flow_at[f],
            flow_qps=columns.flow_qps[f],
        )

    def use(self, arrays: FleetArrays) -> Floats:
        """Return (R x H) units of each cell."""
        regions, kinds = arrays.supply.shape
        option, region = np.divmod(self.count_at, regions)
        cell = region * kinds + arrays.option_hardware[option]
        return _sums(cell, self.count_n * arrays.option_units[option], regions * kinds)


class Placer:
    """Configures single models, also within budgets and a number of moves."""

    def __init__(self, arrays: FleetArrays) -> None:
        self.arrays = arrays
        self._first = arrays.option_start[arrays.part_start]

    def best(
        self, m: int, prices: Prices, supply: Floats, *, effort: int, scale: float = 1.0, dear: float = 0.0
    ) -> Single:
        """Return the best configuration of model m at the prices.

        `dear` is added to the price of its hardware dollars.
        """
        a, first, last = self.arrays, int(self._first[m]), int(self._first[m + 1])
        kinds = a.option_hardware[first:last]
        factor = 1.0 + prices.owner[a.owner[m]] + dear
        costs = ((a.unit_cost[:, kinds] * factor + prices.supply[:, kinds]) * a.option_units[first:last]).T
        p, q = a.part_start[m], a.part_start[m + 1]
        count = np.zeros((last - first, a.regions), dtype=np.int64)
        flow = np.zeros((a.regions, a.regions))
        model = Model(
            a.qps[m],
            a.rtt <= a.tolerance[m],
            a.latency_weight * a.rtt,
            float(a.missed[m]),
            bool(a.survives[m]),
            a.part_min[p:q],
            a.option_start[p : q + 1] - first,
            kinds,
            a.option_units[first:last],
            a.option_qps[first:last],
            np.ascontiguousarray(costs),
            a.move_cost + prices.moves,
            a.current[first:last],
        )
        configure(model, supply, scale, effort, count, flow)
        if effort > POLISHED and scale >= 1.0:
            polish(model, supply, effort - POLISHED, count, flow)
        return self.single(m, count, flow)

    def single(self, m: int, count: Ints, flow: Floats) -> Single:
        """Return the configuration of model m with these replicas (options of m, R) and this traffic (R, R)."""
        a, count, flow = self.arrays, count.ravel(), flow.ravel()
        at, way = np.flatnonzero(count), np.flatnonzero(flow)
        n, qps, at_fleet = count[at], flow[way], at + int(self._first[m]) * a.regions
        option, region = np.divmod(at_fleet, a.regions)
        hardware = float((n * a.option_units[option]) @ a.unit_cost[region, a.option_hardware[option]])
        started = float(np.maximum(0, n - a.current[option, region]).sum())
        demand = float(a.qps[m].sum())
        unmet = demand - float(qps.sum())
        unmet = unmet if unmet > 1e-8 * demand else 0.0
        latency = a.latency_weight * float(qps @ a.rtt.ravel()[way])
        cost = hardware + latency + a.move_cost * started + float(a.missed[m]) * unmet
        return Single(cost, hardware, started, unmet, at_fleet, n, way, qps)

    def within(self, m: int, prices: Prices, supply: Floats, *, dollars: float, moves: float, effort: int) -> Single:
        """Return the best one of at most `dollars` $/h of hardware and `moves` replicas started.

        Less is served if necessary.
        """
        found = self.best(m, prices, supply, effort=effort)
        if _fits(found, dollars, moves):
            return found
        pushed, own = prices, 0.0
        for dear in (1.0, 4.0, 32.0):
            if found.started > moves:
                pushed = Prices(prices.supply, prices.owner, prices.moves + dear * self._replica_cost(m))
            own = dear if found.hardware > dollars else own
            found = self.best(m, pushed, supply, effort=effort, dear=own)
            if _fits(found, dollars, moves):
                return found
        low, high = 0.0, 1.0
        kept = self.best(m, prices, np.zeros_like(supply), effort=1)
        for _ in range(10):
            middle = (low + high) / 2
            found = self.best(m, pushed, supply, effort=effort, scale=middle, dear=own)
            if _fits(found, dollars, moves):
                low, kept = middle, found
            else:
                high = middle
        return kept

    def _replica_cost(self, m: int) -> float:
        a, first, last = self.arrays, int(self._first[m]), int(self._first[m + 1])
        return float(a.unit_cost.max() * a.option_units[first:last].max()) + a.move_cost


def _fits(found: Single, dollars: float, moves: float) -> bool:
    return bool(found.hardware <= dollars * (1 + 1e-9) + 1e-12 and found.started <= moves + 1e-9)


@entry_kernel
def _configure_some(
    begin: int,
    end: int,
    models: Ints,
    offset: Ints,
    count: Ints,
    flow: Floats,
    costs: Floats,
    move: float,
    latency_weight: float,
    effort: int,
    supply: Floats,
    rtt: Floats,
    qps: Floats,
    tolerance: Floats,
    missed: Floats,
    survives: npt.NDArray[np.bool_],
    part_start: Ints,
    part_min: Ints,
    option_start: Ints,
    option_hardware: Ints,
    option_units: Floats,
    option_qps: Floats,
    current: Ints,
) -> None:
    for i in range(begin, end):
        m = models[i]
        p, q = part_start[m], part_start[m + 1]
        first, last = option_start[p], option_start[q]
        model = Model(
            qps[m],
            rtt <= tolerance[m],
            latency_weight * rtt,
            missed[m],
            survives[m],
            part_min[p:q],
            option_start[p : q + 1] - first,
            option_hardware[first:last],
            option_units[first:last],
            option_qps[first:last],
            costs[first:last],
            move,
            current[first:last],
        )
        configure(model, supply, 1.0, effort, count[offset[i] : offset[i + 1]], flow[i])
        if effort > POLISHED:
            polish(model, supply, effort - POLISHED, count[offset[i] : offset[i + 1]], flow[i])


def _sums(row: Ints, figures: npt.NDArray[Any], rows: int) -> Floats:
    """Return sums of the figures by row, zero if a row has none."""
    return np.bincount(row, weights=figures, minlength=rows).astype(np.float64)


def _starts_of(sorted_rows: Ints, rows: int) -> Ints:
    return np.concatenate([[0], np.cumsum(np.bincount(sorted_rows, minlength=rows))]).astype(np.int64)


def _slices(start: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Return positions of the entries of these rows, and the start of each row in the selection."""
    lengths = start[rows + 1] - start[rows]
    begin = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    at = np.arange(int(begin[-1])) - np.repeat(begin[:-1] - start[rows], lengths)
    return at, begin


def _concatenate(pieces: Sequence[Columns]) -> Columns:
    def starts(name: str) -> Ints:
        lengths = np.concatenate([np.diff(getattr(piece, name)) for piece in pieces])
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    def whole(name: str) -> npt.NDArray[np.generic]:
        return np.concatenate([getattr(piece, name) for piece in pieces])

    plain = ("model", "cost", "hardware", "started", "unmet", "count_at", "count_n", "flow_at", "flow_qps")
    return Columns(
        **{name: whole(name) for name in plain},  # type: ignore[arg-type]  # numpy types by name
        count_start=starts("count_start"),
        flow_start=starts("flow_start"),
    )
