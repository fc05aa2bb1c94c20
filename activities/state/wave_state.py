"""The state of one model at each point of a transition, and of its revert: pure functions of the transition.

An activity requests the state that it has to reach and establishes it, so that it may run any number of times.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.planning.plan import CurrentState, Plan
from ipnext.model.planning.transition import FleetState, GenerationReplicas, GenerationShare, RouteChange, Transition

Phase = Literal["scaled_up", "routed", "released"]
"""Progress of a wave: capacity added; traffic moved; capacity released."""

Slot = tuple[str, str, str]
"""(part, region, hardware): one replica set of the model."""

Back = Literal["at_once", "by_waves"]
"""Mode of a revert: in one step, or wave by wave."""

Held = tuple[Slot, int]
"""A replica set and a generation it holds."""


@dataclass(frozen=True)
class ModelWaveState:
    """Replicas of each generation in each slot, and the shares of each region's requests."""

    counts: Mapping[Held, int] = field(default_factory=dict)
    shares: Mapping[str, tuple[RouteShare, ...]] = field(default_factory=dict)
    apart: bool = False
    """True if generations run in separate processes."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots that hold any replicas, sorted."""
        return tuple(sorted({slot for (slot, _), count in self.counts.items() if count}))

    @property
    def generations(self) -> frozenset[int]:
        """Generations that hold any replicas."""
        return frozenset(generation for (_, generation), count in self.counts.items() if count)

    @property
    def regions(self) -> frozenset[str]:
        """Regions that hold any replicas."""
        return frozenset(region for _, region, _ in self.slots)

    def outside(self, regions: Collection[str]) -> "ModelWaveState":
        """Return the state without the replicas of some regions."""
        counts = {held: count for held, count in self.counts.items() if held[0][1] not in regions}
        return ModelWaveState(counts, self.shares, self.apart)

    def replicas(self, slot: Slot) -> int:
        """Count processes in a slot: one process holds several generations side by side, or each has dedicated ones."""
        counts = [count for (at, _), count in self.counts.items() if at == slot]
        return sum(counts) if self.apart else max(counts, default=0)

    @property
    def processes(self) -> dict[Slot, int]:
        """Processes of every slot that has any."""
        found: dict[Slot, int] = {}
        for (slot, _), count in self.counts.items():
            if count:
                found[slot] = found.get(slot, 0) + count if self.apart else max(found.get(slot, 0), count)
        return found

    def generations_at(self, slot: Slot) -> frozenset[int]:
        """Return generations that a slot has to hold."""
        return frozenset(generation for (at, generation), count in self.counts.items() if at == slot and count)


def state_of(fleet: FleetState, model: str, *, apart: bool = False) -> ModelWaveState:
    """Return one model's part of a fleet state."""
    shares: dict[str, list[RouteShare]] = {}
    for share in fleet.traffic:
        if share.model == model and share.fraction > 0:
            shares.setdefault(share.origin, []).append(route_share(share.to, share.generation, share.fraction))
    counts: dict[Held, int] = {}
    _merge(counts, fleet.replicas, model)
    return ModelWaveState(counts, {origin: tuple(found) for origin, found in shares.items()}, apart)


@lru_cache(maxsize=4096)
def route_share(to: str, generation: int, fraction: float) -> RouteShare:
    """Return a validated entry of a route table, cached because most tables repeat those of others."""
    return RouteShare(to=to, generation=generation, fraction=fraction)


def state_at(transition: Transition, model: str, index: int, phase: Phase) -> ModelWaveState:
    """Return the state after `phase` of wave `index`, all earlier waves done."""
    apart = transition.apart
    origin = state_of(transition.origin, model, apart=apart)
    counts, shares = dict(origin.counts), dict(origin.shares)
    for wave in transition.waves[:index]:
        _merge(counts, (*wave.scale_up, *wave.scale_down), model)
        _reroute(shares, wave.route, model)
    wave = transition.waves[index]
    _merge(counts, wave.scale_up, model)
    if phase in {"routed", "released"}:
        _reroute(shares, wave.route, model)
    if phase == "released":
        _merge(counts, wave.scale_down, model)
    return ModelWaveState(counts, shares, apart)


def _peaks(transition: Transition, model: str) -> Iterator[ModelWaveState]:
    """Yield the replicas after the scale-up of each wave in turn, without shares."""
    apart = transition.apart
    counts = dict(state_of(transition.origin, model, apart=apart).counts)
    for wave in transition.waves:
        _merge(counts, wave.scale_up, model)
        yield ModelWaveState(dict(counts), {}, apart)
        _merge(counts, wave.scale_down, model)


def state_back(transition: Transition, model: str, index: int, phase: Phase) -> ModelWaveState:
    """Return the state of a revert from wave `index`.

    First the origin's capacity beside the existing one, then its traffic.
    """
    apart = transition.apart
    origin = state_of(transition.origin, model, apart=apart)
    if phase == "released":
        return origin
    there = state_at(transition, model, index, "scaled_up")
    return ModelWaveState(_both(there, origin).counts, origin.shares if phase == "routed" else there.shares, apart)


def _both(there: ModelWaveState, origin: ModelWaveState) -> ModelWaveState:
    """Return the replicas of the origin beside the existing ones, without shares."""
    both = there.counts.keys() | origin.counts.keys()
    counts = {held: max(there.counts.get(held, 0), origin.counts.get(held, 0)) for held in both}
    return ModelWaveState(counts, {}, there.apart)


def state_undone(transition: Transition, model: str, index: int, phase: Phase) -> ModelWaveState:
    """Return the state when wave `index` alone is reverted.

    First the capacity it removed, then its traffic, then its additions. Each of these states occurred on the way
    forward, so supply and capacity suffice as they did then. Processes that the wave swapped swap back at first, and
    take no further unit either.
    """
    before = _before(transition, model, index)
    if phase == "released":
        return before
    if swaps(transition, model, index):
        return before if phase == "routed" else replace(before, shares=_shares_after(transition, model, index))
    return state_at(transition, model, index, "routed" if phase == "scaled_up" else "scaled_up")


def wave_target(transition: Transition, model: str, index: int, generation: int) -> ModelWaveState:
    """Return the replicas that wave `index` waits for: all of `generation`, and the additions of others.

    The former replicas of others may be broken, and the reason for the change.
    """
    before, there = _before(transition, model, index).counts, state_at(transition, model, index, "scaled_up")
    counts = {
        held: count for held, count in there.counts.items() if held[1] == generation or count > before.get(held, 0)
    }
    return replace(there, counts=counts)


def _before(transition: Transition, model: str, index: int) -> ModelWaveState:
    """Return the state that wave `index` begins with."""
    if index:
        return state_at(transition, model, index - 1, "released")
    return state_of(transition.origin, model, apart=transition.apart)


def _shares_after(transition: Transition, model: str, index: int) -> Mapping[str, tuple[RouteShare, ...]]:
    return state_at(transition, model, index, "routed").shares


def swaps(transition: Transition, model: str, index: int) -> bool:
    """Check whether wave `index` hot swaps processes from one generation to another."""
    before = _before(transition, model, index).counts if transition.refresh == "swap" else {}
    rows = (row for row in transition.waves[index].scale_up if row.model == model)
    return any(row.count < before.get(((row.part, row.region, row.hardware), row.generation), 0) for row in rows)


def fits_at_once(
    transition: Transition,
    model: str,
    units: Mapping[tuple[str, str], float],
    supply: Mapping[tuple[str, str], float],
) -> bool:
    """Check whether the supply fits a revert in one step from every wave.

    Swaps are reverted in their own order: a wave at a time.

    `units`: (part, hardware) -> units a replica; `supply`: (region, hardware) -> units that this model may use.
    """
    return transition.refresh != "swap" and all(
        taken <= supply.get(cell, 0.0) + 1e-6
        for index in range(len(transition.waves))
        for cell, taken in _units(state_back(transition, model, index, "scaled_up"), units).items()
    )


def _units(state: ModelWaveState, units: Mapping[tuple[str, str], float]) -> Mapping[tuple[str, str], float]:
    """Return units by (region, hardware)."""
    taken: dict[tuple[str, str], float] = {}
    for (part, region, hardware), count in sorted(state.processes.items()):
        taken[region, hardware] = taken.get((region, hardware), 0.0) + count * units[part, hardware]
    return taken


def peak(transition: Transition, model: str) -> Mapping[Slot, int]:
    """Return the most processes that a slot has at any time of the transition or of its revert."""
    apart = transition.apart
    origin, to = (state_of(end, model, apart=apart) for end in (transition.origin, transition.to))
    most: dict[Slot, int] = {}
    for there in (origin, *_peaks(transition, model), to):
        # if snapshots have dedicated processes, the former ones return beside the existing ones
        beside = transition.refresh == "replace" and there is not to
        for slot, count in (_both(there, origin) if beside else there).processes.items():
            most[slot] = max(most.get(slot, 0), count)
    return most


def running_state(
    model: str,
    deployments: Iterable[Deployment],
    tables: Iterable[RouteTable],
    *,
    demanding: Collection[str],
    lost: Collection[str] = (),
    serving: int | None = None,
) -> FleetState:
    """Return the origin of a transition: the generations that answer traffic, their replicas and their shares.

    Generations kept warm do not count: they cost no further process. Shares of regions without demand (not in
    `demanding`) are left out, because they follow the others; their targets keep their replicas until they do. Shares
    of a generation that no replica set holds any more, as an abandoned step leaves them, count for those that are held;
    so do shares of `lost` regions, which answer no users: the first wave that moves a user away from there has to carry
    all of them. If processes are hot swapped, traffic to a generation that is not held counts for the held one: an
    unreachable region that could not be reverted keeps answering, and its users must not count as unanswered. If
    nothing answers, as after the loss of all its regions, the replicas of the `serving` generation count: no revert may
    end them.
    """
    deployments = tuple(deployments)
    held = {(d.key.region, g) for d in deployments for g in d.generations if d.replicas_of(g)}
    over = _going_over(deployments)
    shares = {table.region: _as_held(table.shares, held, over) for table in tables}
    sending = [found for region, found in shares.items() if region in demanding or region not in lost]
    answering = {g for found in sending for to, g in _list_targets(found) if (to, g) in held}
    answering = answering or {generation for _, generation in held if generation == serving}
    held = {(region, generation) for region, generation in held if region not in lost}
    traffic = tuple(
        GenerationShare.from_trusted(model, region, s.to, s.generation, s.fraction)
        for region, found in shares.items()
        if region in demanding
        for s in keep_held_shares(found, held)
    )
    replicas = tuple(
        GenerationReplicas.from_trusted(model, d.key.part, generation, d.key.region, d.key.hardware, count)
        for d in deployments
        for generation in d.generations
        if generation in answering and (count := d.replicas_of(generation))
    )
    return FleetState(replicas=replicas, traffic=traffic)


def _going_over(deployments: Iterable[Deployment]) -> Mapping[str, int]:
    """Map each region whose processes are hot swapped to the generation that most of them are about to hold."""
    counts: dict[str, dict[int, int]] = {}
    for found in deployments:
        for generation in found.generations if found.swap else ():
            at = counts.setdefault(found.key.region, {})
            at[generation] = at.get(generation, 0) + found.replicas_of(generation)
    return {
        region: max(at, key=lambda number: (at[number], number)) for region, at in counts.items() if any(at.values())
    }


def _as_held(
    shares: tuple[RouteShare, ...], held: Collection[tuple[str, int]], over: Mapping[str, int]
) -> tuple[RouteShare, ...]:
    """Rename shares of generations that are not held to the target generation, in regions of a hot swap."""
    if all((to, generation) in held or to not in over for to, generation in _list_targets(shares)):
        return shares
    sums: dict[tuple[str, int], float] = {}
    for share in shares:
        known = (share.to, share.generation) in held
        place = share.to, share.generation if known else over.get(share.to, share.generation)
        sums[place] = sums.get(place, 0.0) + share.fraction
    return tuple(route_share(to, generation, min(1.0, fraction)) for (to, generation), fraction in sums.items())


def _list_targets(shares: Iterable[RouteShare]) -> Iterable[tuple[str, int]]:
    return ((share.to, share.generation) for share in shares if share.fraction > 0)


def keep_held_shares(shares: Iterable[RouteShare], held: Collection[tuple[str, int]]) -> tuple[RouteShare, ...]:
    """Return shares of generations that their target holds, scaled to the sum of all shares."""
    sent = [share for share in shares if share.fraction > 0]
    kept = [share for share in sent if (share.to, share.generation) in held]
    if not kept or len(kept) == len(sent):
        return tuple(kept)
    factor = sum(share.fraction for share in sent) / sum(share.fraction for share in kept)
    return tuple(route_share(share.to, share.generation, share.fraction * factor) for share in kept)


def planned_state(model: str, generation: int, plan: Plan | CurrentState, *, parts: Collection[str]) -> FleetState:
    """Return the target of a transition: the plan's rows of the model, all of one generation.

    Only those of `parts`, which the generation has: a plan may have been made for another one since, or follow replicas
    of another one that were spared.
    """
    replicas = tuple(
        GenerationReplicas.from_trusted(model, row.part, generation, row.region, row.hardware, row.count)
        for row in plan.replicas
        if row.model == model and row.count and row.part in parts
    )
    traffic = tuple(
        GenerationShare.from_trusted(model, row.origin, row.to, generation, row.fraction)
        for row in plan.traffic
        if row.model == model and row.fraction > 0
    )
    return FleetState(replicas=replicas, traffic=traffic)


def _merge(counts: dict[Held, int], rows: Iterable[GenerationReplicas], model: str) -> None:
    """Merge the rows' counts of a model."""
    for row in rows:
        if row.model != model:
            continue
        held = (row.part, row.region, row.hardware), row.generation
        if row.count:
            counts[held] = row.count
        else:
            counts.pop(held, None)


def _reroute(shares: dict[str, tuple[RouteShare, ...]], changes: Iterable[RouteChange], model: str) -> None:
    """Merge the changes' shares of a model."""
    for change in changes:
        if change.model == model:
            found = (route_share(s.to, s.generation, s.fraction) for s in change.shares if s.fraction > 0)
            shares[change.origin] = tuple(found)
