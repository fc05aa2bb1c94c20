"""Regions that a revert does not wait for, or leaves as they are; decided by the real functions."""

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

from activities.state import wave_state as waves
from activities.transition import hot_swap as swapping
from activities.transition import revert as undoing
from ipnext.model.deployment.route_table import RouteShare

from .wave import Wave, origin_of, peak_of


def find_uninvolved(world: Any, wave: Wave) -> frozenset[str]:
    """By the real function: regions that a revert gives neither replicas nor users of others."""
    if not wave.back or _brings_manifest(world, wave):
        return frozenset()
    return frozenset(world.infra.regions) - undoing.find_needed(wave.moving.transition, wave.model, _count_begun(wave))


def find_unchanged(world: Any, wave: Wave) -> frozenset[str]:
    """By the real function: silent regions that are no part of a revert."""
    if not wave.back or _brings_manifest(world, wave):
        return frozenset()
    origin = origin_of(wave)
    changed = undoing.find_changed(wave.moving.transition, wave.model, _count_begun(wave))
    stored = world.journal.records[wave.model].deployments
    strays = {key.region for key in stored if (key.part, key.region, key.hardware) not in origin.slots}
    silent = {region for region in world.infra.regions if not world.infra.reachable(region)}
    return frozenset(silent - changed - strays - world.out.lost)


def find_unfreed(world: Any, wave: Wave, state: waves.ModelWaveState) -> frozenset[str]:
    """By the real function: regions that a revert wave by wave could not undo so far."""
    if not (wave.back and wave.by_waves):
        return frozenset()
    record = world.journal.records[wave.model]
    stored = record.deployments.values(), record.tables.values()
    meanwhile = swapping.while_swapped(wave.moving.transition, wave.model, wave.index)
    found: frozenset[str] = cast("Any", undoing.find_unfreed)(
        state, *stored, peak_of(world, wave).keys(), meanwhile=meanwhile
    )
    return found - world.out.lost


def find_not_reverted(world: Any, wave: Wave, state: waves.ModelWaveState) -> frozenset[str]:
    """By the real function: in the revert of a swap, regions whose routers forget nothing."""
    if not wave.back or wave.moving.transition.refresh != "swap":
        return frozenset()
    states, _ = world.infra.observe(wave.model, {region for _, region, _ in state.slots} - world.out.lost)
    found: frozenset[str] = cast("Any", swapping.not_gone_back)(wave.model, state, states)
    return found


def find_waiting(
    world: Any, wave: Wave, shares: Mapping[str, tuple[RouteShare, ...]], seen: Iterable[str]
) -> frozenset[str]:
    """By the real function: users' regions that stay as they are."""
    record = world.journal.records[wave.model]
    states, _ = world.infra.observe(wave.model, set(seen) - world.out.lost)
    facts = SimpleNamespace(model=wave.model, tables=record.tables, generations=record.generations)
    found: frozenset[str] = cast("Any", undoing.waiting)(facts, shares, states)
    return found


def _brings_manifest(world: Any, wave: Wave) -> bool:
    former = world.journal.records[wave.model].former
    return former is not None and former.change_id == wave.moving.id


def _count_begun(wave: Wave) -> int:
    return len(wave.moving.transition.waves) if wave.by_waves else wave.index + 1
