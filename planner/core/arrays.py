"""A problem as numpy arrays, the input of the fleet-scale solver.

Called by `planner.fleet.solver` and its kernels. A *cell* is one hardware kind in one region; an *option* is one way to
run one part. Options of a part, and parts of a model, are adjacent. The checker does not use this: it reads the
problem.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipnext.model.planning.plan import Problem

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FleetArrays:
    """Shapes: M models, P parts, O options, R regions, H hardware kinds, K owners. $/h, QPS, ms, units."""

    supply: Floats
    """(R, H) units."""
    unit_cost: Floats
    """(R, H) $/h a unit."""
    rtt: Floats
    """(R, R) ms, users' region first."""
    qps: Floats
    """(M, R) demand by users' region."""
    tolerance: Floats
    """(M,) ms."""
    missed: Floats
    """(M,) $/h for one unmet QPS: `unmet_cost` x priority."""
    survives: npt.NDArray[np.bool_]
    """(M,) whether the loss of any one region must be survived."""
    model_budget: Floats
    """(M,) $/h, infinite without a limit."""
    owner: Ints
    """(M,) index of the owner."""
    owner_budget: Floats
    """(K,) $/h, infinite without a limit."""
    part_start: Ints
    """(M + 1,) parts of model m are part_start[m] to part_start[m + 1]."""
    part_min: Ints
    """(P,) `min_replicas`."""
    option_start: Ints
    """(P + 1,) options of part p are option_start[p] to option_start[p + 1]."""
    option_hardware: Ints
    """(O,) hardware kind."""
    option_units: Floats
    """(O,) units a replica."""
    option_qps: Floats
    """(O,) QPS a replica."""
    current: Ints
    """(O, R) replicas that run now."""
    latency_weight: float
    """$/h per QPS x ms."""
    move_cost: float
    """$/h per replica started."""
    max_moves: float
    """Replicas that may be started, infinite without a limit."""

    @property
    def models(self) -> int:
        """M."""
        return len(self.owner)

    @property
    def regions(self) -> int:
        """R."""
        return len(self.rtt)

    @classmethod
    def of(cls, problem: Problem) -> "FleetArrays":
        """Build the arrays of a valid problem (`planner.io.problem.validate`), in the problem's order."""
        region = {name: i for i, name in enumerate(problem.regions)}
        hardware = {name: i for i, name in enumerate(problem.hardware)}
        owners = list(dict.fromkeys([o.owner for o in problem.owners] + [m.owner for m in problem.models]))
        owner = {name: i for i, name in enumerate(owners)}
        limit = {o.owner: o.budget_per_hour for o in problem.owners}
        shape = (len(region), len(hardware))
        supply, cost = np.zeros(shape), np.zeros(shape)
        for item in problem.supply:
            cell = region[item.region], hardware[item.hardware]
            supply[cell], cost[cell] = item.units, item.unit_cost
        qps = np.zeros((len(problem.models), len(region)))
        for m, model in enumerate(problem.models):
            for demand in model.demand:
                qps[m, region[demand.region]] = demand.qps
        parts = [part for model in problem.models for part in model.parts]
        options = [option for part in parts for option in part.options]
        limits = problem.limits
        return cls(
            supply=supply,
            unit_cost=cost,
            rtt=np.array(problem.rtt_ms, dtype=np.float64),
            qps=qps,
            tolerance=_floats([m.latency_tolerance_ms for m in problem.models]),
            missed=_floats([problem.objective.unmet_cost * m.priority for m in problem.models]),
            survives=np.array([m.survive == "region" for m in problem.models], dtype=np.bool_),
            model_budget=_floats([_limit(m.budget_per_hour) for m in problem.models]),
            owner=_ints([owner[m.owner] for m in problem.models]),
            owner_budget=_floats([_limit(limit.get(name)) for name in owners]),
            part_start=_starts([len(m.parts) for m in problem.models]),
            part_min=_ints([part.min_replicas for part in parts]),
            option_start=_starts([len(part.options) for part in parts]),
            option_hardware=_ints([hardware[option.hardware] for option in options]),
            option_units=_floats([option.units for option in options]),
            option_qps=_floats([option.qps for option in options]),
            current=_current(problem, region, len(options)),
            latency_weight=problem.objective.latency_weight,
            move_cost=problem.objective.move_cost,
            max_moves=np.inf if limits.max_moves is None else float(limits.max_moves),
        )


@dataclass(frozen=True)
class Prices:
    """Value of one unit of each shared limit ($/h), all >= 0; zero if the limit does not bind."""

    supply: Floats
    """(R, H) $/h a unit, on top of the unit's cost."""
    owner: Floats
    """(K,) $ for each $ of the owner's budget."""
    moves: float
    """$/h for each replica started, on top of `move_cost`."""

    def option_cost(self, arrays: FleetArrays) -> Floats:
        """Return (O, R) $/h of a replica with its share of the binding limits, moves aside."""
        part_model = np.repeat(np.arange(arrays.models), np.diff(arrays.part_start))
        model = np.repeat(part_model, np.diff(arrays.option_start))
        factor = 1.0 + self.owner[arrays.owner[model]]
        cell = arrays.unit_cost[:, arrays.option_hardware] * factor + self.supply[:, arrays.option_hardware]
        return np.ascontiguousarray((cell * arrays.option_units).T)


def _current(problem: Problem, region: dict[str, int], options: int) -> Ints:
    index: dict[tuple[str, str, str], int] = {}
    for model in problem.models:
        for part in model.parts:
            for option in part.options:
                index[model.model, part.part, option.hardware] = len(index)
    counts = np.zeros((options, len(region)), dtype=np.int64)
    for row in problem.current.replicas:
        at = index.get((row.model, row.part, row.hardware))
        if at is not None:
            counts[at, region[row.region]] = row.count
    return counts


def _limit(figure: float | None) -> float:
    return np.inf if figure is None else figure


def _floats(figures: list[float]) -> Floats:
    return np.array(figures, dtype=np.float64)


def _ints(figures: list[int]) -> Ints:
    return np.array(figures, dtype=np.int64)


def _starts(lengths: list[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
