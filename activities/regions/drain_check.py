"""The check before a planned drain: a dry run of the planner decides whether the other regions can carry everything."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from temporalio import activity

from activities.planning.budget_report import budget_figures, without_budgets
from activities.planning.policy import PlanningPolicy
from activities.planning.replan import FleetSnapshot, fleet_snapshot
from activities.planning.solver import SolveFailed, Solver
from activities.regions.activities import MOVING_AWAY, ask_replan, count_remaining
from activities.runtime.deadline import beat
from activities.state.drained_fleet import DrainedFleet
from ipnext.errors import Infeasible, InvalidInput, Unavailable
from ipnext.model.lifecycle.regions.drain import Drain, DrainInput, DrainSeen, DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import Plan, Problem, Unmet
from ipnext.model.throughput import amount, unit_in
from ipnext.store.repository import Repository
from ipnext.store.store import Store

CHECKS = 5
"""Repetitions of the check if the fleet or another drain changed meanwhile."""

NAMED = 3
"""Models that a message names at most."""

LEAST_QPS = 1e-6
"""Requests/s below this are noise."""


class DrainCheckActivities:
    """Drain check activities, on the store and a solver for the whole fleet."""

    def __init__(self, store: Store, solver: Solver, policy: PlanningPolicy | None = None) -> None:
        self._store = store
        self._solver = solver
        self._policy = policy or PlanningPolicy()

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.check_drain,)

    @activity.defn(name="check_drain", no_thread_cancel_exception=True)
    def check_drain(self, asked: DrainInput) -> DrainSeen:
        """Begin a planned drain, or refuse it with the models that would stay unserved.

        With `force` it begins in any case. Two drains that are requested together see each other: the later one is
        checked without both regions.
        """
        for _ in range(CHECKS):
            seen = self._check_once(asked.region, beat)
            if seen is not None:
                return seen
        msg = f"the fleet changed {CHECKS} times while the drain of {asked.region!r} was checked; trying again"
        raise Unavailable(msg)

    def _check_once(self, region: str, say: Callable[[str], None]) -> DrainSeen | None:
        """Check once; None if an input has changed.

        The fleet is read outside the writing unit: ten thousand models take seconds.
        """
        with self._store.begin() as repository:
            drain = repository.drain(region)
            if drain is None:
                return DrainSeen(state=DrainState.RETURNED, known=False)
            if drain.disaster or drain.state not in {DrainState.RECORDED, DrainState.CHECKING}:
                return count_remaining(repository, drain)
            drain = repository.update_drain(
                drain.id, state=DrainState.CHECKING, message="the planner looks whether the others can carry it"
            )
        with self._store.read() as repository:
            basis = _basis(repository)
            drained = basis[1].and_region(region, force=drain.force)
            snapshot = fleet_snapshot(repository, self._policy.objective, self._policy.replan_limits, drained)
        refusal = None if drain.force else self._refusal(snapshot, say)
        with self._store.begin() as repository:
            now = repository.drain(region)
            if now is None or now.state is not DrainState.CHECKING or now.disaster or _basis(repository) != basis:
                return None
            return count_remaining(repository, _record_verdict(repository, now, refusal))

    def _refusal(self, snapshot: FleetSnapshot, say: Callable[[str], None]) -> tuple[Reason, str] | None:
        if not snapshot.problem.models:
            return None
        try:
            plan = self._solver.solve(snapshot.problem, beat=say).plan
        except (Infeasible, InvalidInput) as error:
            return Reason.PLANNER_INFEASIBLE, error.message
        except SolveFailed as error:
            return Reason.PLANNER_FAILED, error.message
        before = [unmet for placed in snapshot.placements.values() for unmet in placed.unmet]
        refusal = refusal_of(plan, before, tokens=snapshot.tokens)
        if refusal is None or refusal[0] is not Reason.OVER_BUDGET:
            return refusal
        rules = [rule for unmet in plan.unmet for rule in unmet.rules]
        figures = budget_figures(rules, snapshot.problem, self._plan_without_budgets(snapshot.problem, say))
        return refusal[0], f"{refusal[1]}; {figures}"

    def _plan_without_budgets(self, problem: Problem, say: Callable[[str], None]) -> Plan | None:
        """Return a plan without budgets; None if there is none."""
        try:
            return self._solver.solve(without_budgets(problem), beat=say).plan
        except (Infeasible, InvalidInput, SolveFailed):
            return None


def refusal_of(plan: Plan, before: Iterable[Unmet], *, tokens: Collection[str] = ()) -> tuple[Reason, str] | None:
    """Refuse a drain for demand that would stay unserved beyond the demand that is unserved already.

    None if there is none. `tokens` names the models whose demand is in tokens/s.
    """
    known = {(item.model, item.region): item.qps for item in before}
    worse = [item for item in plan.unmet if item.qps > known.get((item.model, item.region), 0.0) + LEAST_QPS]
    if not worse:
        return None
    rules = {rule for item in worse for rule in item.rules}
    reason = Reason.OVER_BUDGET if rules and all(r.startswith("budget") for r in rules) else Reason.NO_CAPACITY
    shown = sorted(worse, key=lambda item: (-item.qps, item.model, item.region))
    told = [
        f"{item.model}: {amount(item.qps - known.get((item.model, item.region), 0.0), unit_in(item.model, tokens))} "
        f"of {item.region} "
        f"({', '.join(item.rules) or 'no rule named'})"
        for item in shown[:NAMED]
    ]
    more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
    return (
        reason,
        f"the other regions can't carry it; unserved would be {'; '.join(told)}{more}; --force drains it all the same",
    )


def _basis(repository: Repository) -> tuple[int, DrainedFleet]:
    return repository.fleet().version, DrainedFleet.of(repository.drains())


def _record_verdict(repository: Repository, drain: Drain, refusal: tuple[Reason, str] | None) -> Drain:
    if refusal is not None:
        reason, message = refusal
        repository.add_event(None, "Drain", f"region {drain.region} is not drained: {message}")
        return repository.update_drain(drain.id, state=DrainState.REFUSED, cause=reason, message=message)
    repository.add_event(
        None, "Drain", f"region {drain.region} is draining" + (f": {drain.reason}" if drain.reason else "")
    )
    drain = repository.update_drain(drain.id, state=DrainState.DRAINING, cause=Reason.PROGRESSING, message=MOVING_AWAY)
    return ask_replan(repository, drain) if repository.plan_in_force_id() is not None else drain
