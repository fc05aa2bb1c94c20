"""Exceptions of a revert: capacity that could not be released yet, and users whom nothing ready would answer.

Pure functions of a step's target state, the stored state and the state that the regions report.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from activities.regions.recovery import has_ready_replicas
from activities.state.desired import DesiredFacts
from activities.state.wave_state import ModelWaveState, Phase, Slot, state_at, state_of
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.planning.transition import Transition


def find_unfreed(
    state: ModelWaveState,
    deployments: Iterable[Deployment],
    tables: Iterable[RouteTable],
    slots: Collection[Slot],
    *,
    meanwhile: Collection[tuple[str, int]] = (),
) -> frozenset[str]:
    """Regions that hold more in these slots than a state does, or get traffic for a generation that it lacks there.

    In a revert wave by wave, the step before could not release it, so there is no room for the next one. `meanwhile`:
    (region, generation) that may receive traffic until processes have swapped back.
    """
    held = {(region, generation) for ((_, region, _), generation), count in state.counts.items() if count}
    sent = {(share.to, share.generation) for table in tables for share in table.shares if share.fraction > 0}
    full = {region for region, _ in sent - held - set(meanwhile)}
    return frozenset(full | {found.key.region for found in deployments if _exceeds(found, state, slots)})


def find_needed(transition: Transition, model: str, waves: int) -> frozenset[str]:
    """Regions that a revert of the first `waves` waves counts on: they get replicas back, or users of other regions."""
    origin = state_of(transition.origin, model, apart=transition.apart)
    needed = set[str]()
    for state in _list_states(transition, model, waves):
        needed |= {held[0][1] for held, count in origin.counts.items() if state.counts.get(held, 0) < count}
        moved = (name for name, found in origin.shares.items() if state.shares.get(name, ()) != found)
        needed |= {
            share.to for name in moved for share in origin.shares[name] if share.fraction > 0 and share.to != name
        }
    return frozenset(needed)


def find_changed(transition: Transition, model: str, waves: int) -> frozenset[str]:
    """Regions where the first `waves` waves of a transition change replicas, or where they send the region's users."""
    origin, changed = state_of(transition.origin, model, apart=transition.apart), set[str]()
    for state in _list_states(transition, model, waves):
        held, users = state.counts.keys() | origin.counts.keys(), state.shares.keys() | origin.shares.keys()
        changed |= {at[0][1] for at in held if state.counts.get(at, 0) != origin.counts.get(at, 0)}
        changed |= {name for name in users if state.shares.get(name, ()) != origin.shares.get(name, ())}
    return frozenset(changed)


def _list_states(transition: Transition, model: str, waves: int) -> list[ModelWaveState]:
    phases: tuple[Phase, ...] = ("scaled_up", "routed", "released")
    return [state_at(transition, model, index, phase) for index in range(waves) for phase in phases]


def find_unrestored(
    wanted: Iterable[Deployment],
    stored: Mapping[DeploymentKey, Deployment],
    shares: Mapping[str, Sequence[RouteShare]],
) -> frozenset[tuple[str, int]]:
    """(Region, generation) that keeps its users if not all replica sets that should answer them have been restored.

    Replica sets that hold it stay as they are, though the target state no longer has them.
    """
    short = {found.key.region for found in wanted if _adds(found, stored.get(found.key))}
    return frozenset(
        (share.to, share.generation)
        for found in shares.values()
        for share in found
        if share.fraction > 0 and share.to in short
    )


def choose_told(
    facts: DesiredFacts, wanted: Iterable[Deployment], final: ModelWaveState | None
) -> Iterable[Deployment]:
    """Yield the replica sets that are applied before traffic moves; regions that are lost get none.

    `final` is the state that a step of a revert leads to. A set that it lacks is about to end: it runs already, or need
    not start.
    """
    slots = None if final is None else set(final.slots)
    for found in wanted:
        slot = (found.key.part, found.key.region, found.key.hardware)
        if found.key.region not in facts.lost and (slots is None or slot in slots):
            yield found


def none_more(wanted: Iterable[Deployment], stored: Mapping[DeploymentKey, Deployment]) -> tuple[Deployment, ...]:
    """Return the wanted replica sets; those that would grow beyond the stored ones stay as stored."""
    limited = ((found, stored.get(found.key)) for found in wanted)
    return tuple(known if _adds(found, known) else found for found, known in limited if known is not None)


def waiting(
    facts: DesiredFacts, shares: Mapping[str, Sequence[RouteShare]], states: Mapping[str, RegionState]
) -> frozenset[str]:
    """Users' regions that stay as they are: not every part of the generation that would newly answer them is ready.

    Regions that are not in `states` are unknown; users do not wait for them.
    """
    sent = {
        (origin, share.to, share.generation)
        for origin, table in facts.tables.items()
        for share in table.shares
        if share.fraction > 0
    }
    return frozenset(
        origin
        for origin, found in shares.items()
        for share in found
        if share.fraction > 0 and share.to in states and (origin, share.to, share.generation) not in sent
        if not has_ready_replicas(facts, states[share.to], share.generation)
    )


def still_answered(
    facts: DesiredFacts,
    transition: Transition,
    state: ModelWaveState,
    shares: Mapping[str, tuple[RouteShare, ...]],
) -> dict[str, tuple[RouteShare, ...]]:
    """Return shares by users' region; users whom the transition does not know keep the generation that answers them.

    A transition that began while a region was lost has no shares for users without an answer at that time. If the
    region was restored meanwhile, the transition's origin answers them, and no step may take that away while the state
    holds all parts of it.
    """
    origin = state_of(transition.origin, facts.model, apart=transition.apart)
    held = {
        (slot[1], number)
        for (slot, number), count in state.counts.items()
        if count and origin.counts.get((slot, number))
    }
    held = {place for place in held if _is_whole(facts, state, *place)}
    kept = dict(shares)
    for region, table in facts.tables.items():
        if kept.get(region) or origin.shares.get(region):
            continue
        sent = {(share.to, share.generation) for share in table.shares if share.fraction > 0}
        if (
            sent
            and sent <= held - _list_targets(transition, facts.model, region)
            and not facts.lost & {to for to, _ in sent}
        ):
            kept[region] = table.shares
    return kept


def _is_whole(facts: DesiredFacts, state: ModelWaveState, region: str, number: int) -> bool:
    """Check whether a state holds every part of a generation in a region."""
    parts = {slot[0] for (slot, held), count in state.counts.items() if count and (slot[1], held) == (region, number)}
    return number in facts.generations and parts.issuperset(facts.generations[number].parts)


def _list_targets(transition: Transition, model: str, origin: str) -> set[tuple[str, int]]:
    """(Region, generation) that the transition itself sends users of a region to."""
    routes = (route for wave in transition.waves for route in wave.route)
    return {
        (share.to, share.generation)
        for route in routes
        if (route.model, route.origin) == (model, origin)
        for share in route.shares
    }


def answers_at_all(facts: DesiredFacts, deployment: Deployment, states: Mapping[str, RegionState]) -> bool:
    """Check whether some generation of a replica set is answered in its region."""
    state = states.get(deployment.key.region)
    return state is not None and any(has_ready_replicas(facts, state, number) for number in deployment.generations)


def heard(
    kept: Iterable[Deployment], spared: Iterable[Deployment], able: Iterable[Deployment]
) -> tuple[Deployment, ...]:
    """Return the replica sets of `kept` that routers learn of in a revert.

    Of the `spared` ones, routers learn of those that are `able` only. The others may never have started, and traffic
    that fails over from a lost region goes to any replica set that routers know.
    """
    silent = {found.key for found in spared} - {found.key for found in able}
    return tuple(found for found in kept if found.key not in silent)


def not_as_before(facts: DesiredFacts, origin: ModelWaveState, shares: Mapping[str, Sequence[RouteShare]]) -> str:
    """Name the users who are not answered as before the transition, because it began in a lost region.

    Empty if all are.
    """
    former = {share.generation for found in origin.shares.values() for share in found}
    away = {
        (region, share.generation)
        for region, found in shares.items()
        for share in found
        if share.fraction > 0 and share.generation not in former
    }
    if not facts.lost or not away:
        return ""
    numbers = ", ".join(str(number) for number in sorted({number for _, number in away}))
    users = ", ".join(sorted({region for region, _ in away}))
    return (
        f"generation {numbers} goes on answering users of {users}: nothing from before it is left without "
        f"{', '.join(sorted(facts.lost))}"
    )


def _exceeds(deployment: Deployment, state: ModelWaveState, slots: Collection[Slot]) -> bool:
    slot = (deployment.key.part, deployment.key.region, deployment.key.hardware)
    if slot not in slots:
        return False
    if state.apart and not deployment.swap:
        return any(count > state.counts.get((slot, number), 0) for number, count in deployment.own.items())
    return deployment.replicas > state.replicas(slot)


def _adds(deployment: Deployment, stored: Deployment | None) -> bool:
    """Check whether it has more processes, more of one generation, or an additional generation."""
    if stored is None:
        return deployment.replicas > 0
    more = any(count > stored.own.get(number, 0) for number, count in deployment.own.items())
    held = set(stored.generations)
    return more or deployment.replicas > stored.replicas or not held.issuperset(deployment.generations)
