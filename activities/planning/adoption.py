"""Adoption: when a plan replaces the one in force, and how the plan in force follows the observed state."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from activities.planning.problem import fleet_problem, model_as_served, model_problem, running
from activities.state.drained_fleet import DrainedFleet
from activities.state.wave_state import route_share, state_of
from ipnext import names
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.planning.plan import (
    CurrentState,
    ModelProblem,
    Plan,
    Problem,
    ReplicaCount,
    SolverInfo,
    TrafficShare,
    Unmet,
)
from ipnext.model.planning.transition import Transition
from ipnext.model.throughput import REQUESTS, TOKENS, Unit, amount, in_unit, unit_in
from ipnext.model.value import digest_of
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import ModelPlacement, PlanRecord, TransitionRecord
from ipnext.store.repository import Repository
from planner.core.diff import diff
from planner.core.owner_levels import compare_by_level, unmet_by_level
from planner.verify.plan_checker import check

PLACEMENT_RULES = frozenset({"served", "latency", "capacity", "survive", "min_replicas", "supply", "budget", "names"})
"""Rules that decide whether a placement holds; the others concern a plan's figures."""

NOISE = 1e-6
"""Two figures that differ by less are equal."""

LOOKED_AT = 8
"""Newest transitions of a model among which an open one is searched: a later one can only have been refused."""

ROW = "what runs"
"""Method of a plan that was observed, not searched."""


Shares = tuple[RouteShare, ...]
RouteTarget = tuple[str, int]
"""A serving region and a generation."""


@dataclass(frozen=True)
class AdoptionVerdict:
    """Whether to adopt a plan, and the reason in words."""

    adopt: bool
    message: str


@dataclass(frozen=True)
class RowFigures:
    """Cost and unserved demand of rows: $/h, and `unmet` in requests/s times priority."""

    cost: float
    latency: float
    moves: float
    unmet: float

    @property
    def spent(self) -> float:
        """All figures but the unserved demand."""
        return self.cost + self.latency + self.moves


def replaces(
    plan: Plan, held: Plan | None, problem: Problem, *, dead_band: float, tokens: Collection[str] = ()
) -> AdoptionVerdict:
    """Adopt a plan if the one in force breaks a rule of today's problem, serves less, or costs clearly more.

    `held` is the plan in force as a plan of today's problem (`held_plan`). The saving counts hardware at today's
    prices, latency and the moves themselves, and is compared with `dead_band` as a share of the hardware's cost.
    `tokens` names the models whose demand is in tokens/s.
    """
    if held is None:
        return AdoptionVerdict(adopt=True, message="the first plan")
    if not rows_differ(held, plan):
        return AdoptionVerdict(adopt=False, message="the plan in force is the best one found")
    broken = [violation for violation in check(problem, held) if violation.rule in PLACEMENT_RULES]
    if broken:
        model = broken[0].subject.partition(" ")[0].partition("/")[0]
        what = in_unit(broken[0].message, unit_in(model, tokens))
        return AdoptionVerdict(adopt=True, message=f"the plan in force no longer holds: {broken[0].subject}: {what}")
    before, after = figures_of(problem, held), figures_of(problem, plan)
    order = compare_by_level(unmet_by_level(problem, plan), unmet_by_level(problem, held), noise=NOISE)
    if order < 0:
        return AdoptionVerdict(adopt=True, message=_more_served(held, plan, tokens))
    saved = before.spent - after.spent
    share = saved / before.cost if before.cost > 0 else 0.0
    words = f"saves {saved:.2f} $/h with latency and moves, {share:.1%} of the hardware's cost of {before.cost:.2f} $/h"
    if order == 0 and saved > 0 and share >= dead_band:
        return AdoptionVerdict(adopt=True, message=words)
    return AdoptionVerdict(adopt=False, message=f"{words}, within the dead band of {dead_band:.1%}: nothing moves")


def _more_served(held: Plan, plan: Plan, tokens: Collection[str]) -> str:
    """Return a text such as `40 requests/s and 300 tokens/s more are served`."""
    served: dict[Unit, float] = {REQUESTS: 0.0, TOKENS: 0.0}
    for sign, items in ((1, held.unmet), (-1, plan.unmet)):
        for item in items:
            served[unit_in(item.model, tokens)] += sign * item.qps
    told = [amount(figure, unit) for unit, figure in served.items() if figure > NOISE]
    return f"{' and '.join(told)} more are served" if told else "demand of higher priority is served"


def held_plan(placements: Iterable[ModelPlacement], problem: Problem) -> Plan | None:
    """Return the plan in force as a plan of today's problem.

    Its rows, and the part of today's demand that they leave unmet. None if nothing is placed. Rows of models that the
    problem does not have stay in it: such a plan does not hold.
    """
    found = tuple(placements)
    if not found:
        return None
    replicas = tuple(row for placed in found for row in placed.replicas)
    traffic = tuple(row for placed in found for row in placed.traffic)
    return _build_plan(replicas, traffic, unmet=_unmet(problem, traffic))


def figures_of(problem: Problem, plan: Plan) -> RowFigures:
    """Compute the objective's terms of a plan's rows."""
    units = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
    prices = {(item.region, item.hardware): item.unit_cost for item in problem.supply}
    now = {_placement(row): row.count for row in problem.current.replicas}
    rtt = {
        (origin, to): problem.rtt_ms[i][j]
        for i, origin in enumerate(problem.regions)
        for j, to in enumerate(problem.regions)
    }
    demand = {(m.model, item.region): item.qps for m in problem.models for item in m.demand}
    started = sum(max(0, row.count - now.get(_placement(row), 0)) for row in plan.replicas)
    travelled = sum(
        demand.get((row.model, row.origin), 0.0) * row.fraction * rtt.get((row.origin, row.to), 0.0)
        for row in plan.traffic
    )
    return RowFigures(
        cost=cost_of(plan.replicas, units, prices),
        latency=problem.objective.latency_weight * travelled,
        moves=problem.objective.move_cost * started,
        unmet=sum(unmet_by_level(problem, plan)),
    )


def cost_of(
    replicas: Iterable[ReplicaCount],
    units: Mapping[tuple[str, str, str], float],
    prices: Mapping[tuple[str, str], float],
) -> float:
    """Return the $/h of replicas; `units` by model, part and hardware, `prices` by region and hardware."""
    cost = sum(
        row.count * units.get((row.model, row.part, row.hardware), 0.0) * prices.get((row.region, row.hardware), 0.0)
        for row in replicas
    )
    return float(f"{cost:.12g}")


def rows_differ(one: Plan | CurrentState, other: Plan | CurrentState) -> bool:
    """Check whether two plans place or route anything differently."""
    return _rows(one) != _rows(other)


def rows_by_model(state: Plan | CurrentState) -> Mapping[str, CurrentState]:
    """Return the rows of each model that has any."""
    replicas: dict[str, list[ReplicaCount]] = defaultdict(list)
    traffic: dict[str, list[TrafficShare]] = defaultdict(list)
    for row in state.replicas:
        if row.count:
            replicas[row.model].append(row)
    for share in state.traffic:
        if share.fraction > 0:
            traffic[share.model].append(share)
    return {
        model: CurrentState(replicas=tuple(replicas.get(model, ())), traffic=tuple(traffic.get(model, ())))
        for model in sorted(replicas.keys() | traffic.keys())
    }


def settle(repository: Repository, model: str, *, change_id: str, wishes: ModelProblem | None = None) -> bool:
    """Set the plan in force to the observed state of a model, after a change that failed.

    Return whether the plan changes and the running replicas carry less than they receive, as after a disaster, or users
    of a model that serves are refused and the replaced plan served them: it may be the plan that would have fixed it.

    `wishes` are those that the model was placed by before the change; None: those that it is placed by stay. They are
    computed again if they have other parts than the generation that serves, or that a transition leads to. Replicas of
    parts that it lacks, which a revert may have spared, are not in the plan. Users whom a revert could not take back
    are in it where they were before, if that is carried: a repair leads them there. If another change moves the model,
    set it to the state that its transition leads to. The placements of all other models stay.

    A plan of the fleet that was adopted during the change stays if it goes by those wishes and its move of the model is
    recorded and open. Else changes that follow each other and fail would take back each plan that would serve refused
    users.
    """
    in_force, placed = repository.lock_plan_in_force(), repository.placement(model)
    if in_force is None or (placed and wishes in (None, placed.wishes) and _awaits_move(repository, placed, change_id)):
        return False
    known, moving = repository.model(model), _moving(repository, model)
    manifest = known.in_force
    origins = {item.region for item in manifest.spec.demand}
    tables = [table for table in repository.routes(model) if table.region in origins]
    number = moving.generation if moving else known.serving_generation
    parts = set(repository.generation(model, number).parts) if number else set[str]()
    if moving:
        found = [target_state(moving.transition)]
    else:
        found = _list_observed(repository, model, change_id=change_id, tables=tables, parts=parts)
    parts = parts or {row.part for row in found[-1].replicas}
    options = [_keep_parts(state, parts) for state in found]
    planned = placed.state if placed else CurrentState()
    asked = wishes if placed is None or wishes is not None else placed.wishes
    fits = asked is None or _fit(asked, parts, exactly=known.former is None)
    actual = options[-1]
    if len(options) > 1 and asked is not None and fits:
        actual = choose_carried(fleet_problem(repository.fleet().spec, [asked]), options)
    if not rows_differ(planned, actual) and fits and (placed is None or asked == placed.wishes):
        return False
    wishes = asked or model_problem(repository.as_measured(manifest, None))
    if not _fit(wishes, parts, exactly=known.former is None):
        wishes = model_problem(model_as_served(repository, model, number))
    problem = fleet_problem(repository.fleet().spec, [wishes] if actual.replicas else [])
    plan = _build_plan(actual.replicas, actual.traffic, cost=figures_of(problem, _build_plan(actual.replicas, ())).cost)
    record = PlanRecord(
        id=f"{change_id}.settled.{digest_of([digest_of(plan), in_force])[:12]}",
        trigger=f"settle {model}",
        scope=model,
        input_digest=digest_of(problem),
        problem=problem,
        plan=plan,
        diff=diff(planned, plan),
        message=f"the plan follows what runs of {model}",
        created_at=datetime.now(UTC),
    )
    repository.adopt_plan(PreparedPlan.of(record), expected=in_force)
    demanding = {item.region for item in wishes.demand}
    refuses = bool(known.serving_generation) and bool(list_refused(actual, planned) & demanding)
    return is_short(problem, plan) or refuses


def _awaits_move(repository: Repository, placed: ModelPlacement, change_id: str) -> bool:
    """Check whether another change than this one is open that moves the model to its placement.

    Not if the generation that serves has other parts than the placement: the move could not bring it there.
    """
    move = repository.find_change(names.move_id(placed.plan_id, placed.model))
    known = repository.model(placed.model)
    if move is None or move.id == change_id or move.state.final or known.serving_generation is None:
        return False
    parts = repository.generation(placed.model, known.serving_generation).parts
    return _fit(placed.wishes, set(parts), exactly=known.former is None)


def list_refused(state: CurrentState, planned: CurrentState) -> set[str]:
    """Return the regions of which a plan of one model serves more users than a state does."""
    missing: defaultdict[str, float] = defaultdict(float)
    for share in planned.traffic:
        missing[share.origin] += share.fraction
    for share in state.traffic:
        missing[share.origin] -= share.fraction
    return {region for region, fraction in missing.items() if fraction > NOISE}


def _list_observed(
    repository: Repository, model: str, *, change_id: str, tables: Sequence[RouteTable], parts: Collection[str]
) -> list[CurrentState]:
    """Return the running state, last; before it the one with users where they were, if a change left them elsewhere."""
    deployments, ended = repository.deployments(model), repository.find_transition(change_id)
    serving, placed = repository.model(model).serving_generation or 0, repository.placement(model)
    before = [state_of(ended.transition.origin, model).shares] if ended else []
    before.append(planned_shares(placed.traffic if placed else (), serving))
    lost = DrainedFleet.of(repository.drains()).lost
    whole = hold_whole((found for found in deployments if found.key.region not in lost), serving, parts)
    shares = {table.region: restore_shares(table.region, table.shares, before, whole) for table in tables}
    restored = [table.model_copy(update={"shares": shares[table.region]}) for table in tables]
    observed = running(deployments, tables)
    return [observed] if restored == list(tables) else [running(deployments, restored), observed]


def _keep_parts(state: CurrentState, parts: Collection[str]) -> CurrentState:
    return state.model_copy(update={"replicas": tuple(row for row in state.replicas if row.part in parts)})


def choose_carried(problem: Problem, options: Sequence[CurrentState]) -> CurrentState:
    """Return the first state whose replicas carry what it sends them, else the last."""
    return next((o for o in options[:-1] if not is_short(problem, _build_plan(o.replicas, o.traffic))), options[-1])


def hold_whole(deployments: Iterable[Deployment], generation: int, parts: Collection[str]) -> set[RouteTarget]:
    """(Region, generation) of regions with replicas of all parts of this generation."""
    held = defaultdict[str, set[str]](set)
    for found in deployments:
        if found.replicas_of(generation):
            held[found.key.region].add(found.key.part)
    return {(region, generation) for region, there in held.items() if there.issuperset(parts)}


def planned_shares(traffic: Iterable[TrafficShare], generation: int) -> dict[str, Shares]:
    """Return the shares of a placement by users' region, all of one generation."""
    found = defaultdict[str, list[RouteShare]](list)
    for row in traffic:
        if row.fraction > 0:
            found[row.origin].append(route_share(row.to, generation, row.fraction))
    return {origin: tuple(rows) for origin, rows in found.items()}


def restore_shares(
    region: str, shares: Shares, before: Iterable[Mapping[str, Shares]], whole: Collection[RouteTarget]
) -> Shares:
    """Return the shares of a region's users; former ones if a change has left users on another generation.

    `before` are shares by users' region, the preferred ones first; `whole` are the regions that hold the serving
    generation. Shares of which a target does not hold it are passed over.
    """
    serving = {generation for _, generation in whole}
    if all(share.fraction <= 0 or share.generation in serving for share in shares):
        return shares
    former = (found[region] for found in before if found.get(region))
    held = (found for found in former if all((share.to, share.generation) in whole for share in found))
    return next(held, shares)


def places_other_parts(repository: Repository, model: str) -> bool:
    """Check whether supply is kept for parts that the serving generation lacks, and that no open change is placed by.

    A replan places the parts of two generations while a change waits.
    """
    known, placed = repository.model(model), repository.placement(model)
    if placed is None or known.serving_generation is None or known.former is not None:
        return False
    return not placed.parts <= set(repository.generation(model, known.serving_generation).parts)


def _fit(wishes: ModelProblem, parts: Collection[str], *, exactly: bool) -> bool:
    """Check whether wishes are for these parts; others may be for a change that is placed already and waits."""
    named = {part.part for part in wishes.parts}
    return named == set(parts) if exactly else named.issuperset(parts)


def target_state(transition: Transition) -> CurrentState:
    """Return the state that a transition of one model leads to, all generations together."""
    counts, shares = Counter[tuple[str, str, str, str]](), defaultdict[tuple[str, str, str], float](float)
    for row in transition.to.replicas:
        counts[row.model, row.part, row.region, row.hardware] += row.count
    for share in transition.to.traffic:
        shares[share.model, share.origin, share.to] += share.fraction
    return CurrentState(
        replicas=tuple(
            ReplicaCount(model=model, part=part, region=region, hardware=hardware, count=count)
            for (model, part, region, hardware), count in sorted(counts.items())
            if count
        ),
        traffic=tuple(
            TrafficShare(model=model, origin=origin, to=to, fraction=min(fraction, 1.0))
            for (model, origin, to), fraction in sorted(shares.items())
            if fraction > 0
        ),
    )


def _moving(repository: Repository, model: str) -> TransitionRecord | None:
    return next((found for found in repository.transitions(model, limit=LOOKED_AT) if found.is_open), None)


def is_short(problem: Problem, plan: Plan) -> bool:
    """Check whether a part has less throughput in some region than the plan sends there."""
    return any(violation.rule == "capacity" for violation in check(problem, plan))


def _build_plan(
    replicas: Iterable[ReplicaCount],
    traffic: Iterable[TrafficShare],
    *,
    unmet: tuple[Unmet, ...] = (),
    cost: float = 0.0,
) -> Plan:
    """Build a plan of rows that were not searched for; it proves nothing."""
    return Plan(
        status="feasible",
        objective=cost,
        bound=0.0,
        gap=1.0 if cost > 0 else 0.0,
        bound_covers="nothing: it was not searched for",
        cost_per_hour=cost,
        replicas=tuple(sorted(replicas, key=_placement)),
        traffic=tuple(sorted(traffic, key=_route)),
        unmet=unmet,
        solver=SolverInfo(method=ROW, seconds=0.0),
    )


def _unmet(problem: Problem, traffic: Iterable[TrafficShare]) -> tuple[Unmet, ...]:
    served: dict[tuple[str, str], float] = defaultdict(float)
    for row in traffic:
        served[row.model, row.origin] += row.fraction
    return tuple(
        Unmet(model=model.model, region=item.region, qps=item.qps * left, rules=("kept",))
        for model in problem.models
        for item in model.demand
        if (left := 1 - served[model.model, item.region]) > NOISE and item.qps > 0
    )


def _placement(row: ReplicaCount) -> tuple[str, str, str, str]:
    return (row.model, row.part, row.region, row.hardware)


def _route(row: TrafficShare) -> tuple[str, str, str]:
    return (row.model, row.origin, row.to)


def _rows(state: Plan | CurrentState) -> Mapping[tuple[str, ...], float]:
    replicas: dict[tuple[str, ...], float] = {_placement(row): row.count for row in state.replicas if row.count}
    return replicas | {_route(row): round(row.fraction, 6) for row in state.traffic if row.fraction > 0}
