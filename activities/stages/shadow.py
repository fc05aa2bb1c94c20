"""The stage `shadow`: a generation answers a share of the clients' requests, for comparison only, until it is judged.

`keep_shadow` looks at the store and the regions, does what is lacking, and judges. It may run any number of times, so a
worker that dies leaves the rest to the next one.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from temporalio import activity

from activities.runtime.deadline import beat
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.fence import fencing, still_ours
from activities.stages.shadow_budgets import find_spent
from activities.stages.shadow_plan import ShadowPlan, plan_shadow
from activities.stages.shadow_units import find_needed
from activities.state.desired import DesiredFacts, read_facts
from activities.state.drained_fleet import DrainedFleet
from activities.state.observed import first_load_failure, observe
from activities.state.routes.routed_models import name_shadow
from activities.state.shadow_removal import ShadowRemoval
from activities.state.shadow_sets import with_shadow
from activities.transition.gate.shadow import judge_shadow
from activities.transition.traffic_shift import Gateways
from ipnext.errors import FenceLost, RegionUnreachable, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.gate.shadow import ShadowComparison, merge_comparisons
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.shadow import ModelShadow, ShadowAsked, ShadowSeen, ShadowSettings
from ipnext.model.lifecycle.stages import SHADOW
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.wire import decode_plain
from ipnext.store.changes.shadows import StoredShadow
from ipnext.store.repository import Repository
from ipnext.store.store import Store

PLANNED_EVENT = "ShadowPlanned"
"""Kind of the event that says what a shadow takes, before anything is started."""
STARTS = 120
"""Looks at replicas that start, at most, within the rollout's deadline."""

States = Mapping[str, RegionState]


class ShadowActivities:
    """Activities of the stage, on the store and the infrastructure."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._removal = ShadowRemoval(store, infrastructure)

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.keep_shadow, self.end_shadow)

    @activity.defn(name="keep_shadow", no_thread_cancel_exception=True)
    @of_a_step
    def keep_shadow(self, asked: ShadowAsked) -> ShadowSeen:
        """Bring the shadow of a change closer to its verdict, and return how far it is.

        The first call plans it and starts nothing, so that users see beforehand what it takes. Raises FenceLost if the
        change has ended.
        """
        with fencing(self._store, asked.change_id):
            with self._store.read() as repository:
                stored = repository.stored_shadow(asked.model)
            if stored is not None and stored.shadow.change_id != asked.change_id:
                self._removal.remove(asked.model, stored.shadow.change_id)
                stored = None
            if stored is None:
                return self._plan(asked)
            shadow, seen = self._look(stored)
            if (shadow, seen) != (stored.shadow, stored.seen):
                self._note(asked, shadow, seen, former=stored.seen)
            return seen

    @activity.defn(name="end_shadow", no_thread_cancel_exception=True)
    @of_a_step
    def end_shadow(self, asked: ShadowAsked) -> Done:
        """End the shadow of a change: the change continues without it, or ends.

        Raises Unavailable while another change moves the model.
        """
        self._removal.remove(asked.model, asked.change_id)
        return Done()

    def _plan(self, asked: ShadowAsked) -> ShadowSeen:
        settings = decode_plain(ShadowSettings, asked.settings)
        with self._store.begin(asked.model) as repository:
            still_ours(repository)
            repository.lock_plan_in_force()
            try:
                repository.check_only_mover(asked.model, asked.change_id)
            except Unavailable as error:
                return ShadowSeen(state="waiting", message=error.message, again_seconds=settings.look_seconds)
            planned: ShadowPlan = plan_shadow(repository, asked, settings, seed=secrets.randbits(63))
            if planned.shadow is not None:
                repository.put_shadow(planned.shadow, planned.seen)
                repository.add_event(
                    asked.model, PLANNED_EVENT, f"{asked.kind} {asked.change_id}: {planned.seen.message}"
                )
            _show(repository, asked, planned.seen)
        return planned.seen

    def _look(self, kept: StoredShadow) -> tuple[ModelShadow, ShadowSeen]:
        """Do what is lacking, and judge. While another change moves the model, its steps keep the shadow."""
        shadow = kept.shadow
        with self._store.read() as repository:
            moved = repository.is_moved(shadow.model)
            facts = read_facts(repository, shadow.model, shadow.generation)
            needed, spent = find_needed(repository, kept), find_spent(repository, facts, kept)
            drained = DrainedFleet.of(repository.drains()).regions
            stored = {found.key: found for found in repository.deployments(shadow.model)}
            seconds = repository.model(shadow.model).in_force.spec.rollout.deadline_seconds
        if denied := sorted(facts.denied.keys() & set(shadow.shadow.served.named)):
            return shadow, ShadowSeen(state="refused", message=f"snapshot {denied[0][1]} of {denied[0][0]!r} is denied")
        if needed is not None and not moved:
            why = f"other models need units that the shadow takes: {needed}"
            return shadow, _give_back(shadow.settings, why)
        if spent is not None and not moved:
            return shadow, _give_back(shadow.settings, f"the shadow takes {shadow.takes}, and {spent}")
        here = shadow.outside(drained)
        wanted = [found for found in with_shadow(facts.deployments.values(), here) if found.shadow]
        if not moved and any(stored.get(found.key) != found for found in wanted):
            self._store_sets(here)
        if not moved:
            self._removal.leave(facts, drained)
        states, silent = observe(self._infrastructure, here.regions, [shadow.model])
        if (failure := first_load_failure(shadow.model, shadow.generation, states.values())) is not None:
            return shadow, ShadowSeen(state="refused", message=failure.message)
        lacking = {found.key: text for found in wanted if (text := _lacks(found, shadow.generation, states))}
        if not moved:
            self._apply(shadow, (found for found in wanted if found.key in lacking))
        if not shadow.is_routed and (lacking or silent or not states):
            away = ", ".join(silent or shadow.regions)
            text = "; ".join(lacking.values()) or f"regions {away} do not answer, or are drained"
            again = max(1.0, seconds / STARTS)
            return shadow, ShadowSeen(state="starting", message=text, again_seconds=again, limit_seconds=seconds)
        shadow = shadow.model_copy(update={"is_routed": True})
        if not moved:
            self._route(replace(facts, shadow=here.model_copy(update={"is_routed": True})), shadow)
        return shadow, _judge(shadow, states.values())

    def _store_sets(self, shadow: ModelShadow) -> None:
        with self._store.begin(shadow.model) as repository:
            _still_kept(repository, shadow)
            stored = repository.deployments(shadow.model)
            for found in with_shadow(stored, shadow):
                if found.shadow and found not in stored:
                    repository.put_deployment(found)

    def _apply(self, shadow: ModelShadow, wanted: Iterable[Deployment]) -> None:
        """Apply replica sets with the shadow. A region that does not answer gets them later."""
        silent = set[str]()
        for found in wanted:
            if found.key.region in silent:
                continue
            with self._store.read() as repository:
                _still_kept(repository, shadow)
            try:
                self._infrastructure.apply(found)
            except Unavailable:
                silent.add(found.key.region)

    def _route(self, facts: DesiredFacts, shadow: ModelShadow) -> None:
        """Let the routers mirror. One that does not answer gets its table later."""
        if all(name_shadow(facts, table) == table for table in facts.tables.values()):
            return
        self._store_shadow(shadow)
        shares = {region: table.shares for region, table in facts.tables.items()}
        with suppress(RegionUnreachable):
            Gateways(self._store, self._infrastructure, facts, beat=beat).follow(shares, facts.deployments.values())

    def _store_shadow(self, shadow: ModelShadow) -> None:
        """Store it before any table names it, so that every writer of tables does from then on."""
        with self._store.begin(shadow.model) as repository:
            repository.put_shadow(shadow, _still_kept(repository, shadow).seen)

    def _note(self, asked: ShadowAsked, shadow: ModelShadow, seen: ShadowSeen, *, former: ShadowSeen) -> None:
        """Keep what was seen, for users."""
        with self._store.begin(asked.model) as repository:
            still_ours(repository)
            known = repository.shadow(asked.model)
            if known is not None and known.change_id == asked.change_id:
                repository.put_shadow(shadow, seen)
            if (seen.state, seen.message) != (former.state, former.message):
                _show(repository, asked, seen)


def _still_kept(repository: Repository, shadow: ModelShadow) -> StoredShadow:
    """Return the shadow as stored, before a write that would bring it about again.

    The stage may have ended, and its change continue, while an attempt at a look was slow: the fence is the change's.

    Raises:
        FenceLost: the shadow has ended.
        Unavailable: another attempt or change may write.
    """
    still_ours(repository)
    repository.check_only_mover(shadow.model, shadow.change_id)
    stored = repository.stored_shadow(shadow.model)
    if stored is None or stored.shadow.shadow.seed != shadow.shadow.seed:
        msg = f"the shadow of change {shadow.change_id!r} has ended; a late look at it writes nothing more"
        raise FenceLost(msg)
    return stored


def _show(repository: Repository, asked: ShadowAsked, seen: ShadowSeen) -> None:
    if asked.kind in {ChangeKind.PUBLISH, ChangeKind.APPLY} and not seen.is_final:
        message = f"generation {asked.generation}: stage {SHADOW}: {seen.state}: {seen.message}"
        repository.set_condition(asked.model, ConditionType.VALIDATED, "Unknown", Reason.PROGRESSING, message)


def _give_back(settings: ShadowSettings, why: str) -> ShadowSeen:
    """End a shadow that has no room any more, as if its requests had been too few."""
    passes = settings.on_too_few == "pass"
    return ShadowSeen(state="skipped" if passes else "refused", message=f"no verdict: {why}", passes=passes)


def _lacks(wanted: Deployment, generation: int, states: States) -> str:
    """Describe the processes of the shadow that are not ready in a region that answers; empty if all are."""
    key = wanted.key
    if key.region not in states:
        return ""
    ready = sum(
        replica.key == key and replica.phase is not ReplicaPhase.DRAINING and generation in replica.ready
        for replica in states[key.region].replicas
    )
    needed = wanted.shadow[generation]
    if ready >= needed:
        return ""
    return f"{key.part} in {key.region} on {key.hardware}: {ready} of {needed} ready for generation {generation}"


def _judge(shadow: ModelShadow, states: Collection[RegionState]) -> ShadowSeen:
    settings, found = shadow.settings, tuple(_comparisons(shadow, states))
    verdict = judge_shadow(settings, found)
    evidence = _figures(found)
    if verdict.outcome != "too_few":
        return ShadowSeen(state=verdict.outcome, message=verdict.message, evidence=evidence)
    return ShadowSeen(
        state="comparing",
        message=verdict.message,
        again_seconds=settings.look_seconds,
        limit_seconds=settings.seconds,
        passes=settings.on_too_few == "pass",
        evidence=evidence,
    )


def _comparisons(shadow: ModelShadow, states: Iterable[RegionState]) -> Iterator[ShadowComparison]:
    key = (shadow.model, shadow.generation, shadow.shadow.seed)
    return (found for state in states for found in state.shadows if found.key == key)


def _figures(found: Sequence[ShadowComparison]) -> dict[str, Any]:
    merged = merge_comparisons(found)
    if not merged:
        return {}
    one = merged[0]
    return {
        "chosen": one.chosen,
        "compared": one.compared,
        "failed": one.failed,
        "mismatched": one.mismatched,
        "dropped": sum(one.dropped.values()),
    }
