"""What a peer decided, and the plan document it makes: the same for every peer, so that one checker judges them all."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ipnext.model.planning.plan import Plan, Problem, ReplicaCount, SolverInfo, TrafficShare, Unmet

Numbers = npt.NDArray[np.float64]
ROUNDING = 5e-7
"""An unmet fraction below it is rounding."""


class Holding:
    """Replicas and traffic of the models placed so far."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.replicas: list[ReplicaCount] = []
        self.traffic: list[TrafficShare] = []

    def put(self, m: int, counts: Numbers, flow: Numbers) -> None:
        """Add model m: replicas (O, R) in the order of its options, QPS (R, R) from users to regions."""
        model, names = self.problem.models[m], self.problem.regions
        options = [(part.part, option.hardware) for part in model.parts for option in part.options]
        for o, r in np.argwhere(counts > 0):
            part, hardware = options[o]
            row = {"model": model.model, "part": part, "region": names[r], "hardware": hardware}
            self.replicas.append(ReplicaCount(**row, count=int(counts[o, r])))
        qps = {demand.region: demand.qps for demand in model.demand}
        for s, r in np.argwhere(flow > 0):
            fraction = round(min(1.0, flow[s, r] / qps[names[s]]), 12)
            self.traffic.append(TrafficShare(model=model.model, origin=names[s], to=names[r], fraction=fraction))

    def add(
        self, counts: Mapping[tuple[str, str, str, str], int], shares: Mapping[tuple[str, str, str], float]
    ) -> None:
        """Add replicas by (model, part, region, hardware) and traffic by (model, from, to)."""
        for (model, part, region, hardware), count in counts.items():
            self.replicas.append(ReplicaCount(model=model, part=part, region=region, hardware=hardware, count=count))
        for (model, origin, to), fraction in shares.items():
            self.traffic.append(TrafficShare(model=model, origin=origin, to=to, fraction=fraction))

    def plan(self, method: str, bound: float = 0.0, bound_covers: str = "nothing") -> Plan:
        """Return the plan document, in canonical order. Demand that no share serves is unmet."""
        problem = self.problem
        served: dict[tuple[str, str], float] = defaultdict(float)
        for share in self.traffic:
            served[share.model, share.origin] += share.fraction
        lost = [
            Unmet(model=model.model, region=demand.region, qps=missing * demand.qps, rules=("gap",))
            for model in problem.models
            for demand in model.demand
            if demand.qps > 0 and (missing := 1.0 - served[model.model, demand.region]) > ROUNDING
        ]
        cost, objective = self._cost(), self._objective(lost)
        bound = min(bound, objective)
        return Plan(
            status="feasible",
            objective=objective,
            bound=bound,
            gap=(objective - bound) / objective if objective > 0 else 0.0,
            bound_covers=bound_covers,
            cost_per_hour=cost,
            replicas=tuple(sorted(self.replicas, key=lambda r: (r.model, r.part, r.region, r.hardware))),
            traffic=tuple(sorted(self.traffic, key=lambda t: (t.model, t.origin, t.to))),
            unmet=tuple(lost),
            solver=SolverInfo(method=method, seconds=0.0),
        )

    def _cost(self) -> float:
        models = self.problem.models
        units = {(m.model, p.part, o.hardware): o.units for m in models for p in m.parts for o in p.options}
        price = {(item.region, item.hardware): item.unit_cost for item in self.problem.supply}
        return sum(
            r.count * units[r.model, r.part, r.hardware] * price.get((r.region, r.hardware), 0.0) for r in self.replicas
        )

    def _objective(self, lost: list[Unmet]) -> float:
        problem, weights = self.problem, self.problem.objective
        priority = {model.model: model.priority for model in problem.models}
        index = {name: i for i, name in enumerate(problem.regions)}
        qps = {(model.model, demand.region): demand.qps for model in problem.models for demand in model.demand}
        running = {(r.model, r.part, r.region, r.hardware): r.count for r in problem.current.replicas}
        latency = sum(
            qps.get((t.model, t.origin), 0.0) * t.fraction * problem.rtt_ms[index[t.origin]][index[t.to]]
            for t in self.traffic
        )
        started = sum(max(0, r.count - running.get((r.model, r.part, r.region, r.hardware), 0)) for r in self.replicas)
        missed = sum(priority[item.model] * item.qps for item in lost)
        return (
            self._cost() + weights.latency_weight * latency + weights.move_cost * started + weights.unmet_cost * missed
        )
