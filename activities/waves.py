"""The state of one model at each point of a transition, and on the way back: pure functions of the transition.

An activity asks for the state it has to reach and brings it about, so that it may run any number of times.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ipnext.model.deployment import Deployment, RouteShare, RouteTable
from ipnext.model.plan import CurrentState, Plan
from ipnext.model.rollout import FleetState, GenerationReplicas, GenerationShare, RouteChange, Transition

Phase = Literal["scaled_up", "routed", "released"]
"""How far a wave is: capacity added; traffic moved; capacity freed."""

Slot = tuple[str, str, str]
"""(part, region, hardware): one replica set of the model."""

Held = tuple[Slot, int]
"""A replica set and a generation it holds."""


@dataclass(frozen=True)
class ModelState:
    """Replicas of each generation in each slot, and the shares of each region's requests."""

    counts: Mapping[Held, int] = field(default_factory=dict)
    shares: Mapping[str, tuple[RouteShare, ...]] = field(default_factory=dict)
    apart: bool = False
    """Whether each snapshot has processes of its own."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots that hold any replicas, sorted."""
        return tuple(sorted({slot for (slot, _), count in self.counts.items() if count}))

    @property
    def generations(self) -> frozenset[int]:
        """Generations that hold any replicas."""
        return frozenset(generation for (_, generation), count in self.counts.items() if count)

    def replicas(self, slot: Slot) -> int:
        """Processes in a slot: one process holds several generations side by side, or each has its own."""
        counts = [count for (at, _), count in self.counts.items() if at == slot]
        return sum(counts) if self.apart else max(counts, default=0)

    def held(self, slot: Slot) -> frozenset[int]:
        """Generations that a slot has to hold."""
        return frozenset(generation for (at, generation), count in self.counts.items() if at == slot and count)


def state_of(fleet: FleetState, model: str, *, apart: bool = False) -> ModelState:
    """One model's part of a fleet state."""
    shares: dict[str, list[RouteShare]] = {}
    for share in fleet.traffic:
        if share.model == model and share.fraction > 0:
            entry = RouteShare(to=share.to, generation=share.generation, fraction=share.fraction)
            shares.setdefault(share.origin, []).append(entry)
    counts = _merged({}, fleet.replicas, model)
    return ModelState(counts, {origin: tuple(found) for origin, found in shares.items()}, apart)


def state_at(transition: Transition, model: str, index: int, phase: Phase) -> ModelState:
    """The state after `phase` of wave `index`, all earlier waves done."""
    apart = transition.refresh == "replace"
    state = state_of(transition.origin, model, apart=apart)
    for wave in transition.waves[:index]:
        counts = _merged(_merged(state.counts, wave.scale_up, model), wave.scale_down, model)
        state = ModelState(counts, _routed(state.shares, wave.route, model), apart)
    wave = transition.waves[index]
    counts, shares = _merged(state.counts, wave.scale_up, model), state.shares
    if phase in {"routed", "released"}:
        shares = _routed(shares, wave.route, model)
    if phase == "released":
        counts = _merged(counts, wave.scale_down, model)
    return ModelState(counts, shares, apart)


def state_back(transition: Transition, model: str, index: int, phase: Phase) -> ModelState:
    """The state on the way back from wave `index`: first the origin's capacity beside what is there, then its traffic."""
    apart = transition.refresh == "replace"
    origin = state_of(transition.origin, model, apart=apart)
    if phase == "released":
        return origin
    there = state_at(transition, model, index, "scaled_up")
    both = there.counts.keys() | origin.counts.keys()
    counts = {held: max(there.counts.get(held, 0), origin.counts.get(held, 0)) for held in both}
    return ModelState(counts, origin.shares if phase == "routed" else there.shares, apart)


def peak(transition: Transition, model: str) -> Mapping[Slot, int]:
    """The most processes that a slot has at any time of the transition or of its way back."""
    states = [state_at(transition, model, index, "scaled_up") for index in range(len(transition.waves))]
    apart = transition.refresh == "replace"
    states += [state_of(end, model, apart=apart) for end in (transition.origin, transition.to)]
    slots = {slot for state in states for slot in state.slots}
    return {slot: max(state.replicas(slot) for state in states) for slot in slots}


def running_state(
    model: str, deployments: Iterable[Deployment], tables: Iterable[RouteTable], *, demanding: Collection[str]
) -> FleetState:
    """What a transition starts from: the generations that answer traffic, where they run and how much they answer.

    Generations kept warm count nothing: they cost no further process. Tables of regions without demand of their own
    (not in `demanding`) are left out: they follow the others.
    """
    traffic = tuple(
        GenerationShare.model_validate(
            {"model": model, "from": table.region, "to": s.to, "generation": s.generation, "fraction": s.fraction}
        )
        for table in tables
        for s in table.shares
        if s.fraction > 0 and table.region in demanding
    )
    answering = {share.generation for share in traffic}
    replicas = tuple(
        GenerationReplicas(
            model=model,
            part=deployment.key.part,
            generation=generation,
            region=deployment.key.region,
            hardware=deployment.key.hardware,
            count=deployment.replicas_of(generation),
        )
        for deployment in deployments
        for generation in deployment.generations
        if generation in answering and deployment.replicas_of(generation)
    )
    return FleetState(replicas=replicas, traffic=traffic)


def planned_state(model: str, generation: int, plan: Plan | CurrentState) -> FleetState:
    """Where a transition ends: the plan's rows of the model, all of one generation."""
    replicas = tuple(
        GenerationReplicas(**row.model_dump(), generation=generation)
        for row in plan.replicas
        if row.model == model and row.count
    )
    traffic = tuple(
        GenerationShare.model_validate({**row.model_dump(by_alias=True), "generation": generation})
        for row in plan.traffic
        if row.model == model and row.fraction > 0
    )
    return FleetState(replicas=replicas, traffic=traffic)


def _merged(counts: Mapping[Held, int], rows: Iterable[GenerationReplicas], model: str) -> dict[Held, int]:
    new = {((r.part, r.region, r.hardware), r.generation): r.count for r in rows if r.model == model}
    return {held: count for held, count in {**counts, **new}.items() if count}


def _routed(
    shares: Mapping[str, tuple[RouteShare, ...]], changes: Iterable[RouteChange], model: str
) -> dict[str, tuple[RouteShare, ...]]:
    new = {
        change.origin: tuple(RouteShare(**share.model_dump()) for share in change.shares if share.fraction > 0)
        for change in changes
        if change.model == model
    }
    return {**shares, **new}
