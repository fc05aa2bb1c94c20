"""A problem and a plan by index, for the checker's rules: traffic, replicas, throughput and cost.

Called by `planner.verify.plan_checker` alone. Like the rules there it is written from docs/planner.md and shares
nothing with any solver.
"""

from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ipnext.model.planning.plan import Plan, Problem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Name = TypeVar("Name", bound=Hashable)


class Ledger:
    """A problem and a plan by index: M models, P parts, R regions, H hardware kinds, N rows of replicas, T of traffic.

    `model`, `part`, `region` and `hardware` map a name to its index. Regions and kinds that only a demand, a supply or
    an option names come after those of the problem.
    """

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem, self.plan = problem, plan
        self.parts = [part for model in problem.models for part in model.parts]
        self.model = _numbers(model.model for model in problem.models)
        self.part = _numbers((model.model, part.part) for model in problem.models for part in model.parts)
        demanding = [demand.region for model in problem.models for demand in model.demand]
        kinds = [option.hardware for part in self.parts for option in part.options]
        self.region = _numbers([*problem.regions, *(item.region for item in problem.supply), *demanding])
        self.hardware = _numbers([*problem.hardware, *(item.hardware for item in problem.supply), *kinds])
        self.model_of_part = _ints(self.model[model] for model, _ in self.part)
        self._read_traffic()
        self._read_replicas()

    def _read_traffic(self) -> None:
        """Read (T,) of each: model, region of the users, region that serves, fraction."""
        traffic = self.plan.traffic
        self.sent_model = _ints(self.model[share.model] for share in traffic)
        self.sent_from = _ints(self.region[share.origin] for share in traffic)
        self.sent_to = _ints(self.region[share.to] for share in traffic)
        self.fraction = floats(share.fraction for share in traffic)

    def _read_replicas(self) -> None:
        """Read (N,) of each: part, region, hardware, count, and units and QPS of one replica."""
        option = {
            (model.model, part.part, option.hardware): option
            for model in self.problem.models
            for part in model.parts
            for option in part.options
        }
        rows = [row for row in self.plan.replicas if row.count]
        chosen = [option[row.model, row.part, row.hardware] for row in rows]
        self.held_part = _ints(self.part[row.model, row.part] for row in rows)
        self.held_region = _ints(self.region[row.region] for row in rows)
        self.held_hardware = _ints(self.hardware[row.hardware] for row in rows)
        self.count = floats(row.count for row in rows)
        self.units = self.count * floats(option.units for option in chosen)
        self.qps = self.count * floats(option.qps for option in chosen)

    @cached_property
    def demand(self) -> Floats:
        """(M, R) QPS by region of the users."""
        rows = [(model.model, demand.region, demand.qps) for model in self.problem.models for demand in model.demand]
        return self._by_model_and_region(rows)

    @cached_property
    def unmet(self) -> Floats:
        """(M, R) QPS that the plan leaves unserved, by region of the users."""
        return self._by_model_and_region([(lost.model, lost.region, lost.qps) for lost in self.plan.unmet])

    def _by_model_and_region(self, rows: Sequence[tuple[str, str, float]]) -> Floats:
        table = np.zeros((len(self.model), len(self.region)))
        for model, region, qps in rows:
            table[self.model[model], self.region[region]] = qps
        return table

    @cached_property
    def rtt(self) -> Floats:
        """(regions of the problem, squared) ms, the users' region first."""
        return np.array(self.problem.rtt_ms, dtype=np.float64)

    @cached_property
    def shares(self) -> Floats:
        """(M, R) sum of the shares, by region of the users."""
        return sums(self.demand.shape, self.sent_model, self.sent_from, self.fraction)

    @cached_property
    def load(self) -> Floats:
        """(M, R) QPS sent to a region."""
        qps = self.fraction * self.demand[self.sent_model, self.sent_from]
        return sums(self.demand.shape, self.sent_model, self.sent_to, qps)

    @cached_property
    def throughput(self) -> Floats:
        """(P, R) QPS that a part can serve in a region."""
        return sums((len(self.part), len(self.region)), self.held_part, self.held_region, self.qps)

    @cached_property
    def unit_cost(self) -> Floats:
        """(R, H) $/h a unit."""
        return self._by_cell([item.unit_cost for item in self.problem.supply])

    @cached_property
    def supply(self) -> Floats:
        """(R, H) units."""
        return self._by_cell([item.units for item in self.problem.supply])

    def _by_cell(self, figures: Sequence[float]) -> Floats:
        table = np.zeros((len(self.region), len(self.hardware)))
        for item, figure in zip(self.problem.supply, figures, strict=True):
            table[self.region[item.region], self.hardware[item.hardware]] = figure
        return table

    @cached_property
    def cost(self) -> Floats:
        """(M,) $/h."""
        spent = self.units * self.unit_cost[self.held_region, self.held_hardware]
        here = np.zeros_like(self.held_part)
        return sums((len(self.model), 1), self.model_of_part[self.held_part], here, spent)[:, 0]

    @cached_property
    def started_replicas(self) -> int:
        """Replicas beyond the current placement."""
        running = {(r.model, r.part, r.region, r.hardware): r.count for r in self.problem.current.replicas}
        return sum(
            max(0, r.count - running.get((r.model, r.part, r.region, r.hardware), 0)) for r in self.plan.replicas
        )

    @cached_property
    def objective(self) -> float:
        """$/h as docs/planner.md defines it."""
        weights = self.problem.objective
        ms = self.rtt[self.sent_from, self.sent_to]
        latency = float((self.demand[self.sent_model, self.sent_from] * self.fraction * ms).sum())
        priority = floats(model.priority for model in self.problem.models)
        missed = float(priority @ self.unmet.sum(axis=1))
        hardware = float(self.cost.sum())
        return (
            hardware
            + weights.latency_weight * latency
            + weights.move_cost * self.started_replicas
            + weights.unmet_cost * missed
        )


def _numbers(names: Iterable[Name]) -> dict[Name, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def _ints(figures: Iterable[int]) -> Ints:
    return np.fromiter(figures, dtype=np.int64)


def floats(figures: Iterable[float]) -> Floats:
    """Return one column of figures."""
    return np.fromiter(figures, dtype=np.float64)


def sums(shape: tuple[int, int], row: Ints, column: Ints, figures: Floats) -> Floats:
    """Return a table of the sums of figures by row and column."""
    rows, columns = shape
    flat = np.bincount(row * columns + column, weights=figures, minlength=rows * columns)
    return flat.astype(np.float64, copy=False).reshape(shape)
