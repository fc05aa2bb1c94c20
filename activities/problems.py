"""The planner's problem as the store knows it: fleet, models, what runs, and what other models need of the supply."""

from collections.abc import Iterable, Mapping, Sequence

from activities.waves import peak
from ipnext.model.deployment import Deployment, RouteTable
from ipnext.model.fleet import FleetSpec
from ipnext.model.manifest import ModelManifest
from ipnext.model.plan import (
    CurrentState,
    Limits,
    ModelProblem,
    Objective,
    Owner,
    PartOption,
    PartProblem,
    Plan,
    Problem,
    RegionDemand,
    RegionSupply,
    ReplicaCount,
    TrafficShare,
)
from ipnext.model.rollout import TransitionState
from ipnext.store.records import ModelRecord, PlanRecord, TransitionRecord
from ipnext.store.repository import Repository

Units = dict[tuple[str, str], float]
"""(region, hardware) -> units."""


def model_problem(manifest: ModelManifest) -> ModelProblem:
    """A manifest as the planner reads it."""
    spec = manifest.spec
    return ModelProblem(
        model=manifest.name,
        owner=manifest.metadata.owner,
        priority=spec.priority,
        latency_tolerance_ms=spec.latency_tolerance_ms,
        survive=spec.survive,
        budget_per_hour=spec.budget_per_hour,
        demand=tuple(RegionDemand(region=item.region, qps=item.qps) for item in spec.demand),
        parts=tuple(
            PartProblem(
                part=part.name,
                min_replicas=part.min_replicas,
                options=tuple(PartOption(hardware=o.kind, units=o.units, qps=o.qps) for o in part.hardware),
            )
            for part in spec.parts
        ),
    )


def within_fleet(model: ModelProblem, fleet: FleetSpec) -> ModelProblem | None:
    """The model without what the fleet no longer has, so that one model's leftovers don't stop all others.

    None where a part has no way to run any more.
    """
    parts = [
        part.model_copy(update={"options": tuple(o for o in part.options if o.hardware in fleet.hardware)})
        for part in model.parts
    ]
    if not all(part.options for part in parts):
        return None
    demand = tuple(item for item in model.demand if item.region in fleet.regions)
    return model.model_copy(update={"parts": tuple(parts), "demand": demand})


def fleet_problem(
    fleet: FleetSpec,
    models: Sequence[ModelProblem],
    *,
    current: CurrentState | None = None,
    objective: Objective | None = None,
    limits: Limits | None = None,
) -> Problem:
    """The whole problem. An owner that the fleet does not name has no limit; rows of unknown names are left out."""
    owners = {item.owner: Owner.of(item) for item in fleet.owners}
    for model in models:
        owners.setdefault(model.owner, Owner(owner=model.owner))
    return Problem(
        regions=fleet.regions,
        rtt_ms=fleet.rtt_ms,
        hardware=fleet.hardware,
        supply=tuple(RegionSupply.of(item) for item in fleet.supply),
        owners=tuple(owners.values()),
        models=tuple(models),
        current=_known_rows(fleet, models, current or CurrentState()),
        objective=objective or Objective(),
        limits=limits or Limits(),
    )


def running(deployments: Iterable[Deployment], tables: Iterable[RouteTable]) -> CurrentState:
    """What runs, all generations together."""
    shares: dict[tuple[str, str, str], float] = {}
    for table in tables:
        for share in table.shares:
            route = (table.model, table.region, share.to)
            shares[route] = shares.get(route, 0.0) + share.fraction
    return CurrentState(
        replicas=tuple(
            ReplicaCount(**deployment.key.model_dump(), count=deployment.replicas)
            for deployment in deployments
            if deployment.replicas
        ),
        traffic=tuple(
            TrafficShare.model_validate({"model": model, "from": origin, "to": to, "fraction": min(fraction, 1.0)})
            for (model, origin, to), fraction in sorted(shares.items())
            if fraction > 0
        ),
    )


def rows_of(state: Plan | CurrentState, model: str) -> CurrentState:
    """One model's rows."""
    return CurrentState(
        replicas=tuple(row for row in state.replicas if row.model == model and row.count),
        traffic=tuple(row for row in state.traffic if row.model == model and row.fraction > 0),
    )


def entitled(repository: Repository, plan: PlanRecord | None, *, but: str) -> CurrentState:
    """What every other model may hold: its rows of the plan in force, or what runs where the plan lacks it."""
    replicas: list[ReplicaCount] = []
    traffic: list[TrafficShare] = []
    planned = {row.model for row in plan.plan.replicas} if plan else set()
    deployed = {deployment.key.model for deployment in repository.deployments()}
    for model in sorted((planned | deployed) - {but}):
        if plan is not None and model in planned:
            rows = rows_of(plan.plan, model)
        else:
            rows = running(repository.deployments(model), repository.routes(model))
        replicas += rows.replicas
        traffic += rows.traffic
    return CurrentState(replicas=tuple(replicas), traffic=tuple(traffic))


def planned_models(
    fleet: FleetSpec, records: Iterable[ModelRecord], plan: PlanRecord | None, *, but: str | None = None
) -> list[ModelProblem]:
    """Models that hold or may hold capacity, but one. Each as it was planned last, so that a newer manifest waits its turn."""
    known = {model.model: model for model in plan.problem.models} if plan else {}
    holding = {row.model for row in plan.plan.replicas} if plan else set()
    found = []
    for record in records:
        if record.name == but or record.retired or not (record.serving_generation or record.name in holding):
            continue
        model = known.get(record.name, model_problem(record.manifest)) if but else model_problem(record.manifest)
        fitting = within_fleet(model, fleet)
        if fitting is not None:
            found.append(fitting)
    return found


def units_of(manifest: ModelManifest, deployments: Iterable[Deployment]) -> Mapping[tuple[str, str], float]:
    """(part, hardware) -> units a replica takes, by the manifest, else by what runs."""
    units = {(d.key.part, d.key.hardware): d.units for d in deployments}
    units.update({(part.name, o.kind): o.units for part in manifest.spec.parts for o in part.hardware})
    return units


def units_in_use(repository: Repository, plan: PlanRecord | None, *, but: str) -> Units:
    """Units that all other models need at most at any moment now: planned, running, or in a transition under way."""
    used: Units = {}
    for record in repository.models():
        if record.name == but:
            continue
        deployments = repository.deployments(record.name)
        units = units_of(record.manifest, deployments)
        counts = {(d.key.part, d.key.region, d.key.hardware): d.replicas for d in deployments}
        rows = rows_of(plan.plan, record.name).replicas if plan else ()
        planned = {(row.part, row.region, row.hardware): row.count for row in rows}
        moving = _under_way(repository, record.name)
        extra = peak(moving.transition, record.name) if moving else {}
        for slot in counts.keys() | planned.keys() | extra.keys():
            most = max(counts.get(slot, 0), planned.get(slot, 0), extra.get(slot, 0))
            part, region, hardware = slot
            used[region, hardware] = used.get((region, hardware), 0.0) + most * units.get((part, hardware), 0.0)
    return used


def units_entitled(repository: Repository, rows: CurrentState) -> Units:
    """Units of the given rows."""
    used: Units = {}
    units: dict[str, Mapping[tuple[str, str], float]] = {}
    for row in rows.replicas:
        if row.model not in units:
            units[row.model] = units_of(repository.model(row.model).manifest, repository.deployments(row.model))
        taken = row.count * units[row.model].get((row.part, row.hardware), 0.0)
        used[row.region, row.hardware] = used.get((row.region, row.hardware), 0.0) + taken
    return used


def with_supply_left(fleet: FleetSpec, used: Units) -> FleetSpec:
    """The fleet with what others use taken off."""
    supply = tuple(
        item.model_copy(update={"units": max(0.0, item.units - used.get((item.region, item.hardware), 0.0))})
        for item in fleet.supply
    )
    return fleet.model_copy(update={"supply": supply})


def with_running_options(model: ModelProblem, deployments: Iterable[Deployment]) -> ModelProblem:
    """The model with the hardware it runs on now, also where its manifest no longer names it."""
    ways = {
        (d.key.part, d.key.hardware): PartOption(hardware=d.key.hardware, units=d.units, qps=d.qps) for d in deployments
    }
    parts = []
    for part in model.parts:
        named = {option.hardware for option in part.options}
        more = tuple(o for (name, hardware), o in ways.items() if name == part.part and hardware not in named)
        parts.append(part.model_copy(update={"options": (*part.options, *more)}))
    return model.model_copy(update={"parts": tuple(parts)})


def cost_per_hour(replicas: Iterable[ReplicaCount], problem: Problem) -> float:
    """$/h of replicas at the problem's units and prices."""
    units = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
    prices = {(item.region, item.hardware): item.unit_cost for item in problem.supply}
    cost = sum(
        row.count * units.get((row.model, row.part, row.hardware), 0.0) * prices.get((row.region, row.hardware), 0.0)
        for row in replicas
    )
    return float(f"{cost:.12g}")


def _known_rows(fleet: FleetSpec, models: Sequence[ModelProblem], current: CurrentState) -> CurrentState:
    options = {
        (model.model, part.part, option.hardware) for model in models for part in model.parts for option in part.options
    }
    demands = {(model.model, item.region) for model in models for item in model.demand}
    return CurrentState(
        replicas=tuple(
            row
            for row in current.replicas
            if row.region in fleet.regions and (row.model, row.part, row.hardware) in options
        ),
        traffic=tuple(row for row in current.traffic if (row.model, row.origin) in demands and row.to in fleet.regions),
    )


def _under_way(repository: Repository, model: str) -> TransitionRecord | None:
    """The model's transition that may still add replicas, if there is one."""
    newest = next(iter(repository.transitions(model, limit=1)), None)
    if newest is None or newest.state not in {TransitionState.PLANNED, TransitionState.RUNNING}:
        return None
    return None if repository.change(newest.change_id).state.final else newest
