"""The placement problem as a mixed-integer program in cvxpy: one named constraint for each rule of docs/planner.md.

The readable reference: every plan of the stated problem, up to about a hundred models. Two tightenings exclude no best
plan: a replica's throughput counts for no more than its largest possible load, and traffic goes only to regions with
replicas. `survive` requires that the served demand of a model fits without any one region (with nothing unmet: its
total demand).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cvxpy as cp
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from ipnext.model.planning.plan import Problem
from planner.core.index import Index, ReplicaColumn, Route

Vector = npt.NDArray[np.float64]
Entry = tuple[int, int, float]
Expression = Any
"""A cvxpy expression. cvxpy and scipy overload operators in ways that their types do not express."""
Constraint = Any
"""A cvxpy constraint."""

NODES_A_SECOND = 8_000
"""Of a program of one column; a program of a thousand columns gets a thousandth of it."""

MOST_OPENING_ROWS = 20_000
"""Beyond it the rows that tie single routes to replicas cost more time than they save."""


@dataclass(frozen=True)
class SolverAnswer:
    """The solver's answer. Without an incumbent `replicas` is None; `bound` is a true lower bound in $/h."""

    replicas: Vector | None
    traffic: Vector | None
    bound: float
    time_ran_out: bool
    iterations: int


class Formulation:
    """Variables, objective and constraints of one problem. Needs at least one placement."""

    def __init__(self, problem: Problem) -> None:
        self.index = Index(problem)
        self.places: Sequence[ReplicaColumn] = self.index.placements
        self.routes: Sequence[Route] = self.index.routes
        largest = np.array([place.largest for place in self.places], dtype=float)
        running = np.array([place.current for place in self.places], dtype=float)
        self.replicas = cp.Variable(len(self.places), integer=True, bounds=[0, largest], name="replicas")
        self.kept = cp.Variable(len(self.places), bounds=[0, np.minimum(running, largest)], name="kept")
        self.traffic = cp.Variable(len(self.routes), bounds=[0, 1], name="traffic")
        self.unmet = cp.Variable(len(self.index.demands), bounds=[0, 1], name="unmet")
        self.holds = cp.Variable(max(1, len(self.groups)), boolean=True, name="holds")

    @cached_property
    def groups(self) -> Sequence[tuple[Sequence[int], int]]:
        """Placements of one part in one region that must hold more than one replica, and that number."""
        least = {(m.model, p.part): p.min_replicas for m in self.index.problem.models for p in m.parts}
        grouped = _group_positions(self.places, lambda place: (place.model, place.part, place.region))
        return [(columns, least[key[:2]]) for key, columns in grouped.items() if least[key[:2]] > 1]

    def objective(self) -> Expression:
        """Return $/h: hardware, latency, replicas started, unmet demand."""
        weights = self.index.problem.objective
        hardware = np.array([place.cost for place in self.places])
        latency = np.array([weights.latency_weight * route.qps * route.rtt_ms for route in self.routes])
        missed = np.array([demand.unmet_cost for demand in self.index.demands])
        started = self._count_started()
        return hardware @ self.replicas + latency @ self.traffic + weights.move_cost * started + missed @ self.unmet

    def constraints(self) -> Mapping[str, Constraint]:
        """Return every rule by its name; rules that the problem does not need are left out."""
        rules = {
            "served": self.require_served(),
            "capacity": self.capacity(),
            "opening": self.opening(),
            "survive": self.survive(),
            "supply": self.supply(),
            "budget model": self.model_budget(),
            "budget owner": self.owner_budget(),
            "min_replicas: held": self.require_held(),
            "min_replicas: enough": self.enough(),
            "kept": self.kept <= self.replicas,
            "moves": self.moves(),
        }
        return {name: rule for name, rule in rules.items() if rule is not None}

    def require_served(self) -> Constraint:
        """Require that the shares of a demand and its unmet fraction sum to 1."""
        row = {(demand.model, demand.region): i for i, demand in enumerate(self.index.demands)}
        entries = [(row[route.model, route.origin], j, 1.0) for j, route in enumerate(self.routes)]
        return _matrix(entries, len(row), len(self.routes)) @ self.traffic + self.unmet == 1

    def capacity(self) -> Constraint | None:
        """Require that the replicas of a part in a region cover its traffic.

        Both are fractions of the largest possible traffic.
        """
        sent = _group_positions(self.routes, lambda route: (route.model, route.to))
        held = _group_positions(self.places, lambda place: (place.model, place.part, place.region))
        can: list[Entry] = []
        load: list[Entry] = []
        rows = [(part, *key) for key in sent for part in self.parts[key[0]]]
        for i, (part, model, region) in enumerate(rows):
            most = sum(self.routes[j].qps for j in sent[model, region])
            load += [(i, j, self.routes[j].qps / most) for j in sent[model, region]]
            can += [(i, k, min(self.places[k].qps / most, 1.0)) for k in held.get((model, part, region), ())]
        return self._covers(can, load, len(rows))

    def opening(self) -> Constraint | None:
        """Send traffic only to regions in which every part has a replica.

        Implied by `capacity`, and tightens its relaxation.
        """
        held = _group_positions(self.places, lambda place: (place.model, place.part, place.region))
        rows = [(part, j) for j, route in enumerate(self.routes) for part in self.parts[route.model]]
        if len(rows) > MOST_OPENING_ROWS:
            return None
        can: list[Entry] = []
        for i, (part, j) in enumerate(rows):
            route = self.routes[j]
            can += [
                (i, k, min(self.places[k].qps / route.qps, 1.0)) for k in held.get((route.model, part, route.to), ())
            ]
        return self._covers(can, [(i, j, 1.0) for i, (_, j) in enumerate(rows)], len(rows))

    def survive(self) -> Constraint | None:
        """Require that the others can serve all served demand without any one region.

        Both are fractions of the largest possible demand.
        """
        asked = [m.model for m in self.index.problem.models if m.survive == "region" and self.index.reachable[m.model]]
        held = _group_positions(self.places, lambda place: (place.model, place.part))
        sent = _group_positions(self.routes, lambda route: route.model)
        can: list[Entry] = []
        load: list[Entry] = []
        rows = [
            (model, part, lost) for model in asked for part in self.parts[model] for lost in self.index.problem.regions
        ]
        for i, (model, part, lost) in enumerate(rows):
            most = self.index.reachable[model]
            load += [(i, j, self.routes[j].qps / most) for j in sent[model]]
            can += [
                (i, k, min(self.places[k].qps / most, 1.0))
                for k in held.get((model, part), ())
                if self.places[k].region != lost
            ]
        return self._covers(can, load, len(rows))

    def supply(self) -> Constraint:
        """Limit the units of a hardware kind in a region."""
        held = _group_positions(self.places, lambda place: (place.region, place.hardware))
        limits = [self.index.supply[key] for key in held]
        return self._within(held.values(), lambda place: place.units, limits)

    def model_budget(self) -> Constraint | None:
        """Limit the cost of a model, $/h."""
        limit = {m.model: m.budget_per_hour for m in self.index.problem.models if m.budget_per_hour is not None}
        return self._budget(lambda place: place.model, limit)

    def owner_budget(self) -> Constraint | None:
        """Limit the cost of all models of an owner, $/h."""
        limit = {o.owner: o.budget_per_hour for o in self.index.problem.owners if o.budget_per_hour is not None}
        owner = {m.model: m.owner for m in self.index.problem.models}
        return self._budget(lambda place: owner[place.model], limit)

    def require_held(self) -> Constraint | None:
        """Allow replicas only if the region holds the part."""
        if not self.groups:
            return None
        pairs = [(g, k) for g, (columns, _) in enumerate(self.groups) for k in columns]
        counts = _matrix([(i, k, 1.0) for i, (_, k) in enumerate(pairs)], len(pairs), len(self.places))
        most = [(i, g, float(self.places[k].largest)) for i, (g, k) in enumerate(pairs)]
        return counts @ self.replicas <= _matrix(most, len(pairs), len(self.groups)) @ self.holds

    def enough(self) -> Constraint | None:
        """Require at least `min_replicas` in a region that holds the part."""
        if not self.groups:
            return None
        counts = [(g, k, 1.0) for g, (columns, _) in enumerate(self.groups) for k in columns]
        least = [(g, g, float(count)) for g, (_, count) in enumerate(self.groups)]
        return (
            _matrix(counts, len(self.groups), len(self.places)) @ self.replicas
            >= _matrix(least, len(self.groups), len(self.groups)) @ self.holds
        )

    def moves(self) -> Constraint | None:
        """Limit the replicas started beyond the running ones."""
        most = self.index.problem.limits.max_moves
        return None if most is None else self._count_started() <= most

    def _count_started(self) -> Expression:
        return (self.replicas - self.kept).sum()

    @cached_property
    def parts(self) -> Mapping[str, Sequence[str]]:
        """Names of each model's parts."""
        return {model.model: [part.part for part in model.parts] for model in self.index.problem.models}

    def _covers(self, can: list[Entry], load: list[Entry], rows: int) -> Constraint | None:
        if not rows:
            return None
        able = _matrix(can, rows, len(self.places)) @ self.replicas
        return able >= _matrix(load, rows, len(self.routes)) @ self.traffic

    def _budget(self, payer: Callable[[ReplicaColumn], str], limit: Mapping[str, float]) -> Constraint | None:
        held = {key: columns for key, columns in _group_positions(self.places, payer).items() if key in limit}
        return self._within(held.values(), lambda place: place.cost, [limit[key] for key in held]) if held else None

    def _within(
        self, groups: Iterable[Sequence[int]], taken: Callable[[ReplicaColumn], float], limits: Sequence[float]
    ) -> Constraint:
        """Limit the usage of each group of placements (a row is a share of its limit if it has one)."""
        scale = [limit if limit > 0 else 1.0 for limit in limits]
        entries = [(i, k, taken(self.places[k]) / scale[i]) for i, group in enumerate(groups) for k in group]
        right = np.array([limit / by for limit, by in zip(limits, scale, strict=True)])
        return _matrix(entries, len(limits), len(self.places)) @ self.replicas <= right

    def solve(self) -> SolverAnswer:
        """Solve with HiGHS on one thread with a fixed seed, within the problem's time and gap."""
        program = cp.Problem(cp.Minimize(self.objective()), list(self.constraints().values()))
        data, chain, inverse = program.get_problem_data(cp.HIGHS)
        limits = self.index.problem.limits
        options = {
            "threads": 1,
            "random_seed": 0,
            "time_limit": limits.time_seconds,
            "mip_rel_gap": limits.gap,
            "mip_abs_gap": 1e-9,
            "mip_max_nodes": self._most_nodes(),
            "output_flag": False,
        }
        result = chain.solve_via_data(program, data, solver_opts=options)
        return self._answer(result, chain, inverse)

    def _most_nodes(self) -> int:
        """Return the nodes that a slow machine explores in the given time.

        The search ends by count, not by the clock, if possible.
        """
        columns = len(self.places) + len(self.routes)
        return max(50, int(self.index.problem.limits.time_seconds * NODES_A_SECOND / columns))

    def _answer(self, result: Mapping[str, Any], chain: Any, inverse: Any) -> SolverAnswer:
        info, status = result["info"], result["model_status"]
        bound = float(info.mip_dual_bound) if status in _ENDED else 0.0
        found = None
        if status in _ENDED and int(info.primal_solution_status) == _FEASIBLE:
            found = chain.invert(result, inverse).primal_vars
        return SolverAnswer(
            replicas=None if found is None else np.asarray(found[self.replicas.id], dtype=float).ravel(),
            traffic=None if found is None else np.asarray(found[self.traffic.id], dtype=float).ravel(),
            bound=bound if np.isfinite(bound) else 0.0,
            time_ran_out=status == "kTimeLimit",
            iterations=max(0, int(info.simplex_iteration_count)),
        )


_ENDED = frozenset({"kOptimal", "kTimeLimit", "kSolutionLimit"})
"""HiGHS: proved within the gap, out of time, out of nodes. After any other status its figures mean nothing."""

_FEASIBLE = 2
"""HiGHS: the solution satisfies every row within its tolerance."""


def _group_positions(items: Sequence[Any], key: Callable[[Any], Any]) -> dict[Any, list[int]]:
    """Return positions of the items by their key, in order."""
    groups: dict[Any, list[int]] = {}
    for position, item in enumerate(items):
        groups.setdefault(key(item), []).append(position)
    return groups


def _matrix(entries: Sequence[Entry], rows: int, columns: int) -> Any:
    if not entries:
        return sp.csr_array((rows, columns))
    row, column, value = zip(*entries, strict=True)
    return sp.csr_array((np.array(value, dtype=float), (np.array(row), np.array(column))), shape=(rows, columns))
