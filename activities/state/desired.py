"""Facts of the store from which the desired state of a model follows, read in one unit of work.

`replica_sets`, `route_shares` and `served_generations` are pure functions of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from activities.state.drained_fleet import DrainedFleet
from activities.state.facts import at_work, read_generations
from activities.state.shadow_sets import without_shadow
from ipnext.model.access.predictions import PredictionAccess
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.shadow import ModelShadow
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.denials import Denial
from ipnext.model.registry.registry import Generation, Snapshot
from ipnext.store.records import ModelPlacement
from ipnext.store.repository import Repository


@dataclass(frozen=True, kw_only=True)
class DesiredFacts:
    """Facts of the store about one model: its manifest in force, and `target`, the generation to serve."""

    manifest: ModelManifest
    target: int
    generations: Mapping[int, Generation]
    snapshots: Mapping[tuple[str, int], Snapshot]
    deployments: Mapping[DeploymentKey, Deployment]
    """Without the processes of the shadow."""
    tables: Mapping[str, RouteTable]
    """By users' region, without pending ones."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """By users' region: the revision of a pending table, which the first one of a transition has to exceed."""
    serving: int | None = None
    """The serving generation in the store."""
    lost: frozenset[str] = frozenset()
    """Lost regions: nothing is sent there, and nothing waits for them."""
    rtt_ms: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By users' region and serving region; read only if a region is lost."""
    planned_demand: Mapping[str, float] = field(default_factory=dict)
    """By users' region, in the model's unit: the demand that the waves of the current run were planned for, if there is
    one."""
    unmet_rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By users' region that the manifest names and the fleet has: rules of the plan that leave demand there
    unserved."""
    placed_units: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """By part and hardware: units of a replica by the plan in force, which a newer manifest does not change."""
    rolled_out: int | None = None
    """The generation that an open change brings with its manifest: it is served by that one's graph."""
    denied: Mapping[tuple[str, int], Denial] = field(default_factory=dict)
    """By part or segment, and number: snapshots that no host may load any more."""
    shadow: ModelShadow | None = None
    """The shadow that an open change keeps: part of all that is applied or stored, and of no wave."""
    sets_before: Mapping[DeploymentKey, Deployment] = field(default_factory=dict)
    """In a revert: the replica sets as they were desired before the transition."""
    served_before: Mapping[int, ServedGeneration] = field(default_factory=dict)
    """In a revert: the generations as routers had them before the transition."""

    @property
    def model(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def access(self) -> PredictionAccess:
        """Whether predictions need a credential."""
        return self.manifest.spec.access.predictions

    @property
    def demand(self) -> Mapping[str, float]:
        """By users' region, in the model's unit.

        A run keeps the demand that its waves were planned for, whatever was requested since.
        """
        return self.planned_demand or {item.region: item.amount for item in self.manifest.spec.demand}


def read_facts(repository: Repository, model: str, target: int, *, named: Iterable[int] = ()) -> DesiredFacts:
    """Read all facts of one model: the generations at work, and those `named`. Raises NotFound.

    The cost does not depend on the number of published generations (`activities.state.facts`).
    """
    drained = DrainedFleet.of(repository.drains())
    lost, shadow = drained.lost, repository.shadow(model)
    record = repository.model(model)
    deployments, tables = repository.deployments(model), repository.routes(model)
    numbers = at_work(record, deployments, tables, (target, *named))
    generations, snapshots = read_generations(repository, record, numbers)
    return DesiredFacts(
        manifest=repository.as_measured(record.in_force, target or record.serving_generation),
        target=target,
        generations=generations,
        snapshots=snapshots,
        deployments={d.key: d for d in without_shadow(deployments)},
        tables=index_tables(tables),
        pending=pending_revisions(tables),
        serving=record.serving_generation,
        lost=lost,
        shadow=shadow.outside(drained.regions) if shadow is not None else None,
        rtt_ms=round_trips(repository) if lost else {},
        unmet_rules=unmet_rules(repository, record.in_force),
        placed_units=_placed_units(repository.placement(model)),
        rolled_out=record.former.generation or None if record.former else None,
        denied=repository.denied_snapshots(model, snapshots.keys()),
    )


def index_tables(tables: Iterable[RouteTable]) -> dict[str, RouteTable]:
    """Return the tables that transitions have written, by users' region."""
    return {table.region: table for table in tables if not table.pending}


def pending_revisions(tables: Iterable[RouteTable]) -> dict[str, int]:
    """Return the revisions of the other ones, by users' region."""
    return {table.region: table.revision for table in tables if table.pending}


def _placed_units(placed: ModelPlacement | None) -> Mapping[tuple[str, str], float]:
    return placed.wishes.units if placed else {}


def unmet_rules(repository: Repository, manifest: ModelManifest) -> dict[str, tuple[str, ...]]:
    """Map users' regions to the rules of the plan that leave demand there unserved.

    Only regions that the manifest names and the fleet has.
    """
    placed, regions = repository.placement(manifest.name), set(repository.region_names())
    rules = {unmet.region: unmet.rules for unmet in placed.unmet} if placed else {}
    return {item.region: rules.get(item.region, ()) for item in manifest.spec.demand if item.region in regions}


def round_trips(repository: Repository) -> dict[tuple[str, str], float]:
    """Return milliseconds by users' region and serving region."""
    fleet = repository.fleet().spec
    rows = zip(fleet.regions, fleet.rtt_ms, strict=True)
    return {(origin, to): ms for origin, row in rows for to, ms in zip(fleet.regions, row, strict=True)}
