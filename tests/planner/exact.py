"""One model's priced problem as a mixed-integer program, stated rule by rule.

What `planner.bound.bound` must never exceed.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from planner.core.arrays import FleetArrays, Prices

FORGIVEN = 1e-6
"""The checker lets a cell hold this share, and as many units, more than its supply."""


@dataclass
class _Program:
    cost: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def variable(self, cost: float, most: float = np.inf, *, whole: bool = False) -> int:
        self.cost.append(cost)
        self.most.append(most)
        self.whole.append(int(whole))
        return len(self.cost) - 1

    def rule(self, terms: list[tuple[int, float]], low: float = -np.inf, high: float = np.inf) -> None:
        self.entries += [(len(self.low), variable, factor) for variable, factor in terms]
        self.low.append(low)
        self.high.append(high)

    def solve(self, seconds: float) -> tuple[float, float]:
        rows, columns, factors = zip(*self.entries, strict=True)
        shape = (len(self.low), len(self.cost))
        found = milp(
            np.array(self.cost),
            integrality=np.array(self.whole),
            bounds=Bounds(0.0, np.array(self.most)),
            constraints=LinearConstraint(coo_array((factors, (rows, columns)), shape).tocsr(), self.low, self.high),
            options={"mip_rel_gap": 1e-7, "time_limit": seconds},
        )
        return (np.inf if found.fun is None else float(found.fun)), float(found.mip_dual_bound)


def least_cost(arrays: FleetArrays, prices: Prices, m: int, seconds: float = 30.0) -> tuple[float, float]:
    """$/h: the cost of the best plan found for model `m` alone at the prices, and what no plan undercuts."""
    program, regions, total = _Program(), range(arrays.regions), float(arrays.qps[m].sum())
    price = prices.option_cost(arrays)
    users = [u for u in regions if arrays.qps[m, u] > 0]
    unmet = {u: program.variable(arrays.missed[m], arrays.qps[m, u]) for u in users}
    way = {
        (u, r): program.variable(arrays.latency_weight * arrays.rtt[u, r])
        for u in users
        for r in regions
        if arrays.rtt[u, r] <= arrays.tolerance[m]
    }
    for u in users:
        program.rule([(unmet[u], 1.0), *((x, 1.0) for (v, _), x in way.items() if v == u)], arrays.qps[m, u], np.inf)
    cells: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for p in range(arrays.part_start[m], arrays.part_start[m + 1]):
        rates: list[list[tuple[int, float]]] = []
        for r in regions:
            counts, rate = [], []
            for o in range(arrays.option_start[p], arrays.option_start[p + 1]):
                h, units = arrays.option_hardware[o], arrays.option_units[o]
                n = program.variable(price[o, r], whole=True)
                started = program.variable(arrays.move_cost + prices.moves)
                program.rule([(started, 1.0), (n, -1.0)], -float(arrays.current[o, r]))
                cells.setdefault((r, h), []).append((n, units))
                counts.append((n, 1.0))
                rate.append((n, arrays.option_qps[o]))
            program.rule([*rate, *((x, -1.0) for (_, to), x in way.items() if to == r)], 0.0)
            if arrays.part_min[p] > 1:
                held = program.variable(0.0, 1.0, whole=True)
                most = sum(
                    arrays.supply[r, arrays.option_hardware[o]] / arrays.option_units[o]
                    for o in range(arrays.option_start[p], arrays.option_start[p + 1])
                )
                program.rule([*counts, (held, -float(arrays.part_min[p]))], 0.0)
                program.rule([*((n, 1.0) for n, _ in counts), (held, -float(np.ceil(most) + 1))], high=0.0)
            rates.append(rate)
        if arrays.survives[m]:
            for lost in regions:
                left = [term for r in regions if r != lost for term in rates[r]]
                program.rule([*left, *((x, 1.0) for x in unmet.values())], total)
    for (r, h), taken in cells.items():
        supply = arrays.supply[r, h]
        program.rule(taken, high=supply + FORGIVEN * max(supply, 1.0))
    return program.solve(seconds)
