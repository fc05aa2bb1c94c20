"""Planning: one model placed on what is left of the fleet, or the whole fleet planned anew.

A plan is adopted only in place of the one it was made from, so two plans never give the same supply twice.
"""

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from temporalio import activity

from activities.adoption import PLACEMENT_RULES, adopt, moved_models, replaces
from activities.problems import (
    cost_per_hour,
    entitled,
    fleet_problem,
    model_problem,
    planned_models,
    rows_of,
    running,
    units_entitled,
    with_supply_left,
)
from activities.solving import Solver
from activities.waiting import beat
from ipnext.errors import Infeasible, InvalidInput, NotFound, StaleWrite, Unavailable
from ipnext.model.lifecycle import Planned, ReplanComputed, ReplanInput, StageInput
from ipnext.model.plan import CurrentState, Limits, Objective, Plan, Problem
from ipnext.model.status import ConditionType, Reason
from ipnext.model.value import digest_of
from ipnext.store.records import PlanRecord
from ipnext.store.repository import Repository
from ipnext.store.session import Store
from planner.diff import diff
from planner.solution import check
from planner.solve import place

OBJECTIVE = Objective(latency_weight=0.0001, move_cost=0.05, unmet_cost=10.0)
"""Near regions win where the cost is equal; a replica is not moved for less than 5 cents an hour."""

PLACE_LIMITS = Limits(time_seconds=20.0, gap=0.01)
"""One model on the residual fleet: seconds, not minutes."""

REPLAN_LIMITS = Limits(time_seconds=60.0, gap=0.01)
"""The whole fleet."""

ADOPTIONS = 5
"""Tries to adopt before the activity is retried as a whole."""


class PlanningActivities:
    """Needs the store, and a solver for the whole fleet (its own process, where many models are planned)."""

    def __init__(self, store: Store, solver: Solver, *, objective: Objective = OBJECTIVE) -> None:
        self._store = store
        self._solver = solver
        self._objective = objective
        self._turn = threading.Lock()

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything a worker registers."""
        return (self.place_model, self.replan_fleet)

    @activity.defn(name="place_model", no_thread_cancel_exception=True)
    def place_model(self, stage: StageInput) -> Planned:
        """Place one model on what all others leave, and adopt the plan. An unchanged model keeps its place.

        Not feasible where nothing of it can be placed; demand that is left unmet is named in the message.
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
        """Plan all serving models anew and adopt the plan where it is worth it. The run's id names the plan.

        A failure leaves the plan in force as it is: the reason is in the answer and in the fleet's events.
        """
        plan_id = f"replan-{activity.info().workflow_run_id}"
        with self._store.read() as repository:
            known = _find_plan(repository, plan_id)
            in_force = repository.plan_in_force()
            if known is not None:
                return _computed(known, _movable(repository, known), adopted=known.adopted)
            problem = self._whole_problem(repository, in_force)
        try:
            plan = self._solver.solve(problem, beat=beat)
        except (Infeasible, InvalidInput) as error:
            return self._not_planned(in_force, Reason.PLANNER_INFEASIBLE, error.message)
        return self._adopt_if_better(plan_id, replan, problem, plan, in_force)

    def _place_once(self, stage: StageInput) -> Planned:
        with self._store.read() as repository:
            in_force = repository.plan_in_force()
            manifest = repository.model(stage.model).manifest
            wanted = model_problem(manifest)
            fleet = repository.fleet().spec
            others = entitled(repository, in_force, but=stage.model)
            own = running(repository.deployments(stage.model), repository.routes(stage.model))
            rest = with_supply_left(fleet, units_entitled(repository, others))
            models = [*planned_models(fleet, repository.models(), in_force, but=stage.model), wanted]
        if in_force is not None and keeps(in_force, fleet_problem(rest, [wanted]), stage.model):
            message = "the placement in force still holds"
            return _planned(in_force, stage.model, moves=0, message=message)
        current = CurrentState(replicas=(*others.replicas, *own.replicas), traffic=(*others.traffic, *own.traffic))
        problem = fleet_problem(fleet, models, current=current, objective=self._objective, limits=PLACE_LIMITS)
        try:
            with self._turn:
                plan = place(problem, [stage.model])
        except (Infeasible, InvalidInput) as error:
            return _infeasible(Reason.PLANNER_INFEASIBLE, error.message)
        if not rows_of(plan, stage.model).replicas:
            rules = [rule for unmet in plan.unmet if unmet.model == stage.model for rule in unmet.rules]
            return _infeasible(_binding_reason(rules), f"nothing can be placed: {'; '.join(dict.fromkeys(rules))}")
        return self._adopt(stage, problem, plan, in_force)

    def _adopt(self, stage: StageInput, problem: Problem, plan: Plan, in_force: PlanRecord | None) -> Planned:
        before = in_force.plan if in_force else CurrentState()
        record = PlanRecord(
            id=f"{stage.change_id}.{digest_of([digest_of(plan), in_force.id if in_force else None])[:12]}",
            trigger=f"{stage.kind} {stage.model}",
            input_digest=digest_of(problem),
            problem=problem,
            plan=plan,
            diff=diff(before, plan),
            created_at=datetime.now(UTC),
        )
        with self._store.begin() as repository:
            adopt(repository, record, expected=in_force)
        return _planned(record, stage.model, moves=record.diff.moves, message=_unmet_message(plan, stage.model))

    def _note(self, stage: StageInput, planned: Planned) -> None:
        status = "True" if planned.feasible else "False"
        message = f"generation {stage.generation}" + (f": {planned.message}" if planned.message else "")
        with self._store.begin(stage.model) as repository:
            repository.set_condition(
                stage.model, ConditionType.PLANNED, "True" if status == "True" else "False", planned.reason, message
            )
            detail = {"plan": planned.plan_id, "moves": planned.moves}
            repository.add_event(stage.model, ConditionType.PLANNED.value, message, detail=detail)

    def _whole_problem(self, repository: Repository, in_force: PlanRecord | None) -> Problem:
        fleet, records = repository.fleet().spec, repository.models()
        current = running(
            repository.deployments(), [table for record in records for table in repository.routes(record.name)]
        )
        models = planned_models(fleet, records, in_force)
        return fleet_problem(fleet, models, current=current, objective=self._objective, limits=REPLAN_LIMITS)

    def _adopt_if_better(
        self, plan_id: str, replan: ReplanInput, problem: Problem, plan: Plan, in_force: PlanRecord | None
    ) -> ReplanComputed:
        verdict = replaces(plan, in_force, problem)
        before = in_force.plan if in_force else problem.current
        record = PlanRecord(
            id=plan_id,
            trigger=replan.trigger,
            input_digest=digest_of(problem),
            problem=problem,
            plan=plan,
            diff=diff(before, plan),
            message=verdict.message,
            created_at=datetime.now(UTC),
        )
        with self._store.begin() as repository:
            if verdict.adopt:
                adopt(repository, record, expected=in_force)
            else:
                repository.save_plan(record)
            repository.add_event(None, "Replan", f"{replan.trigger}: {verdict.message}", detail={"plan": plan_id})
            movable = _movable(repository, record)
        return _computed(record, movable, adopted=verdict.adopt)

    def _not_planned(self, in_force: PlanRecord | None, reason: Reason, message: str) -> ReplanComputed:
        with self._store.begin() as repository:
            repository.add_event(None, "ReplanFailed", f"{reason}: {message}; the plan in force stays")
        return ReplanComputed(plan_id=in_force.id if in_force else "", adopted=False, reason=reason, message=message)


def keeps(in_force: PlanRecord, problem: Problem, model: str) -> bool:
    """Whether a model may stay where the plan in force has it: the same wishes as then, all met, no rule broken.

    `problem` holds the model alone, on the supply that the others leave.
    """
    planned = {item.model: item for item in in_force.problem.models}.get(model)
    rows = rows_of(in_force.plan, model)
    if planned is None or not rows.replicas or any(unmet.model == model for unmet in in_force.plan.unmet):
        return False
    if planned != problem.models[0]:
        return False
    alone = in_force.plan.model_copy(update={"replicas": rows.replicas, "traffic": rows.traffic, "unmet": ()})
    return not any(violation.rule in PLACEMENT_RULES for violation in check(problem, alone))


def _find_plan(repository: Repository, plan_id: str) -> PlanRecord | None:
    try:
        return repository.plan(plan_id)
    except NotFound:
        return None


def _movable(repository: Repository, record: PlanRecord) -> tuple[str, ...]:
    serving = {found.name for found in repository.models() if found.serving_generation and not found.retired}
    return tuple(model for model in moved_models(record) if model in serving)


def _computed(record: PlanRecord, models: tuple[str, ...], *, adopted: bool) -> ReplanComputed:
    return ReplanComputed(
        plan_id=record.id,
        adopted=adopted,
        message=record.message,
        moves=record.diff.moves,
        models=models if adopted else (),
    )


def _planned(record: PlanRecord, model: str, *, moves: int, message: str) -> Planned:
    cost = cost_per_hour(rows_of(record.plan, model).replicas, record.problem)
    return Planned(plan_id=record.id, feasible=True, moves=moves, cost_per_hour=cost, message=message)


def _infeasible(reason: Reason, message: str) -> Planned:
    return Planned(plan_id="", feasible=False, moves=0, cost_per_hour=0.0, reason=reason, message=message)


def _binding_reason(rules: Sequence[str]) -> Reason:
    budget_only = bool(rules) and all(rule.startswith("budget") for rule in rules)
    return Reason.OVER_BUDGET if budget_only else Reason.NO_CAPACITY


def _unmet_message(plan: Plan, model: str) -> str:
    """What is left unserved, in words; empty where nothing is."""
    lines = [
        f"{unmet.qps:g} requests/s of {unmet.region} stay unserved ({', '.join(unmet.rules)})"
        for unmet in plan.unmet
        if unmet.model == model
    ]
    return "; ".join(lines)
