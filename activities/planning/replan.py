"""One replan of the whole fleet: claim the waiting requests, search a plan, and adopt it if it is worth it, or explain.

Called by the activity `replan_fleet`. Publishes continue during the search: a model that was placed meanwhile keeps its
newer placement, as long as there is room for both.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from activities.planning.adoption import held_plan, replaces, rows_by_model, rows_differ
from activities.planning.move_order import SupplyMove, free_units, move_order
from activities.planning.policy import PlanningPolicy
from activities.planning.problem import choose_wishes, fleet_left, fleet_problem, keeping_parts, planned_models, running
from activities.planning.solver import SolveFailed, Solver, SolverResult
from activities.runtime.single_calls import name_failed
from activities.state.drained_fleet import DrainedFleet, without_drained
from ipnext import names
from ipnext.errors import Infeasible, InvalidInput, IPnextError, NotFound, Unavailable
from ipnext.model.lifecycle.replans.replan import Replan, ReplanComputed, ReplanState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.derived.profiled import apply_profiles, wants_profiles
from ipnext.model.planning.plan import CurrentState, Limits, ModelProblem, Objective, Plan, PlanDiff, Problem
from ipnext.model.throughput import TOKENS
from ipnext.model.value import digest_of
from ipnext.store.operations.quota_claims import beyond_claims
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import ModelPlacement, ModelRecord, PlanEntry, PlanRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from planner.core.diff import diff

ATTEMPTS = 3
"""Attempts in all, if the planner died, or a plan came too late to be adopted."""

TOLERANCE = 1e-6
"""Of supply and budgets, as in the planner's checker."""

NAMED = 3
"""Models that a message names at most."""


class TooLateError(IPnextError):
    """A plan that no longer fits beside the placements made during its search."""

    code = Reason.PLANNER_FAILED.value


@dataclass(frozen=True)
class FleetSnapshot:
    """Inputs of one replan: read in one unit of work."""

    based_on: str | None
    placements: Mapping[str, ModelPlacement]
    problem: Problem
    running: Mapping[str, CurrentState]
    movable: frozenset[str]
    """Models that serve: only these can move."""
    tokens: frozenset[str] = frozenset()
    """Models whose demand is in tokens/s."""
    astray: frozenset[str] = frozenset()
    """Models whose users are sent to a generation that does not serve, though no change moves them."""
    left_out: str = ""
    """Models whose manifests can't be planned by, with the errors, as the end of a message; they stay as they are."""


class FleetReplan:
    """One attempt at one replan. `say` reports progress, and raises if the activity was cancelled."""

    def __init__(
        self, store: Store, solver: Solver, policy: PlanningPolicy, *, say: Callable[[str], None], attempt: int = 1
    ) -> None:
        self._store = store
        self._solver = solver
        self._policy = policy
        self._say = say
        self._last = attempt >= ATTEMPTS

    def compute(self, plan_id: str, *, run_id: str) -> ReplanComputed:
        """Plan for the waiting replans. If a plan of this id is stored already, return it as it is.

        Raises Unavailable if another attempt may do better, and NotFound without a fleet.
        """
        self._say("looking at what was asked for")
        with self._store.begin() as repository:
            taken = repository.claim_replans(plan_id, run_id=run_id)
            pause = repository.moves_pause()
        if not taken:
            waits = f"moves are paused: {pause.reason}; drains and dry runs are planned meanwhile" if pause else ""
            return ReplanComputed(plan_id="", adopted=False, message=waits or "nothing was asked for")
        self._say("reading the fleet")
        with self._store.read() as repository:
            limits = _limits(self._policy.replan_limits, taken[0])
            snapshot = fleet_snapshot(repository, self._policy.objective, limits)
            known = find_plan(repository, plan_id)
        if known is not None:
            return self._list_moves(known, taken, snapshot)
        if not snapshot.problem.models and not snapshot.placements:
            return ReplanComputed(plan_id=plan_id, adopted=False, message="no model is placed yet")
        return self._search_plan(plan_id, taken, snapshot)

    def _search_plan(self, plan_id: str, taken: Sequence[Replan], snapshot: FleetSnapshot) -> ReplanComputed:
        """Search and decide; a failure is recorded, or left to another attempt."""
        try:
            return self._decide(plan_id, taken, snapshot, self._solver.solve(snapshot.problem, beat=self._say))
        except (Infeasible, InvalidInput) as error:
            return self._record_failure(plan_id, taken, snapshot, Reason.PLANNER_INFEASIBLE, error.message)
        except SolveFailed as error:
            return self._give_up(plan_id, taken, snapshot, error, once_more=error.died)
        except TooLateError as error:
            return self._give_up(plan_id, taken, snapshot, error, once_more=True)

    def _decide(
        self, plan_id: str, taken: Sequence[Replan], snapshot: FleetSnapshot, solved: SolverResult
    ) -> ReplanComputed:
        """Adopt the plan, or keep the one in force; either way the plan is stored. Raises TooLateError."""
        self._say("weighing the plan against the one in force")
        held = held_plan(snapshot.placements.values(), snapshot.problem)
        verdict = replaces(
            solved.plan, held, snapshot.problem, dead_band=self._policy.dead_band, tokens=snapshot.tokens
        )
        record = PlanRecord(
            id=plan_id,
            trigger=_trigger(taken),
            outcome="dry_run" if taken[0].dry_run else "kept",
            based_on=snapshot.based_on,
            input_digest=digest_of(snapshot.problem),
            problem=snapshot.problem,
            plan=solved.plan,
            diff=_difference(snapshot.placements.values(), solved.plan),
            message=("dry run: " if taken[0].dry_run else "") + verdict.message + snapshot.left_out,
            use=solved.use,
            created_at=datetime.now(UTC),
        )
        plan = PreparedPlan.of(record)
        self._say("writing the plan")
        with self._store.begin(plan_id) as repository:
            if verdict.adopt and not taken[0].dry_run:
                record = adopt_beside(repository, plan, snapshot)
            else:
                repository.save_plan(plan)
            detail = {"plan": plan_id, "moves": record.diff.moves}
            repository.add_event(None, "Replan", f"{record.trigger}: {record.message}", detail=detail)
            repository.prune_plans(keep=self._policy.kept_plans)
            repository.forget_moves(keep={plan_id})
            entry = repository.plan_entry(plan_id)
        return self._list_moves(entry, taken, snapshot)

    def _give_up(
        self, plan_id: str, taken: Sequence[Replan], snapshot: FleetSnapshot, error: IPnextError, *, once_more: bool
    ) -> ReplanComputed:
        """Give up on a plan this time: raise for another attempt, or record the failure."""
        if once_more and not self._last:
            msg = f"{error.message}; trying again"
            raise Unavailable(msg) from error
        return self._record_failure(plan_id, taken, snapshot, Reason.PLANNER_FAILED, error.message)

    def _record_failure(
        self, plan_id: str, taken: Sequence[Replan], snapshot: FleetSnapshot, reason: Reason, message: str
    ) -> ReplanComputed:
        """Record why there is no plan. Open moves of the plan in force are continued."""
        entry = PlanEntry(
            id=plan_id,
            trigger=_trigger(taken),
            outcome="failed",
            reason=reason,
            message=f"{message}; the plan in force stays{snapshot.left_out}",
            based_on=snapshot.based_on,
            input_digest=digest_of(snapshot.problem),
            created_at=datetime.now(UTC),
        )
        with self._store.begin(plan_id) as repository:
            repository.save_failure(entry)
            repository.add_event(None, "ReplanFailed", f"{entry.trigger}: {reason}: {entry.message}")
            repository.prune_plans(keep=self._policy.kept_plans)
            repository.forget_moves(keep={plan_id})
        return self._list_moves(entry, taken, snapshot)

    def _list_moves(self, entry: PlanEntry, taken: Sequence[Replan], snapshot: FleetSnapshot) -> ReplanComputed:
        """Find the models that have to move, outside the writing unit, and list them in the store.

        Their names may be megabytes. The result has their count. If an attempt ends before, the next one finds the
        plan, and lists them.
        """
        self._say("listing the models that have to move")
        moving: Sequence[str] = ()
        if not taken[0].dry_run:
            with self._store.read() as repository:
                now, _ = _meanwhile(repository, snapshot)
                moving = models_to_move(repository, now.values(), snapshot)
        with self._store.begin(entry.id) as repository:
            repository.list_moves(entry.id, moving)
            if entry.is_adopted:
                repository.update_replans(
                    entry.id, state=ReplanState.MOVING, message=entry.message, moves=entry.moves or 0
                )
        return ReplanComputed(
            plan_id=entry.id,
            adopted=entry.is_adopted,
            reason=entry.reason,
            message=entry.message,
            moves=entry.moves if entry.is_adopted else 0,
            total=len(moving),
            trigger=entry.trigger,
            dry_run=taken[0].dry_run,
            window=self._policy.window,
        )


def fleet_snapshot(
    repository: Repository, objective: Objective, limits: Limits, drained: DrainedFleet | None = None
) -> FleetSnapshot:
    """Read all inputs of a plan of the fleet; with other drains than those in force if they are given."""
    fleet, records = repository.fleet().spec, read_records(repository)
    drained = DrainedFleet.of(repository.drains()) if drained is None else drained
    placements = {placed.model: placed for placed in repository.placements()}
    deployments = repository.deployments()
    now = running(deployments, repository.routes())
    left_out = dict[str, str]()
    own = dict(repository.cut_generations())
    keeping = keeping_parts(records, placements).items()
    own |= {name: (repository.generation(name, number),) for name, number in keeping if name not in own}
    wished = planned_models(fleet, _without_moved(repository, records), placements, own, drained, left_out)
    models = choose_wishes(wished, placements, _beyond(repository, wished, placements), fleet, drained)
    return FleetSnapshot(
        based_on=repository.plan_in_force_id(),
        placements=placements,
        problem=fleet_problem(
            fleet_left(without_drained(fleet, drained), deployments, {model.model for model in models}),
            models,
            current=now,
            objective=objective,
            limits=limits,
            priorities=repository.owner_priorities(),
        ),
        running=rows_by_model(now),
        movable=frozenset(found.name for found in records if found.serving_generation and not found.retired),
        tokens=frozenset(found.name for found in records if found.in_force.spec.unit == TOKENS),
        astray=frozenset(repository.models_astray(but=drained.lost)),
        left_out=f"; not planned by their manifests: {name_failed(left_out)}" if left_out else "",
    )


def _without_moved(repository: Repository, records: Iterable[ModelRecord]) -> tuple[ModelRecord, ...]:
    """Return the records without what a change found, if it has begun to move the model."""
    return tuple(
        record.model_copy(update={"former": None}) if record.former and repository.is_moved(record.name) else record
        for record in records
    )


def _beyond(
    repository: Repository, models: Sequence[ModelProblem], placements: Mapping[str, ModelPlacement]
) -> frozenset[str]:
    """Return the placed models whose newest wishes need more than they count for their owners."""
    changed = (each for each in models if each.model in placements and each != placements[each.model].wishes)
    return beyond_claims(repository, changed)


def read_records(repository: Repository) -> tuple[ModelRecord, ...]:
    """Return all models, with measured throughput if their manifests in force request it."""
    found = repository.models()
    asking = {record.name: record.serving_generation for record in found if wants_profiles(record.in_force)}
    known = repository.profiles_of_all(asking)
    return tuple(
        record.model_copy(
            update={"manifest": apply_profiles(record.in_force, known.get(record.name, {})), "accepted": None}
        )
        if record.name in asking
        else record
        for record in found
    )


def adopt_beside(repository: Repository, plan: PreparedPlan, snapshot: FleetSnapshot) -> PlanRecord:
    """Adopt a plan; models whose placement changed since the snapshot keep the newer one.

    Those whose wishes in the plan need more than they count for their owner by now keep theirs, too. Returns the
    adopted plan. Units of work of models continue meanwhile, except placements and admissions: they wait. Raises
    TooLateError if both together need more than there is.
    """
    in_force = repository.lock_plan_in_force()
    before, changed = _meanwhile(repository, snapshot)
    record = plan.record
    smaller = beyond_claims(repository, (placed.wishes for placed in _find_changed_wishes(plan, before))) - changed
    told = [(_describe_models(names), done) for names, done in ((changed, "placed"), (smaller, "changed")) if names]
    why = f"{', '.join(f'{subject} {done}' for subject, done in told)} while the planner worked"
    changed |= smaller
    wanted = {model: placed for model, placed in plan.placements.items() if model not in changed}
    merged = {**wanted, **{model: placed for model, placed in before.items() if model in changed}}
    if changed:
        short = find_overbooking(record.problem, merged.values())
        if short is not None:
            msg = f"{why}, and {short}"
            raise TooLateError(msg)
        message = f"{record.message}; {why} and kept there"
        whole = record.plan.model_copy(
            update={
                "replicas": tuple(row for name in sorted(merged) for row in merged[name].replicas),
                "traffic": tuple(row for name in sorted(merged) for row in merged[name].traffic),
                "cost_per_hour": float(f"{sum(placed.cost_per_hour for placed in merged.values()):.12g}"),
            }
        )
        plan = plan.with_record(message=message, diff=_difference(before.values(), whole))
    repository.adopt_plan(plan, expected=in_force, keeping=changed)
    return plan.record


def _find_changed_wishes(plan: PreparedPlan, before: Mapping[str, ModelPlacement]) -> list[ModelPlacement]:
    """Return the placements of a plan that are made for other wishes than the present ones."""
    found = ((placed, before.get(model)) for model, placed in plan.placements.items())
    return [placed for placed, former in found if former is None or former.wishes != placed.wishes]


def find_overbooking(problem: Problem, placements: Iterable[ModelPlacement]) -> str | None:
    """Return the first rule of supply or owners' budgets that placements break together, in words."""
    used: dict[tuple[str, str], float] = defaultdict(float)
    spent: dict[str, float] = defaultdict(float)
    prices = {(item.region, item.hardware): item.unit_cost for item in problem.supply}
    for placed in placements:
        units = {(part.part, o.hardware): o.units for part in placed.wishes.parts for o in part.options}
        for row in placed.replicas:
            taken = row.count * units.get((row.part, row.hardware), 0.0)
            used[row.region, row.hardware] += taken
            spent[placed.wishes.owner] += taken * prices.get((row.region, row.hardware), 0.0)
    supply = {(item.region, item.hardware): item.units for item in problem.supply}
    for cell, units_used in sorted(used.items()):
        if units_used > supply.get(cell, 0.0) * (1 + TOLERANCE) + TOLERANCE:
            return f"supply {cell[0]}/{cell[1]} holds {supply.get(cell, 0.0):g} of {units_used:g} units"
    for owner in problem.owners:
        limit = owner.budget_per_hour
        if limit is not None and spent[owner.owner] > limit * (1 + TOLERANCE) + TOLERANCE:
            return f"budget owner {owner.owner} pays for {limit:g} of {spent[owner.owner]:g} $/h"
    return None


def models_to_move(
    repository: Repository, placements: Iterable[ModelPlacement], snapshot: FleetSnapshot
) -> tuple[str, ...]:
    """Return the placed models that run otherwise by a plan of the fleet.

    They are in the order of activities/planning/move_order.py.

    A model that runs where it is placed, but answers by a generation that does not serve, is among them.

    A model that was placed by its publish is not among them: that publish moves it. Nor is one whose move to this
    placement has ended already, however it ended.
    """
    movable = (placed for placed in placements if placed.model in snapshot.movable)
    differing = [
        placed
        for placed in movable
        if placed.model in snapshot.astray or _differs(placed, snapshot.running.get(placed.model))
    ]
    placed_by = repository.deciding_plans() if differing else {}
    fleet_plans = repository.fleet_plans({placed_by[placed.model] for placed in differing})
    asked = {placed.model: names.move_id(placed_by[placed.model], placed.model) for placed in differing}
    ended = repository.ended_changes(tuple(asked.values()))
    moving = [
        placed for placed in differing if placed_by[placed.model] in fleet_plans and asked[placed.model] not in ended
    ]
    moves = [SupplyMove.of(placed, snapshot.running.get(placed.model)) for placed in moving]
    return move_order(moves, free_units(snapshot.problem, snapshot.running.values()))


def find_plan(repository: Repository, plan_id: str) -> PlanEntry | None:
    """Return the entry of a plan, if it is known."""
    try:
        return repository.plan_entry(plan_id)
    except NotFound:
        return None


def _meanwhile(repository: Repository, snapshot: FleetSnapshot) -> tuple[Mapping[str, ModelPlacement], frozenset[str]]:
    """Return the current placements, and the models that were placed, placed again or removed since the snapshot."""
    then, now = {name: placed.plan_id for name, placed in snapshot.placements.items()}, repository.deciding_plans()
    changed = frozenset(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if not changed:
        return snapshot.placements, changed
    kept = {name: placed for name, placed in snapshot.placements.items() if name not in changed}
    return {**kept, **{placed.model: placed for placed in repository.placements(changed)}}, changed


def _difference(before: Iterable[ModelPlacement], after: Plan) -> PlanDiff:
    """Compute the difference from the placements to a plan, with the costs of both."""
    found = sorted(before, key=lambda placed: placed.model)
    rows = CurrentState(
        replicas=tuple(row for placed in found for row in placed.replicas),
        traffic=tuple(row for placed in found for row in placed.traffic),
    )
    cost = float(f"{sum(placed.cost_per_hour for placed in found):.12g}")
    return diff(rows, after).model_copy(update={"cost_per_hour_before": cost})


def _differs(placed: ModelPlacement, now: CurrentState | None) -> bool:
    """Check whether a model runs otherwise than it is placed. Tables of regions without demand follow the others."""
    demanding = {item.region for item in placed.wishes.demand}
    rows = now or CurrentState()
    traffic = tuple(row for row in rows.traffic if row.origin in demanding)
    return rows_differ(placed.state, rows.model_copy(update={"traffic": traffic}))


def _limits(usual: Limits, replan: Replan) -> Limits:
    return usual if replan.max_moves is None else usual.model_copy(update={"max_moves": replan.max_moves})


def _trigger(taken: Sequence[Replan]) -> str:
    """Return the triggers of the replans, each once, in order."""
    return ", ".join(dict.fromkeys(replan.trigger for replan in taken))


def _describe_models(models: Collection[str]) -> str:
    shown = sorted(models)
    more = len(shown) - NAMED
    listed = ", ".join(shown[:NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{listed} {'was' if len(shown) == 1 else 'were'}"
