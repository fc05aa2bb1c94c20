"""A problem as one mixed-integer program in plain arrays: what CP-SAT, PDLP and DeDe get, each in a process of its own.

Written from the rules of docs/planner.md for the benchmark alone. Columns: replicas, flows (QPS by route), unmet (QPS
by demand), holds (0 or 1, if `min_replicas` is above 1). Moves and latency cost are left out: the instances here
have neither.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from planner.core.arrays import FleetArrays, Floats, Ints


@dataclass(frozen=True)
class Block:
    """Rows of one rule: matrix (rows, columns), `low` <= matrix x <= `high`.

    `model` (rows,) is -1 for shared limits.
    """

    rule: str
    matrix: sp.csr_array
    low: Floats
    high: Floats
    model: Ints


class Program:
    """The program of one fleet."""

    def __init__(self, fleet: FleetArrays) -> None:
        self.fleet = fleet
        self.part_model = np.repeat(np.arange(fleet.models), np.diff(fleet.part_start))
        self.option_part = np.repeat(np.arange(len(self.part_model)), np.diff(fleet.option_start))
        self.option_model = self.part_model[self.option_part]
        near = fleet.rtt[None, :, :] <= fleet.tolerance[:, None, None]
        able = fleet.supply.T[fleet.option_hardware] >= fleet.option_units[:, None]
        self.option, self.region = np.nonzero(able)
        """(N,) of each replica column."""
        self.flow_model, self.flow_from, self.flow_to = np.nonzero(near & (fleet.qps > 0)[:, :, None])
        """(F,) of each flow column."""
        self.demand_model, self.demand_region = np.nonzero(fleet.qps > 0)
        """(D,) of each unmet column."""
        self.total = fleet.qps.sum(axis=1)

    @cached_property
    def held(self) -> Ints:
        """(B,) part x R + region of each column of `holds`."""
        regions = self.fleet.regions
        return np.unique((self.column_part * regions + self.region)[self.fleet.part_min[self.column_part] > 1])

    @property
    def column_part(self) -> Ints:
        """(N,) part of each replica column."""
        return self.option_part[self.option]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Numbers of columns: replicas, flows, unmet, holds."""
        return len(self.option), len(self.flow_model), len(self.demand_model), len(self.held)

    @property
    def cost(self) -> Floats:
        """$/h of each column."""
        fleet = self.fleet
        price = fleet.unit_cost[self.region, fleet.option_hardware[self.option]] * fleet.option_units[self.option]
        _, flows, _, holds = self.sizes
        return np.concatenate([price, np.zeros(flows), fleet.missed[self.demand_model], np.zeros(holds)])

    @property
    def upper(self) -> Floats:
        """The largest useful value of each column."""
        fleet = self.fleet
        qps = fleet.qps[self.demand_model, self.demand_region]
        need = np.ceil(self.total[self.option_model[self.option]] / fleet.option_qps[self.option] - 1e-9)
        most = np.maximum(need, fleet.part_min[self.column_part])
        room = fleet.supply[self.region, fleet.option_hardware[self.option]] / fleet.option_units[self.option]
        flow = fleet.qps[self.flow_model, self.flow_from]
        return np.concatenate([np.minimum(most, np.floor(room + 1e-9)), flow, qps, np.ones(self.sizes[3])])

    @property
    def integer(self) -> Ints:
        """1 for whole columns."""
        replicas, flows, unmet, holds = self.sizes
        return np.concatenate([np.ones(replicas), np.zeros(flows + unmet), np.ones(holds)]).astype(np.int64)

    def blocks(self) -> Iterator[Block]:
        """Yield the rows of every rule."""
        yield self._served()
        yield self._capacity()
        yield self._survive()
        yield from self._min_replicas()
        yield self._supply()
        yield from self._budgets()

    def _block(
        self, rule: str, parts: list[tuple[int, Ints, Ints, Floats]], low: Floats, high: Floats, model: Ints
    ) -> Block:
        """Parts: kind of column (0 to 3), row, position among its kind, value."""
        offset = np.concatenate([[0], np.cumsum(self.sizes)])
        row = np.concatenate([part[1] for part in parts])
        column = np.concatenate([part[2] + offset[part[0]] for part in parts])
        value = np.concatenate([part[3] for part in parts])
        matrix = sp.csr_array((value, (row, column)), shape=(len(low), offset[-1]))
        return Block(rule, matrix, low, high, model)

    def _served(self) -> Block:
        regions = self.fleet.regions
        key = self.demand_model * regions + self.demand_region
        row = np.searchsorted(key, self.flow_model * regions + self.flow_from)
        qps = self.fleet.qps[self.demand_model, self.demand_region]
        own, ones = np.arange(len(key)), np.ones
        parts = [(1, row, np.arange(len(row)), ones(len(row))), (2, own, own, ones(len(key)))]
        return self._block("served", parts, qps, qps, self.demand_model)

    def _capacity(self) -> Block:
        """For each part and region: throughput (of a replica no more than the whole demand) less flows >= 0."""
        fleet, regions = self.fleet, self.fleet.regions
        can = np.minimum(fleet.option_qps[self.option], self.total[self.option_model[self.option]])
        count = np.diff(fleet.part_start)[self.flow_model]
        flow = np.repeat(np.arange(len(self.flow_model)), count)
        first = np.cumsum(count) - count
        part = fleet.part_start[self.flow_model[flow]] + np.arange(len(flow)) - first[flow]
        rows = len(self.part_model) * regions
        parts = [
            (0, self.column_part * regions + self.region, np.arange(len(can)), can),
            (1, part * regions + self.flow_to[flow], flow, -np.ones(len(flow))),
        ]
        model = np.repeat(self.part_model, regions)
        return self._block("capacity", parts, np.zeros(rows), np.full(rows, np.inf), model)

    def _survive(self) -> Block:
        """For each part that must survive and each region: throughput elsewhere and what is unmet >= all demand."""
        fleet, regions = self.fleet, self.fleet.regions
        parts = np.flatnonzero(fleet.survives[self.part_model])
        index = np.full(len(self.part_model), -1)
        index[parts] = np.arange(len(parts))
        can = np.minimum(fleet.option_qps[self.option], self.total[self.option_model[self.option]])
        column = np.repeat(np.flatnonzero(index[self.column_part] >= 0), regions)
        lost = np.tile(np.arange(regions), len(column) // max(regions, 1))
        other = self.region[column] != lost
        column, lost = column[other], lost[other]
        start = np.searchsorted(self.demand_model, np.arange(fleet.models + 1))
        triples = [
            (index[p] * regions + r, d)
            for p in parts
            for d in range(start[self.part_model[p]], start[self.part_model[p] + 1])
            for r in range(regions)
        ]
        row, demand = np.array(triples, dtype=np.int64).reshape(-1, 2).T
        entries = [
            (0, index[self.column_part[column]] * regions + lost, column, can[column]),
            (2, row, demand, np.ones(len(row))),
        ]
        low = np.repeat(self.total[self.part_model[parts]], regions)
        return self._block(
            "survive", entries, low, np.full(len(low), np.inf), np.repeat(self.part_model[parts], regions)
        )

    def _min_replicas(self) -> Iterator[Block]:
        """Replicas <= most x holds; sum of replicas >= least x holds."""
        if not len(self.held):
            return
        chosen = np.flatnonzero(self.fleet.part_min[self.column_part] > 1)
        row = np.searchsorted(self.held, (self.column_part * self.fleet.regions + self.region)[chosen])
        own, ones = np.arange(len(chosen)), np.ones(len(chosen))
        parts = [(0, own, chosen, ones), (3, own, row, -self.upper[chosen])]
        model = self.option_model[self.option[chosen]]
        yield self._block("min_replicas", parts, np.full(len(chosen), -np.inf), np.zeros(len(chosen)), model)
        part = self.held // self.fleet.regions
        every = np.arange(len(self.held))
        parts = [(0, row, chosen, ones), (3, every, every, -self.fleet.part_min[part].astype(np.float64))]
        yield self._block(
            "min_replicas", parts, np.zeros(len(every)), np.full(len(every), np.inf), self.part_model[part]
        )

    def _supply(self) -> Block:
        fleet = self.fleet
        kinds = fleet.supply.shape[1]
        row = self.region * kinds + fleet.option_hardware[self.option]
        parts = [(0, row, np.arange(len(row)), fleet.option_units[self.option])]
        rows = fleet.supply.size
        return self._block("supply", parts, np.full(rows, -np.inf), fleet.supply.ravel(), np.full(rows, -1))

    def _budgets(self) -> Iterator[Block]:
        model = self.option_model[self.option]
        for limits, payer, shared in (
            (self.fleet.model_budget, model, False),
            (self.fleet.owner_budget, self.fleet.owner[model], True),
        ):
            limited = np.flatnonzero(np.isfinite(limits))
            index = np.full(len(limits), -1)
            index[limited] = np.arange(len(limited))
            chosen = np.flatnonzero(index[payer] >= 0)
            parts = [(0, index[payer[chosen]], chosen, self.cost[chosen])]
            owner = np.full(len(limited), -1) if shared else limited
            yield self._block("budget", parts, np.full(len(limited), -np.inf), limits[limited], owner)

    def write(self, path: Path) -> None:
        """Write the whole program into an .npz file."""
        blocks = list(self.blocks())
        matrix = sp.vstack([block.matrix for block in blocks]).tocoo()
        np.savez(
            path,
            row=matrix.coords[0],
            column=matrix.coords[1],
            value=matrix.data,
            low=np.concatenate([block.low for block in blocks]),
            high=np.concatenate([block.high for block in blocks]),
            row_model=np.concatenate([block.model for block in blocks]),
            row_rule=np.concatenate([np.full(len(block.low), block.rule) for block in blocks]),
            cost=self.cost,
            upper=self.upper,
            integer=self.integer,
            scale=self._scale(),
        )

    def _scale(self) -> Floats:
        """QPS that a flow or unmet column is measured in: the whole demand of its model; 1 for counts."""
        replicas, _, _, holds = self.sizes
        flows = [self.total[self.flow_model], self.total[self.demand_model]]
        return np.concatenate([np.ones(replicas), *flows, np.ones(holds)])

    def counts(self, values: Floats) -> dict[int, Floats]:
        """Replicas (O of the model, R) by model, from the values of the replica columns."""
        fleet = self.fleet
        whole = np.zeros((len(self.option_part), fleet.regions))
        whole[self.option, self.region] = np.round(values[: len(self.option)])
        start = np.append(fleet.option_start[fleet.part_start[:-1]], len(self.option_part))
        return {m: whole[start[m] : start[m + 1]] for m in range(fleet.models)}
