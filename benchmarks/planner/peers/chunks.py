"""The sub-problem that Rebalancer can state: chunks of demand, put into regions.

A chunk is demand of the users of one region (of a model that must survive also of no region, as standby), about as much
as one replica of the model's largest part serves. What Rebalancer cannot say is fixed or left out: hardware is one of a
few choices for all parts of a chunk at once, replicas are divisible, `min_replicas` and budgets are ignored, and a
model that survives holds 1 / (k - 1) of its demand again as standby, with at most that much in any one region. The
search begins at a first fit: from all unmet it is too slow to get anywhere. Afterwards each model gets whole replicas
for the load of each region, as the greedy peer fills a region, as far as the supply goes.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.planner.peers.greedy import model_of
from benchmarks.planner.peers.greedy_kernel import Model, fill_region
from ipnext.model.planning.plan import Problem
from planner.core.arrays import FleetArrays, Floats

CHOICES = 3
"""Choice v takes of every part the v-th cheapest hardware."""
MOST_CHUNKS = 8
"""Of the users of one region."""
SPREAD = 4
"""Regions that a model which survives is spread over, at most."""


class Chunks:
    """The chunks of a problem, and the way back from where they went."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.fleet = problem, FleetArrays.of(problem)
        price = np.where(self.fleet.supply > 0, self.fleet.unit_cost, np.inf).min(axis=0)
        self.option_cost = price[self.fleet.option_hardware] * self.fleet.option_units / self.fleet.option_qps
        self.places = [(r, v) for r in range(self.fleet.regions) for v in range(CHOICES)]
        self.model: dict[str, int] = {}
        """Model of each chunk."""
        self.qps: dict[str, float] = {}
        """QPS of each chunk."""

    def document(self) -> dict[str, Any]:
        """Return the document that side/rebalancer_search.py reads."""
        names, most = self.problem.regions, {}
        chunks: list[dict[str, Any]] = []
        for m in range(self.fleet.models):
            spread = self._spread(m)
            total = float(self.fleet.qps[m].sum())
            most[str(m)] = total / (spread - 1) if self.fleet.survives[m] else total * 2
            for s in np.flatnonzero(self.fleet.qps[m]):
                far = self.fleet.rtt[s] > self.fleet.tolerance[m]
                chunks += self._split(m, f"{m}/{s}", float(self.fleet.qps[m, s]), most[str(m)], far)
            if self.fleet.survives[m]:
                nowhere = np.zeros(len(names), dtype=np.bool_)
                chunks += self._split(m, f"{m}/standby", most[str(m)], most[str(m)], nowhere)
        supply = [
            {names[r]: float(self.fleet.supply[r, h]) for r in range(len(names))}
            for h in range(self.fleet.supply.shape[1])
        ]
        places = [{"name": f"{names[r]}/{v}", "region": names[r], "choice": v} for r, v in self.places]
        start = self._first_fit(chunks, most)
        return {"chunks": chunks, "places": places, "supply": supply, "most_qps": most, "start": start}

    def _first_fit(self, chunks: list[dict[str, Any]], most: Mapping[str, float]) -> dict[str, str]:
        """Where the search begins: the dearest chunk to leave unmet first, each in its cheapest place that has room."""
        left, names = self.fleet.supply.copy(), self.problem.regions
        held: dict[tuple[str, int], float] = defaultdict(float)
        start: dict[str, str] = {}
        for chunk in sorted(chunks, key=lambda chunk: -chunk["unmet_cost"]):
            for i in np.argsort(chunk["cost"], kind="stable"):
                r, v = self.places[i]
                fits = held[chunk["model"], r] + chunk["qps"] <= most[chunk["model"]] * (1 + 1e-9)
                if fits and names[r] not in chunk["far"] and np.all(left[r] >= chunk["units"][v]):
                    left[r] -= chunk["units"][v]
                    held[chunk["model"], r] += chunk["qps"]
                    start[chunk["name"]] = f"{names[r]}/{v}"
                    break
        return start

    def _spread(self, m: int) -> int:
        """Regions to spread over: no more than every user can be served from, and one."""
        near = self.fleet.rtt[self.fleet.qps[m] > 0] <= self.fleet.tolerance[m]
        return int(np.clip(near.sum(axis=1).min(initial=SPREAD), 2, SPREAD))

    def _options(self, m: int) -> list[Floats]:
        """Options of each part (indices into all), cheapest first."""
        parts = range(self.fleet.part_start[m], self.fleet.part_start[m + 1])
        ranges = [np.arange(self.fleet.option_start[p], self.fleet.option_start[p + 1]) for p in parts]
        return [options[np.argsort(self.option_cost[options], kind="stable")] for options in ranges]

    def _split(self, m: int, name: str, qps: float, most: float, far: Any) -> list[dict[str, Any]]:
        fleet, options = self.fleet, self._options(m)
        largest = max(fleet.option_qps[part[0]] for part in options)
        count = int(np.clip(round(qps / largest), 1, MOST_CHUNKS))
        count = max(count, 2 * int(np.ceil(qps / most)) if qps > 0.5 * most else 1)
        units = np.zeros((CHOICES, fleet.supply.shape[1]))
        for v in range(CHOICES):
            for part in options:
                o = part[min(v, len(part) - 1)]
                units[v, fleet.option_hardware[o]] += qps / count / fleet.option_qps[o] * fleet.option_units[o]
        cost = [float(units[v] @ fleet.unit_cost[r]) for r, v in self.places]
        found = []
        for i in range(count):
            key = f"{name}/{i}"
            self.model[key], self.qps[key] = m, qps / count
            found.append(
                {
                    "name": key,
                    "model": str(m),
                    "qps": qps / count,
                    "units": units.tolist(),
                    "cost": cost,
                    "far": [self.problem.regions[r] for r in np.flatnonzero(far)],
                    "unmet_cost": float(fleet.missed[m]) * qps / count,
                }
            )
        return found

    def counts(self, assignment: Mapping[str, str]) -> dict[int, Floats]:
        """Whole replicas (O of the model, R) by model, from the place of every chunk; models of high priority first."""
        region = {f"{self.problem.regions[r]}/{v}": r for r, v in self.places}
        load = np.zeros((self.fleet.models, self.fleet.regions))
        for key, place in assignment.items():
            if place in region:
                load[self.model[key], region[place]] += self.qps[key]
        left, counts = self.fleet.supply.copy(), dict[int, Floats]()
        for m in np.argsort(-self.fleet.missed, kind="stable"):
            model = model_of(self.fleet, m, left, np.inf)
            counts[int(m)] = np.zeros((len(model.kind), self.fleet.regions))
            for r in np.flatnonzero(load[m]):
                column = _filled(model, int(r), load[m, r])
                counts[int(m)][:, r] = column
                np.subtract.at(left[r], model.kind, column * model.units)
        return counts


def _filled(model: Model, region: int, load: float) -> Floats:
    """(O,) replicas for the load, or for as much of it as fits."""
    column = np.zeros(len(model.kind))
    low, high, tried = 0.0, load, load
    for _ in range(12):
        fits = fill_region(model, region, tried, column) < np.inf
        if fits and tried == load:
            return column
        low, high = (tried, high) if fits else (low, tried)
        tried = (low + high) / 2
    if low == 0.0:
        return np.zeros(len(model.kind))
    fill_region(model, region, low, column)
    return column
