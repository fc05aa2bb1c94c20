"""The replica sets of a wave: those that it wants, spares, routes to or releases."""

from collections.abc import Generator
from types import SimpleNamespace
from typing import Any, cast

from activities.state import replica_sets
from activities.state import wave_state as waves
from activities.transition import revert as undoing
from activities.transition import scale_down as releasing
from ipnext.errors import Unavailable
from tests.workflows.simulation.infrastructure import Deployment, Key
from tests.workflows.simulation.runs.activity_attempts import Attempt

from .wave import Wave, peak_of, state_of


def wanted_deployments(world: Any, wave: Wave, state: waves.ModelWaveState) -> tuple[Deployment, ...]:
    """One deployment for each slot, as activities/state/replica_sets.py makes them.

    Former generations stay warm where they are loaded. Units are those of the manifest in force, or those that the
    generation served with, by the real function; a revert restores those of before.
    """
    model = wave.model
    record, spec = world.journal.records[model], world.journal.records[model].in_force.spec
    facts = SimpleNamespace(manifest=record.in_force, generations=record.generations, target=wave.moving.generation)
    former = replica_sets.former_generations(record, state.generations)[: spec.rollout.keep_warm]
    slots, processes = state.slots, state.processes
    hosted = {part for part, _, _ in slots}
    warm = {number for number in former if hosted.issuperset(record.generations[number].parts)}
    found = []
    for slot in slots:
        key = Key(model, *slot)
        stored = record.deployments.get(key)
        kept = set() if state.apart or stored is None else set(stored.generations) & warm
        restored = wave.moving.before.get(key, stored) if wave.back else None
        if restored is None:
            _, option = replica_sets._spec_of(cast("Any", facts), state, slot)
            former: Any = replica_sets.find_running(cast("Any", record.deployments), cast("Any", key))
            units, qps = (option.units, option.throughput) if option else (former.units, former.qps)
        else:
            units, qps = restored.units, restored.qps
        held = state.generations_at(slot)
        own = {g: state.counts[slot, g] for g in sorted(held)} if state.apart else {}
        swap = state.apart and record.refresh == "swap"
        found.append(Deployment(key, processes[slot], tuple(sorted(held | kept)), units, qps, own, swap))
    return tuple(found)


def choose_spared(
    world: Any, wave: Wave, counted_on: frozenset[str], found: tuple[Deployment, ...]
) -> tuple[Deployment, ...]:
    """By the real function: a run that counts on a lost region lets go of nothing in those that are left."""
    deployments, lost = world.journal.records[wave.model].deployments, world.out.lost
    facts = cast("Any", SimpleNamespace(lost=lost, deployments=deployments))
    return cast("tuple[Deployment, ...]", replica_sets.choose_kept_sets(facts, counted_on, cast("Any", found)))


def list_answering(
    world: Any, wave: Wave, counted_on: frozenset[str], found: tuple[Deployment, ...]
) -> tuple[Deployment, ...]:
    """Also what answers in the regions that are left, by the real function."""
    record, more = world.journal.records[wave.model], choose_spared(world, wave, counted_on, found)[len(found) :]
    states, _ = world.infra.observe(wave.model, {d.key.region for d in more})
    facts = SimpleNamespace(model=wave.model, generations=record.generations)
    return tuple(d for d in more if cast("Any", undoing.answers_at_all)(facts, d, states))


def list_routable(world: Any, wave: Wave, deployments: tuple[Deployment, ...]) -> tuple[Deployment, ...]:
    """As activities/transition/wave_context.py `list_routable`: the others may never have started."""
    if not wave.back:
        strays = {found.key for found in list_strays(world, wave)}
        return tuple(d for d in deployments if d.key not in strays)
    slots = set(state_of(world, wave, "released").slots)
    return tuple(d for d in deployments if (d.key.part, d.key.region, d.key.hardware) in slots)


def list_strays(world: Any, wave: Wave) -> list[Deployment]:
    """As activities/transition/scale_down.py `stray`."""
    record, lost = world.journal.records[wave.model], world.out.lost
    sent = frozenset((s.to, s.generation) for table in record.tables.values() for s in table.shares if s.fraction > 0)
    return [
        found
        for key, found in record.deployments.items()
        if key.region not in lost and not cast("Any", releasing.answers)(found, sent)
        if (key.part, key.region, key.hardware) not in peak_of(world, wave)
    ]


def release(
    world: Any, record: Any, deployment: Deployment, end: tuple[bool, frozenset[str]], attempt: Attempt
) -> Generator[Any, Any, None]:
    """Release in the region, then in the store. Unavailable if a lost region has returned in between."""
    keep, lost = end
    attempt.check()
    if world.out.lost != lost:
        msg = "another change came first"
        raise Unavailable(msg)
    if deployment.key.region not in lost:
        if keep:
            world.infra.apply(deployment)
        else:
            world.infra.delete(deployment.key)
    yield "capacity is freed"
    attempt.check()
    if deployment.key.region in lost and deployment.key.region not in world.out.lost:
        msg = f"region {deployment.key.region!r} is back"
        raise Unavailable(msg)
    if keep:
        record.deployments[deployment.key] = deployment
    else:
        record.deployments.pop(deployment.key, None)
