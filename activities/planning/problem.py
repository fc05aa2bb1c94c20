"""The planner's problem from the store: fleet, models, running replicas, and the supply that other models need."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import lru_cache

from activities.runtime.single_calls import OF_ONE, describe
from activities.state.drained_fleet import NOTHING, DrainedFleet, relax_model, without_drained
from activities.state.wave_state import Slot, peak
from ipnext.errors import InvalidInput
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.fleet import FleetSpec, OwnerBudget
from ipnext.model.manifest.derived.layout import laid_out, parts_of
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import (
    CurrentState,
    Limits,
    ModelProblem,
    Objective,
    Owner,
    PartOption,
    PartProblem,
    Problem,
    RegionDemand,
    RegionSupply,
    ReplicaCount,
    TrafficShare,
)
from ipnext.model.planning.transition import Transition
from ipnext.model.registry.registry import Generation, SplitLayout
from ipnext.model.wire import decode
from ipnext.store.planning.placements import Units
from ipnext.store.records import HeldSlot, ModelPlacement, ModelRecord, ModelTransition, StateBefore
from ipnext.store.repository import Repository

REMEMBERED = 4096
"""Documents of models in transition whose figures are cached."""


def model_problem(manifest: ModelManifest) -> ModelProblem:
    """Convert a manifest to the planner's model; its `qps` is in the model's unit.

    Raises InvalidInput if the throughput of a part was never measured nor declared.
    """
    spec = manifest.spec
    return ModelProblem(
        model=manifest.name,
        owner=manifest.metadata.owner,
        priority=spec.priority,
        latency_tolerance_ms=spec.latency_tolerance_ms,
        survive=spec.survive,
        budget_per_hour=spec.budget_per_hour,
        demand=tuple(RegionDemand.from_trusted(item.region, item.amount) for item in spec.demand),
        parts=tuple(
            PartProblem(
                part=part.name,
                min_replicas=part.min_replicas,
                options=tuple(PartOption.from_trusted(o.kind, o.units, o.throughput) for o in part.hardware),
            )
            for part in spec.hosted_parts
        ),
    )


def within_fleet(model: ModelProblem, fleet: FleetSpec) -> ModelProblem | None:
    """Return the model without hardware and regions that the fleet no longer has, so that it does not block all others.

    Demand from regions that are gone, or that no region reaches within the model's tolerance any more, is left out.
    None if no demand remains, or a part has no hardware any more: the planner would refuse the whole problem.
    """
    parts = [
        part.model_copy(update={"options": tuple(o for o in part.options if o.hardware in fleet.hardware)})
        for part in model.parts
    ]
    if not all(part.options for part in parts):
        return None
    nearest = {region: min(row) for region, row in zip(fleet.regions, fleet.rtt_ms, strict=True)}
    demand = tuple(
        item
        for item in model.demand
        if item.region in nearest and (item.qps == 0 or nearest[item.region] <= model.latency_tolerance_ms)
    )
    if not any(item.qps > 0 for item in demand):
        return None
    return model.model_copy(update={"parts": tuple(parts), "demand": demand})


def fleet_problem(
    fleet: FleetSpec,
    models: Sequence[ModelProblem],
    *,
    current: CurrentState | None = None,
    objective: Objective | None = None,
    limits: Limits | None = None,
    priorities: Mapping[str, int] | None = None,
) -> Problem:
    """Build the whole problem. An owner that the fleet does not name has no limit; rows of unknown names are left out.

    `priorities`: owner -> its priority; an owner that is not named has 0.
    """
    owners = {item.owner: Owner.of(item) for item in fleet.owners}
    for model in models:
        owners.setdefault(model.owner, Owner(owner=model.owner))
    for name, priority in sorted((priorities or {}).items()):
        if name in owners:
            owners[name] = owners[name].model_copy(update={"priority": priority})
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
    """Return the running state, all generations together, without shadows: no plan has them."""
    shares: dict[tuple[str, str, str], float] = {}
    for table in tables:
        for share in table.shares:
            route = (table.model, table.region, share.to)
            shares[route] = shares.get(route, 0.0) + share.fraction
    return CurrentState(
        replicas=tuple(
            ReplicaCount(**deployment.key.model_dump(), count=deployment.clients_replicas)
            for deployment in deployments
            if deployment.clients_replicas
        ),
        traffic=tuple(
            TrafficShare.model_validate({"model": model, "from": origin, "to": to, "fraction": min(fraction, 1.0)})
            for (model, origin, to), fraction in sorted(shares.items())
            if fraction > 0
        ),
    )


def planned_models(
    fleet: FleetSpec,
    records: Iterable[ModelRecord],
    placements: Mapping[str, ModelPlacement],
    own: Mapping[str, Sequence[Generation]] | None = None,
    drained: DrainedFleet = NOTHING,
    left_out: dict[str, str] | None = None,
) -> list[ModelProblem]:
    """Return models that serve, or have capacity by the plan in force, with the wishes of their manifests in force.

    A model is planned with the parts of its serving generation. While a change with others is placed and waits
    (`former`), it is planned with both: the generation that serves may have to leave a region meanwhile. A manifest
    that a validation refused does not count: the model is planned as it was placed until one is accepted. `own`: model
    -> its generations that serve or are about to, if they are split, or if the model is placed by other parts than its
    manifest has (`keeping_parts`). `fleet` is the whole one, drained regions included.

    A model whose wishes can't be computed is planned as it was placed; one that was never placed is left out, so that
    it does not block all others. Both are added to `left_out`, with the error.
    """
    found = []
    for record in records:
        placed = placements.get(record.name)
        if record.retired or not (record.serving_generation or (placed and placed.replicas)):
            continue
        if placed is not None and record.refused_generation is not None:
            wishes = placed.wishes
        else:
            try:
                generation = _planned_generation(record, placed, (own or {}).get(record.name, ()))
                wishes = _wishes(laid_out(record.in_force, generation), placed, exist=generation is not None)
                wishes = _with_parts_that_serve(wishes, record)
            except OF_ONE as error:
                if left_out is not None:
                    left_out[record.name] = describe(error)
                if placed is None:
                    continue
                wishes = placed.wishes
        fitting = within_fleet(wishes, fleet)
        if fitting is not None:
            found.append(relax_model(fitting, fleet, drained))
    return found


def choose_wishes(
    models: Iterable[ModelProblem],
    placements: Mapping[str, ModelPlacement],
    beyond: Collection[str],
    fleet: FleetSpec,
    drained: DrainedFleet = NOTHING,
) -> list[ModelProblem]:
    """Return the wishes to plan by: of the models in `beyond` those that they are placed by."""
    newest = [wishes for wishes in models if wishes.model not in beyond]
    former = (within_fleet(placements[name].wishes, fleet) for name in sorted(beyond))
    found = newest + [relax_model(wishes, fleet, drained) for wishes in former if wishes is not None]
    return sorted(found, key=lambda wishes: wishes.model)


def keeping_parts(records: Iterable[ModelRecord], placements: Mapping[str, ModelPlacement]) -> Mapping[str, int]:
    """Map each model that is placed by other parts than its manifest in force has to its serving generation.

    Models with an open change that is placed already are left out: their placement may be made for that one.
    """
    return {
        record.name: record.serving_generation
        for record in records
        if record.serving_generation is not None and record.former is None and record.name in placements
        if placements[record.name].parts != {part.name for part in record.in_force.spec.hosted_parts}
    }


def _with_parts_that_serve(wishes: ModelProblem, record: ModelRecord) -> ModelProblem:
    """Return wishes with the parts that the model was placed by before an open change was placed, too."""
    before = record.former.placement if record.former else None
    named = {part.part for part in wishes.parts}
    more = tuple(part for part in before.wishes.parts if part.part not in named) if before else ()
    return wishes.model_copy(update={"parts": (*wishes.parts, *more)}) if more else wishes


def _wishes(manifest: ModelManifest, placed: ModelPlacement | None, *, exist: bool) -> ModelProblem:
    """Return the manifest's wishes.

    They are those of its placement if its parts differ, or its throughput is not known any more. `exist`: its parts are
    those of a generation.
    """
    hosted = {part.name for part in manifest.spec.hosted_parts}
    if placed is not None and not exist and placed.parts != hosted:
        return placed.wishes
    try:
        return model_problem(manifest)
    except InvalidInput:
        if placed is None:
            raise
        return placed.wishes


def _planned_generation(
    record: ModelRecord, placed: ModelPlacement | None, cut: Sequence[Generation]
) -> Generation | None:
    """Return the generation of `cut` whose parts the model is placed by; else the serving one, if that is there."""
    parts = placed.parts if placed else frozenset()
    serving = next((found for found in cut if found.number == record.serving_generation), None)
    if record.serving_generation is None and cut:
        return cut[-1]
    return next((found for found in cut if set(found.parts) == parts), serving)


def model_as_served(
    repository: Repository, model: str, generation: int | None, *, by: ModelManifest | None = None
) -> ModelManifest:
    """Return a model's manifest with the hosted parts of a generation, and with measured throughput. Raises NotFound.

    The manifest is the one in force, if none is given.
    """
    manifest = repository.as_measured(by or repository.model(model).in_force, generation)
    return laid_out(manifest, repository.generation(model, generation) if generation else None)


def fleet_left(fleet: FleetSpec, deployments: Iterable[Deployment], planned: Collection[str]) -> FleetSpec:
    """Return the fleet without the units of running models that are not planned: they stay in use until these end."""
    used: Units = {}
    for deployment in deployments:
        key = deployment.key
        if key.model not in planned:
            cell = (key.region, key.hardware)
            used[cell] = used.get(cell, 0.0) + deployment.replicas * deployment.units
    return with_supply_left(fleet, used) if used else fleet


def residual_problem(
    repository: Repository,
    model: str,
    *,
    generation: int | None = None,
    by: ModelManifest | None = None,
    objective: Objective | None = None,
    limits: Limits | None = None,
) -> Problem:
    """Return the problem of one model of a generation, on the supply and the owner's budget that all others leave.

    It is made by the manifest in force if none is given. Its cost does not depend on the number of other models: the
    database sums up their units. Raises NotFound.
    """
    whole, drained = repository.fleet().spec, DrainedFleet.of(repository.drains())
    wanted = relax_model(model_problem(model_as_served(repository, model, generation, by=by)), whole, drained)
    fleet = without_drained(whole, drained)
    prices = {(item.region, item.hardware): item.unit_cost for item in fleet.supply}
    others = repository.units_of_owner(wanted.owner, but=model)
    spent = sum(units * prices.get(cell, 0.0) for cell, units in sorted(others.items()))
    own = (item for item in fleet.owners if item.owner == wanted.owner)
    left = fleet.model_copy(update={"owners": tuple(_with_budget_left(item, spent) for item in own)})
    return fleet_problem(
        with_supply_left(left, repository.units_entitled(but=model)),
        [wanted],
        current=running(repository.deployments(model), repository.routes(model)),
        objective=objective,
        limits=limits,
    )


def units_of(
    manifest: ModelManifest, deployments: Iterable[Deployment], placed: ModelPlacement | None = None
) -> Mapping[tuple[str, str], float]:
    """Map (part, hardware) to the units of a replica.

    They are those of the plan in force, else of the manifest, else of the running replicas.
    """
    units = {(d.key.part, d.key.hardware): d.units for d in deployments}
    units.update({(part.name, o.kind): o.units for part in manifest.spec.parts for o in part.hardware})
    return {**units, **(placed.wishes.units if placed else {})}


def units_in_use(repository: Repository, *, but: str) -> Units:
    """Return the most units that all other models need at any moment now: planned, running, or in a transition.

    The shadow of the model itself counts as another model: its waves get on without these units.

    The number of statements does not depend on how many models move.
    """
    moving = repository.moving_models(but=but)
    names = [found.model for found in moving]
    used = repository.units_needed(but=(but, *names))
    placed, running = map(_by_model, repository.held_slots(names)) if names else ({}, {})
    for found in moving:
        on_the_way = _units_on_the_way(found, placed.get(found.model, ()), running.get(found.model, ()))
        for cell, units in on_the_way.items():
            used[cell] = used.get(cell, 0.0) + units
    shadow = repository.shadow(but)
    for alone in shadow.sets if shadow is not None else ():
        cell = (alone.key.region, alone.key.hardware)
        used[cell] = used.get(cell, 0.0) + alone.replicas * alone.units
    return used


def _by_model(slots: Iterable[HeldSlot]) -> dict[str, list[HeldSlot]]:
    found: dict[str, list[HeldSlot]] = {}
    for slot in slots:
        found.setdefault(slot.model, []).append(slot)
    return found


def _units_on_the_way(moving: ModelTransition, placed: Iterable[HeldSlot], running: Sequence[HeldSlot]) -> Units:
    """Return the most units that a model in transition needs.

    For each replica set the maximum of now, the plan and the waves. A replica takes the units of the plan in force, and
    those of the manifest only on hardware that the plan has not; a running one takes at least the units that it was
    started with, and one that a revert may bring back at least those that it had before the transition.
    """
    units = {**_wished_units(moving.manifest, moving.layout), **_placed_units(moving.wishes)}
    for way, former in _units_before(moving.before).items():
        units[way] = max(units.get(way, 0.0), former)
    for slot in running:
        units[slot.part, slot.hardware] = max(units.get((slot.part, slot.hardware), 0.0), slot.units)
    most = dict(_peak(moving.transition, moving.model))
    for slot in (*running, *placed):
        key = (slot.part, slot.region, slot.hardware)
        most[key] = max(most.get(key, 0), slot.replicas)
    used: Units = {}
    for (part, region, hardware), count in sorted(most.items()):
        used[region, hardware] = used.get((region, hardware), 0.0) + count * units.get((part, hardware), 0.0)
    return used


@lru_cache(maxsize=REMEMBERED)
def _peak(transition: str, model: str) -> Mapping[Slot, int]:
    """Cache the peak by the document of a transition: every admission reads it while the transition is in progress."""
    return peak(decode(Transition, transition), model)


@lru_cache(maxsize=REMEMBERED)
def _wished_units(manifest: str, layout: str | None) -> Mapping[tuple[str, str], float]:
    """Map (part, hardware) to a replica's units, by the documents of a manifest and of a split generation's layout."""
    spec = decode(ModelManifest, manifest).spec
    parts = spec.parts if layout is None else parts_of(spec, decode(SplitLayout, layout))
    return {(part.name, option.kind): option.units for part in parts for option in part.hardware}


@lru_cache(maxsize=REMEMBERED)
def _placed_units(wishes: str | None) -> Mapping[tuple[str, str], float]:
    """Map (part, hardware) to the units of a replica by the document of a placement's wishes.

    Empty without a placement.
    """
    return {} if wishes is None else decode(ModelProblem, wishes).units


@lru_cache(maxsize=REMEMBERED)
def _units_before(before: str | None) -> Mapping[tuple[str, str], float]:
    """Map (part, hardware) to the units of a replica by the document of the state that a revert restores."""
    return {} if before is None else decode(StateBefore, before).units


def with_supply_left(fleet: FleetSpec, used: Units) -> FleetSpec:
    """Return the fleet minus the units that others use."""
    supply = tuple(
        item.model_copy(update={"units": max(0.0, item.units - taken)})
        if (taken := used.get((item.region, item.hardware), 0.0))
        else item
        for item in fleet.supply
    )
    return fleet.model_copy(update={"supply": supply})


def with_running_options(model: ModelProblem, deployments: Iterable[Deployment]) -> ModelProblem:
    """Return the model with the parts and the hardware that it runs now, also if the manifest no longer has them."""
    ways: dict[str, dict[str, PartOption]] = {}
    for d in deployments:
        option = PartOption.from_trusted(d.key.hardware, d.units, d.qps)
        ways.setdefault(d.key.part, {})[d.key.hardware] = option
    parts = []
    for part in model.parts:
        named = {option.hardware for option in part.options}
        more = tuple(o for hardware, o in ways.pop(part.part, {}).items() if hardware not in named)
        parts.append(part.model_copy(update={"options": (*part.options, *more)}))
    former = (PartProblem(part=name, min_replicas=0, options=tuple(ways[name].values())) for name in sorted(ways))
    return model.model_copy(update={"parts": (*parts, *former)})


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


def _with_budget_left(item: OwnerBudget, spent: float) -> OwnerBudget:
    if item.budget_per_hour is None:
        return item
    return item.model_copy(update={"budget_per_hour": max(0.0, item.budget_per_hour - spent)})
