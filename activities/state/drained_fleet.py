"""Effect of drains on planning: supply that counts as 0, and wishes that wait until a lost region is restored.

Pure functions of `DrainedFleet`, which is read together with the fleet.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from activities.runtime.fence import still_ours
from ipnext.errors import Unavailable
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.changes.change import Change, ChangeKind
from ipnext.model.lifecycle.regions.drain import Drain
from ipnext.model.planning.plan import ModelProblem
from ipnext.store.repository import Repository
from ipnext.store.store import Store


@dataclass(frozen=True)
class DrainedFleet:
    """Regions out of service. `lost` ones are gone; drains of `unguarded` ones proceed whatever stays unserved."""

    regions: frozenset[str] = frozenset()
    lost: frozenset[str] = frozenset()
    unguarded: frozenset[str] = frozenset()

    @classmethod
    def of(cls, drains: Iterable[Drain]) -> "DrainedFleet":
        """Return the drains in force."""
        holding = [drain for drain in drains if drain.holds]
        return cls(
            regions=frozenset(drain.region for drain in holding),
            lost=frozenset(drain.region for drain in holding if drain.lost),
            unguarded=frozenset(drain.region for drain in holding if drain.lost or drain.force),
        )

    def and_region(self, region: str, *, force: bool = False) -> "DrainedFleet":
        """Return the drains as if one more region were drained, as planned."""
        more = frozenset({region})
        return DrainedFleet(self.regions | more, self.lost, self.unguarded | more if force else self.unguarded)

    @property
    def advice(self) -> str:
        """Regions out of service, and the remedy if nothing else has room; empty if there are none."""
        told = [
            f"{region} is out of service ({'declared lost' if region in self.lost else 'drained'})"
            for region in sorted(self.regions)
        ]
        back = " or ".join(f"`ipnext undrain {region}`" for region in sorted(self.regions))
        return f"{', '.join(told)}: {back}, or raise the supply elsewhere, then ask again" if told else ""


NOTHING = DrainedFleet()


def repairs_loss(repository: Repository, plan_id: str) -> bool:
    """Check whether a drain requested the plan while a region is lost.

    Users may have nothing else until its moves are done.
    """
    return "drain" in repository.find_triggers(plan_id) and bool(DrainedFleet.of(repository.drains()).lost)


def leaves_loss(repository: Repository, change: Change) -> bool:
    """Check whether a change is a move away from a lost region, or a move by a plan that repairs a loss.

    A move away counts whatever its plan is.
    """
    if change.kind is not ChangeKind.MOVE or change.plan_id is None:
        return False
    return repairs_loss(repository, change.plan_id) or _leaves(repository, change.model)


def _leaves(repository: Repository, model: str) -> bool:
    """Check whether a model is in a lost region, or users are sent there, and its placement has nothing there."""
    lost, placed = DrainedFleet.of(repository.drains()).lost, repository.placement(model)
    if not lost or placed is None:
        return False
    replicas = {found.key.region for found in repository.deployments(model) if found.replicas}
    sent = {share.to for table in repository.routes(model) for share in table.shares if share.fraction > 0}
    planned = {row.region for row in placed.replicas if row.count}
    planned |= {row.to for row in placed.traffic if row.fraction > 0}
    return bool(lost & (replicas | sent) - planned)


def check_unchanged(store: Store, lost: frozenset[str]) -> None:
    """Check before a call that changes the infrastructure, in one unit of work, that it may be made.

    Raises:
        Unavailable: a region was lost, or came back, since `lost` was read: the next attempt computes again.
            Or another worker may be at this activity.
        FenceLost: the run has ended, or lost its transition to another run.
    """
    with store.read() as repository:
        still_ours(repository)
        same(repository, lost)


def same(repository: Repository, lost: frozenset[str]) -> None:
    """Check like `check_unchanged`, in the unit of work of the write."""
    changed = DrainedFleet.of(repository.drains()).lost ^ lost
    if changed:
        msg = f"region {min(changed)!r} was lost or came back meanwhile; what to do is computed anew"
        raise Unavailable(msg)


def without_drained(fleet: FleetSpec, drained: DrainedFleet) -> FleetSpec:
    """Return the fleet with the supply of drained regions at 0. Their users, and their prices, stay."""
    if not drained.regions:
        return fleet
    supply = tuple(
        item.model_copy(update={"units": 0.0}) if item.region in drained.regions else item for item in fleet.supply
    )
    return fleet.model_copy(update={"supply": supply})


def relax_model(model: ModelProblem, fleet: FleetSpec, drained: DrainedFleet) -> ModelProblem:
    """Relax the model's wishes as far as the drains require.

    `survive` waits while a region is lost, or drained by force: the remaining supply serves first. If only a lost
    region was near enough for some users, the latency tolerance rises to the round trip of their nearest remaining
    region. `fleet` is the whole fleet, with the supply of drained regions.
    """
    if drained.unguarded and model.survive != "none":
        model = model.model_copy(update={"survive": "none"})
    if not drained.lost:
        return model
    able = _able(model, fleet)
    left = able - drained.regions
    needed = model.latency_tolerance_ms
    rtt = dict(zip(fleet.regions, fleet.rtt_ms, strict=True))
    place = {region: number for number, region in enumerate(fleet.regions)}
    for item in model.demand:
        row = rtt.get(item.region)
        if row is None or item.qps <= 0 or not left:
            continue
        near = min((row[place[region]] for region in able & (left | drained.lost)), default=0.0)
        nearest_left = min(row[place[region]] for region in left)
        if near <= model.latency_tolerance_ms < nearest_left:
            needed = max(needed, nearest_left)
    return model.model_copy(update={"latency_tolerance_ms": needed}) if needed > model.latency_tolerance_ms else model


def _able(model: ModelProblem, fleet: FleetSpec) -> frozenset[str]:
    """Return regions whose supply fits a replica of every part."""
    units = {(item.region, item.hardware): item.units for item in fleet.supply}
    return frozenset(
        region
        for region in fleet.regions
        if all(any(units.get((region, o.hardware), 0.0) >= o.units for o in part.options) for part in model.parts)
    )
