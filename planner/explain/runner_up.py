"""Cost of a model without one of its placements, and at best: planned again, all other models as they are.

Called by the explanation. The reference formulation is solved, which also proves how much cheaper no plan can be; for a
model of many placements the fleet's search, which proves little but is fast.
"""

from collections.abc import Collection, Iterator, Mapping

from ipnext.model.planning.explanation import PlanFigures, RunnerUp
from ipnext.model.planning.plan import ModelProblem, Problem
from planner.core.arrays import FleetArrays
from planner.core.diff import replica_of
from planner.core.figures import count_started, figures, round_figure, spent, used_units
from planner.core.index import Index, Key
from planner.core.solution import Counts, Holding, route_traffic, trim_replicas
from planner.exact.formulation import Constraint, Formulation
from planner.explain.shadow_prices import limit_figures

MOST_PROVED = 8
"""Placements of a model up to which the reference formulation is solved."""

GAP = 5e-3
"""Closer than a plan's: the difference of two plans matters here."""

MOST_NODES = 100
"""Of the reference's search: it ends by count, not by the clock."""

SLACK = 1e-6


def best(rest: Problem, now: PlanFigures, *, proved: bool) -> RunnerUp:
    """Return the best plan found for the one model of `rest`, against its figures now. `proved`: by the reference."""
    return _Search(rest, None, proved=proved).find_best(now)


def runners_up(rest: Problem, placements: Collection[Key], now: PlanFigures) -> Mapping[Key, RunnerUp]:
    """Return the best plan found for the one model of `rest` without each placement, against its figures now.

    `rest` is the residual that the other models leave (`planner.plan_fit`). Demand that no other place can hold is
    unmet, at its price.
    """
    proved = len(placements) <= MOST_PROVED
    return {placement: _Search(rest, placement, proved=proved).find_best(now) for placement in placements}


class _Search:
    """The plans of one model without a placement, or with all of them."""

    def __init__(self, rest: Problem, placement: Key | None, *, proved: bool) -> None:
        limits = rest.limits.model_copy(update={"gap": min(GAP, rest.limits.gap)})
        self.problem = rest.model_copy(update={"limits": limits})
        self.placement, self.proved = placement, proved
        self.index = Index(self.problem)
        self.bound = 0.0

    def find_best(self, now: PlanFigures) -> RunnerUp:
        """Return the best plan."""
        holdings = [Holding(counts, route_traffic(self.index, counts)) for counts in self._propose()]
        first, then = min(((h, figures(self.index, h)) for h in holdings), key=lambda pair: pair[1].objective)
        return RunnerUp(
            extra_per_hour=round_figure(then.objective - now.objective),
            extra_at_least=round_figure(min(self.bound, then.objective) - now.objective),
            cost_per_hour=then.cost_per_hour,
            unmet_qps=then.unmet_qps,
            replicas=tuple(replica_of(key, count) for key, count in sorted(first.counts.items())),
        )

    def _propose(self) -> Iterator[Counts]:
        """Yield replicas that keep every limit; none at all first."""
        yield {}
        if not self.index.placements or not self.index.routes:
            return
        if self.proved:
            yield from self._by_reference()
            return
        counts = self._by_fleet(self.problem if self.placement is None else bar_placement(self.problem, self.placement))
        if self.placement is not None and not _fits(self.index, counts):
            counts = self._by_fleet(_empty_supply(self.problem, self.placement))
        if _fits(self.index, counts):
            yield counts

    def _by_fleet(self, problem: Problem) -> Counts:
        """Return the replicas that the fleet-scale search finds; none if some part has no hardware left."""
        asked = _drop_unsupplied(problem)
        if asked is None:
            return {}
        from planner.fleet.assembly import holding_of  # noqa: PLC0415 - numba takes a second to import: only if needed
        from planner.fleet.solver import solve_fleet  # noqa: PLC0415

        arrays = FleetArrays.of(asked)
        answer = solve_fleet(asked, arrays)
        self.bound = max(self.bound, answer.bound) if self.placement is None else self.bound
        found = holding_of(asked, arrays, answer.configurations)
        return {(*key[:3], key[3].removesuffix(_of(key[1]))): count for key, count in found.counts.items()}

    def _by_reference(self) -> Iterator[Counts]:
        """Yield the replicas that the reference finds; raises the bound."""
        formulation = _Without(self.problem, self.placement)
        answer = formulation.solve()
        self.bound = max(self.bound, answer.bound)
        if answer.replicas is not None and answer.traffic is not None:
            places = zip(formulation.places, answer.replicas, strict=True)
            counts = {place.key: round(float(count)) for place, count in places}
            yield trim_replicas(self.index, counts, [float(share) for share in answer.traffic])


class _Without(Formulation):
    """The formulation with one placement empty."""

    def __init__(self, problem: Problem, placement: Key | None) -> None:
        super().__init__(problem)
        self.barred = [k for k, place in enumerate(self.places) if place.key == placement]

    def constraints(self) -> Mapping[str, Constraint]:
        """Return all rules, and the rule that the placement has no replica."""
        rules = super().constraints()
        return {**rules, "without": self.replicas[self.barred] == 0} if self.barred else rules

    def _most_nodes(self) -> int:
        return MOST_NODES


def bar_placement(problem: Problem, placement: Key) -> Problem:
    """Return the problem of one model with a separate supply for a part's hardware, of which one region has none.

    Looser than barring the placement if another part uses the same hardware: check the sum of both.
    """
    _, part_name, region, kind = placement
    own = kind + _of(part_name)
    supply = tuple(
        item.model_copy(update={"hardware": own, "units": 0.0 if item.region == region else item.units})
        for item in problem.supply
        if item.hardware == kind
    )
    current = problem.current.model_copy(
        update={
            "replicas": tuple(
                row.model_copy(update={"hardware": own}) if (row.part, row.hardware) == (part_name, kind) else row
                for row in problem.current.replicas
            )
        }
    )
    return problem.model_copy(
        update={
            "hardware": (*problem.hardware, own),
            "supply": (*problem.supply, *supply),
            "models": tuple(_rename_kind(model, part_name, kind, own) for model in problem.models),
            "current": current,
        }
    )


def _of(part: str) -> str:
    """Return the suffix that makes a hardware kind specific to one part."""
    return f" of {part}"


def _drop_unsupplied(problem: Problem) -> Problem | None:
    """Return the problem without hardware that is supplied nowhere; None if a part is left without any."""
    kinds = {item.hardware for item in problem.supply if item.units > 0}
    models = tuple(
        model.model_copy(
            update={
                "parts": tuple(
                    part.model_copy(update={"options": tuple(o for o in part.options if o.hardware in kinds)})
                    for part in model.parts
                )
            }
        )
        for model in problem.models
    )
    if not all(part.options for model in models for part in model.parts):
        return None
    return problem.model_copy(
        update={
            "hardware": tuple(kind for kind in problem.hardware if kind in kinds),
            "supply": tuple(item for item in problem.supply if item.hardware in kinds),
            "models": models,
            "current": problem.current.model_copy(
                update={"replicas": tuple(row for row in problem.current.replicas if row.hardware in kinds)}
            ),
        }
    )


def _rename_kind(model: ModelProblem, part_name: str, kind: str, own: str) -> ModelProblem:
    parts = tuple(
        part.model_copy(
            update={
                "options": tuple(
                    option.model_copy(update={"hardware": own}) if option.hardware == kind else option
                    for option in part.options
                )
            }
        )
        if part.part == part_name
        else part
        for part in model.parts
    )
    return model.model_copy(update={"parts": parts})


def _empty_supply(problem: Problem, placement: Key) -> Problem:
    """Return the problem without the supply of a placement's hardware in its region, for any part."""
    supply = tuple(
        item.model_copy(update={"units": 0.0}) if (item.region, item.hardware) == placement[2:] else item
        for item in problem.supply
    )
    return problem.model_copy(update={"supply": supply})


def _fits(index: Index, counts: Counts) -> bool:
    """Check whether the replicas keep supply, budgets and moves."""
    taken = {f"supply {region}/{kind}": units for (region, kind), units in used_units(index, counts).items()}
    for model in index.problem.models:
        cost = spent(index, counts).get(model.model, 0.0)
        taken |= {f"budget model {model.model}": cost, f"budget owner {model.owner}": cost}
    taken["moves"] = float(count_started(index, counts))
    limits = limit_figures(index.problem)
    return all(taken.get(rule, 0.0) <= limit * (1 + SLACK) + SLACK for rule, limit in limits.items())
