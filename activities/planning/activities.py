"""Planning: place one model on the residual capacity of the fleet, or plan the whole fleet again.

A plan is adopted only in place of the one it was based on, so two plans never allocate the same supply twice.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import Final

from temporalio import activity

from activities.planning.adoption import PLACEMENT_RULES, held_plan
from activities.planning.budget_report import budget_figures, budgets_in, without_budgets
from activities.planning.policy import PlanningPolicy
from activities.planning.problem import residual_problem
from activities.planning.replan import FleetReplan
from activities.planning.solver import SolveFailed, Solver
from activities.planning.solver_process import PLANNER
from activities.runtime.deadline import beat
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.owner_turns import OwnerPlaces, OwnerShares, ShareTaken
from activities.state.drained_fleet import DrainedFleet
from ipnext.errors import Infeasible, InvalidInput, QuotaExceeded, StaleWrite, Unavailable
from ipnext.model.lifecycle.changes.change_stages import end_stage
from ipnext.model.lifecycle.changes.lifecycle_run import PlanningResult, StageInput
from ipnext.model.lifecycle.failure_cause import STEPS, Cause, Place
from ipnext.model.lifecycle.regions.unserved_regions import binding_reason
from ipnext.model.lifecycle.replans.replan import ReplanComputed, ReplanInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.plan import CurrentState, Owner, Plan, Problem
from ipnext.model.throughput import Unit, amount
from ipnext.model.value import digest_of
from ipnext.names import replan_plan_id
from ipnext.store.operations.change_end import ROLLS_OUT
from ipnext.store.operations.quota_claims import admit_wishes
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import ModelPlacement, ModelRecord, PlanRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from planner.core.diff import diff
from planner.verify.plan_checker import check

SMALL_CELLS: Final = 400
"""Cells of a model that is placed in this process: options of its parts, in each region. That takes some milliseconds,
for the largest a second; the time grows faster than the number."""

_TURN: Final = OwnerPlaces(1)
"""One small model is placed at a time in a process, by turns of the owners."""

ADOPTIONS = 5
"""Attempts to adopt before the activity is retried as a whole."""


class SearchDied(RuntimeError):
    """The process that places a model was killed or crashed; another attempt may succeed."""


class PlanningActivities:
    """Planning activities, on the store and a solver for the whole fleet and for large models.

    The solver is a separate process if many models are planned. `shares`: of the slots in which owners' models are
    placed.
    """

    def __init__(
        self, store: Store, solver: Solver, policy: PlanningPolicy | None = None, *, shares: OwnerShares | None = None
    ) -> None:
        self._store = store
        self._solver = solver
        self._policy = policy or PlanningPolicy()
        self._shares = shares or OwnerShares()

    @activity.defn(name="place_model", no_thread_cancel_exception=True)
    @of_a_step
    def place_model(self, stage: StageInput) -> PlanningResult:
        """Place one model on the capacity that all others leave, and adopt the plan.

        An unchanged model keeps its placement. The manifest that a rollout was validated with is in force from then on,
        until the rollout ends without success. Not feasible if nothing of it can be placed; the message names demand
        that is left unmet. Raises ShareTaken if other work of the owner holds its share of the slots.
        """
        for _ in range(ADOPTIONS):
            try:
                planned = self._place_once(stage)
            except StaleWrite:
                beat("another plan came first; planning again")
                continue
            self._note(stage, planned)
            return planned
        msg = "other plans were adopted all the time; trying again"
        raise Unavailable(msg)

    @activity.defn(name="replan_fleet", no_thread_cancel_exception=True)
    def replan_fleet(self, replan: ReplanInput) -> ReplanComputed:
        """Plan all serving models again for the waiting replans, and adopt the plan if it is worth it.

        The run's id names the plan. A failure leaves the plan in force unchanged: the reason is in the result, in the
        plan's entry and in the fleet's events. The waiting replans are in the store; `replan` has no content.
        """
        del replan
        info = activity.info()
        fleet_replan = FleetReplan(self._store, self._solver, self._policy, say=beat, attempt=info.attempt)
        return fleet_replan.compute(replan_plan_id(info.workflow_run_id or ""), run_id=info.workflow_run_id or "")

    def _place_once(self, stage: StageInput) -> PlanningResult:
        policy = self._policy
        with self._store.read() as repository:
            in_force, placed = repository.plan_in_force(), repository.placement(stage.model)
            record = repository.model(stage.model)
            manifest = record.judged_manifest if stage.kind in ROLLS_OUT else record.in_force
            drained = DrainedFleet.of(repository.drains())
            try:
                problem = residual_problem(
                    repository,
                    stage.model,
                    generation=stage.generation,
                    by=manifest,
                    objective=policy.objective,
                    limits=policy.place_limits,
                )
            except InvalidInput as error:
                return _infeasible(Reason.PLANNER_INFEASIBLE, error.message, Place())
            budgets = {item.owner: item for item in repository.fleet().spec.owners}
        whole = tuple(Owner.of(budgets[item.owner]) if item.owner in budgets else item for item in problem.owners)
        if placed is not None and keeps(placed, problem.model_copy(update={"owners": whole})):
            if stage.kind in ROLLS_OUT and record.validated != record.accepted:
                with self._store.begin(stage.model) as repository:
                    adopt_manifest(repository, stage, record, placed, plan_id=placed.plan_id)
            return _make_result(placed.plan_id, placed.cost_per_hour, message="the placement in force still holds")
        try:
            plan = self._search(problem, stage.model)
        except (Infeasible, InvalidInput, SolveFailed) as error:
            named = next((region for region in problem.regions if repr(region) in error.message), None)
            reason = Reason.PLANNER_FAILED if isinstance(error, SolveFailed) else Reason.PLANNER_INFEASIBLE
            return _infeasible(reason, error.message.removeprefix("models[0]."), Place(region=named))
        rules = [rule for unmet in plan.unmet for rule in unmet.rules]
        figures = self._budget_figures(problem, whole, stage.model, rules)
        if not plan.replicas:
            most = max(plan.unmet, key=lambda unmet: unmet.qps, default=None)
            place = Place(region=most.region if most else None)
            message = _join_texts(unplaced_message(plan), figures, drained.advice)
            return _infeasible(binding_reason(rules), message, place)
        base, cost = (in_force.id, in_force.cost_per_hour) if in_force else (None, 0.0)
        adopted = _record(stage, problem, plan, before=placed, base=base, fleet_cost=cost)
        prepared = PreparedPlan.of(adopted)
        try:
            with self._store.begin(stage.model) as repository:
                adopt_manifest(repository, stage, record, placed, plan_id=adopted.id)
                admit_wishes(repository, problem.models[0], replicas=policy.owner_replicas)
                repository.adopt_plan(prepared, expected=base)
        except QuotaExceeded as error:
            return _infeasible(Reason.QUOTA_EXCEEDED, error.message, Place())
        message = _join_texts(_unmet_message(plan, manifest.spec.unit), figures)
        return _make_result(adopted.id, plan.cost_per_hour, moves=adopted.diff.moves, message=message)

    def _search(self, problem: Problem, model: str) -> Plan:
        """Place one model. Raises Infeasible, InvalidInput, SolveFailed, ShareTaken, and SearchDied."""
        owner = next((item.owner for item in problem.models if item.model == model), "")
        with self._shares.hold(owner):
            if count_cells(problem) <= SMALL_CELLS:
                with _TURN.take(owner, beat, "waiting for the turn to place a model"):
                    plan: Plan = import_module(PLANNER).place(problem, [model])
                return plan
            try:
                return self._solver.solve(problem, beat=beat, model=model).plan
            except SolveFailed as error:
                if error.died:
                    raise SearchDied(error.message) from error
                raise

    def _budget_figures(self, problem: Problem, whole: Sequence[Owner], model: str, rules: Sequence[str]) -> str:
        """Return the budgets that would suffice if budgets bind.

        `whole` lists the owners with their budgets for all their models.
        """
        if not budgets_in(rules):
            return ""
        try:
            unbounded = self._search(without_budgets(problem), model)
        except (Infeasible, InvalidInput, SolveFailed, SearchDied, ShareTaken):
            unbounded = None
        return budget_figures(rules, problem, unbounded, owners=whole)

    def _note(self, stage: StageInput, planned: PlanningResult) -> None:
        message = f"generation {stage.generation}" + (f": {planned.message}" if planned.message else "")
        with self._store.begin(stage.model) as repository:
            repository.set_condition(
                stage.model, ConditionType.PLANNED, "True" if planned.feasible else "False", planned.reason, message
            )
            if planned.feasible:
                repository.note_stages(
                    stage.model, stage.change_id, lambda stages, at: end_stage(stages, "planning", at)
                )
            detail = {"plan": planned.plan_id, "moves": planned.moves}
            if not planned.feasible:
                place = planned.place.model_copy(update={"step": STEPS[ConditionType.PLANNED]})
                cause = Cause(change=stage.change_id, reason=planned.reason, message=planned.message, place=place)
                detail |= cause.detail
            repository.add_event(stage.model, ConditionType.PLANNED.value, message, detail=detail)


def adopt_manifest(
    repository: Repository, stage: StageInput, seen: ModelRecord, placed: ModelPlacement | None, *, plan_id: str
) -> None:
    """Let the model go by the manifest that the change is planned by, in the unit of work that adopts its placement.

    No freeze and no cut holds the change up any more. `seen` and `placed` are what the plan was made from; they are
    kept for the case that the change ends without success, and for repairs of what serves while the change waits for
    supply. `plan_id` is the plan of the placement that the change goes by.

    Raises:
        FenceLost: the change has ended; the next one may be validated and frozen by now.
        StaleWrite: another revision was accepted since.
    """
    repository.check_fence(stage.change_id)
    now = repository.model(stage.model)
    if (now.validated, now.accepted) != (seen.validated, seen.accepted):
        msg = f"another revision of the manifest of {stage.model!r} was accepted; plan it again"
        raise StaleWrite(msg)
    brings = stage.kind in ROLLS_OUT
    generation = stage.generation if brings else 0
    repository.keep_former(
        stage.model, change_id=stage.change_id, generation=generation, placed=placed, plan_id=plan_id
    )
    if brings:
        repository.put_in_force(stage.model)


def count_cells(problem: Problem) -> int:
    """Return the places in which a problem's parts may have replicas: options times regions."""
    options = sum(len(part.options) for model in problem.models for part in model.parts)
    return options * len(problem.regions)


def keeps(placed: ModelPlacement, problem: Problem) -> bool:
    """Check whether a model may stay as the plan in force has it: the same wishes as then, all met, no rule broken.

    `problem` holds the model alone, on the supply that the others leave.
    """
    if placed.wishes != problem.models[0] or placed.unmet or not placed.replicas:
        return False
    alone = held_plan([placed], problem)
    if alone is None or alone.unmet:
        return False
    return not any(violation.rule in PLACEMENT_RULES for violation in check(problem, alone))


def _record(
    stage: StageInput,
    problem: Problem,
    plan: Plan,
    *,
    before: ModelPlacement | None,
    base: str | None,
    fleet_cost: float,
) -> PlanRecord:
    """Build the plan of one model; its difference has the whole fleet's cost."""
    change = diff(before.state if before else CurrentState(), plan)
    after = fleet_cost - (before.cost_per_hour if before else 0.0) + plan.cost_per_hour
    costs = {"cost_per_hour_before": fleet_cost, "cost_per_hour_after": float(f"{after:.12g}")}
    return PlanRecord(
        id=f"{stage.change_id}.{digest_of([digest_of(plan), base])[:12]}",
        trigger=f"{stage.kind} {stage.model}",
        scope=stage.model,
        input_digest=digest_of(problem),
        problem=problem,
        plan=plan,
        diff=change.model_copy(update=costs),
        created_at=datetime.now(UTC),
    )


def _make_result(plan_id: str, cost: float, *, moves: int = 0, message: str) -> PlanningResult:
    return PlanningResult(plan_id=plan_id, feasible=True, moves=moves, cost_per_hour=cost, message=message)


def _infeasible(reason: Reason, message: str, place: Place) -> PlanningResult:
    return PlanningResult(
        plan_id="", feasible=False, moves=0, cost_per_hour=0.0, reason=reason, message=message, place=place
    )


def _join_texts(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def unplaced_message(plan: Plan) -> str:
    """Explain in words why a plan of one model has no replica."""
    rules = dict.fromkeys(rule for unmet in plan.unmet for rule in unmet.rules)
    return f"nothing can be placed: {'; '.join(rules)}"


def _unmet_message(plan: Plan, unit: Unit) -> str:
    """Describe the unserved demand in words; empty if there is none."""
    lines = [
        f"{amount(unmet.qps, unit)} of {unmet.region} stay unserved ({', '.join(unmet.rules)})" for unmet in plan.unmet
    ]
    return "; ".join(lines)
