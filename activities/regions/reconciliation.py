"""Module reconciliation: regions follow the store, and users follow the serving generation, whatever was missed before.

Activities of workflow `reconcile`. Each pass compares a region's observed state with its desired state in the store and
applies the differences again. It acts on models that no change moves, and on those whose transition is between two
steps, as in a hold, a pause or a wait for an approval: within a step the change moves its model itself.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from temporalio import activity

from activities.planning.drift import record_repair, withdraw_unserved
from activities.regions.parsed_sets import DesiredSet, ParsedSets
from activities.regions.returned_regions import ReturnedRegions
from activities.runtime.deadline import beat
from activities.runtime.single_calls import SingleCalls
from activities.state.drained_fleet import DrainedFleet
from activities.state.shadow_removal import ShadowRemoval
from ipnext.errors import StaleWrite, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import Replica, ReplicaPhase
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.regions.reconciliation import RegionAsked, RegionReconciled, RepairsRecorded
from ipnext.platform.denials import carry_out_denials
from ipnext.store.operations.change_end import judge_again
from ipnext.store.repository import Repository
from ipnext.store.store import Store

CALLS = 16
"""Replica sets or route tables of one region that are sent side by side."""

NAMED = 10
"""Models that an answer or an event names at most."""

TRIES = 3
"""Repetitions of a call because the store changed during it; the next pass handles the rest."""


@dataclass(frozen=True)
class DesiredRegion:
    """Desired state of a region, without the models that a step of a change is moving."""

    sets: Mapping[DeploymentKey, DesiredSet]
    tables: Mapping[str, int]
    """Model -> revision of its route table."""
    settled: frozenset[str]
    """Models whose state in the store counts (`Repository.settled_models`); others are left alone."""
    refusing: Mapping[str, int] = field(default_factory=dict)
    """Model that never served -> revision of the table that refuses its users. A gateway without any table of the model
    receives this one although a change is open: a first rollout may take long.
    """
    astray: frozenset[str] = frozenset()
    """Models with a gateway on a generation that does not serve: only their repair may remove its replicas."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Models with a replica set that can't be read, with the error: they are left alone."""


@dataclass
class Differences:
    """Differences between a region's observed and desired state."""

    apply: list[DeploymentKey] = field(default_factory=list)
    delete: list[DeploymentKey] = field(default_factory=list)
    route: list[str] = field(default_factory=list)
    unroute: list[str] = field(default_factory=list)

    @property
    def models(self) -> tuple[str, ...]:
        """Models that differ, sorted."""
        keys = {key.model for key in (*self.apply, *self.delete)}
        return tuple(sorted({*keys, *self.route, *self.unroute}))


class ReconciliationActivities:
    """Reconciliation activities, on the store and the infrastructure."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._told: dict[str, tuple[str, ...]] = {}
        """Region -> models that differed in the last pass: an event is written when they change."""
        self._parsed = ParsedSets()
        self._returned = ReturnedRegions()
        self._shadows = ShadowRemoval(store, infrastructure)

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.record_repairs, self.reconcile_region)

    @activity.defn(name="record_repairs", no_thread_cancel_exception=True)
    def record_repairs(self, nothing: Done) -> RepairsRecorded:
        """Record a repair for each model whose users or replicas are on a generation that does not serve.

        Also, once, for models of a region that is back after a loss. A model without a serving generation is withdrawn
        instead. A model that fails is left to the next pass. Models that serve a denied snapshot go back to a former
        generation. Shadows of changes that have ended end.
        """
        del nothing
        calls, recorded = SingleCalls(), list[str]()
        calls.run("denials", partial(carry_out_denials, self._store))
        with self._store.read() as repository:
            drifted = self._returned.find_drifted(repository, self._infrastructure.regions(), beat)
            lost = DrainedFleet.of(repository.drains()).lost
            astray = sorted({*repository.models_astray(but=lost), *repository.models_unrepaired(), *drifted})
            unserved = repository.models_unserved()
            shadows = repository.shadows_left()
        for model, change_id in shadows:
            calls.run(model, partial(self._shadows.remove, model, change_id))
        for model in astray:
            beat(f"{model} drifted")
            calls.run(model, partial(self._repair, model, recorded))
        silent = set[str]()
        for model in unserved:
            beat(f"{model} is withdrawn")
            calls.run(model, partial(self._withdraw, model, silent))
        return RepairsRecorded(
            regions=tuple(sorted(self._infrastructure.regions())),
            repairs=len(recorded),
            models=tuple(recorded[:NAMED]),
            failed=_first(calls.failed),
        )

    @activity.defn(name="reconcile_region", no_thread_cancel_exception=True)
    def reconcile_region(self, asked: RegionAsked) -> RegionReconciled:
        """Compare one region with the store and apply the differences again. A region that does not answer is no error.

        A model whose call fails is left to the next pass.
        """
        region = asked.region
        with self._store.read() as repository:
            drained = DrainedFleet.of(repository.drains())
        if region in drained.lost:
            return RegionReconciled(region=region, skipped="lost: its drain brings it back")
        try:
            state = self._infrastructure.observe(region)
            with self._store.read() as repository:
                desired = desired_region(repository, region, self._parsed)
            found = differences(desired, state)
            failed = self._apply_differences(region, found, state)
        except Unavailable:
            return RegionReconciled(region=region, reachable=False)
        self._note(region, found.models)
        return RegionReconciled(
            region=region,
            applied=len(found.apply),
            deleted=len(found.delete),
            routed=len(found.route),
            unrouted=len(found.unroute),
            failed=_first({**desired.failed, **failed}),
        )

    def _repair(self, model: str, recorded: list[str]) -> None:
        with self._store.begin(model) as repository:
            if record_repair(repository, model) is None:
                return
            judge_again(repository, model)
        recorded.append(model)

    def _withdraw(self, model: str, silent: set[str]) -> None:
        """Withdraw a model from every gateway first; replicas stay while an unreachable gateway may send to them.

        Regions that do not answer are added to `silent`: they are called once in a pass, not once for each model.
        """
        with self._store.read() as repository:
            lost = DrainedFleet.of(repository.drains()).lost
        for region in sorted(set(self._infrastructure.regions()) - lost):
            try:
                if region in silent or not self._unroute_unserved(model, region):
                    return
            except Unavailable:
                silent.add(region)
                return
        with self._store.begin(model) as repository:
            withdraw_unserved(repository, model)

    def _unroute_unserved(self, model: str, region: str) -> bool:
        """Remove a model without a serving generation from a gateway.

        If a change has come, apply its table again and return False.
        """
        if model not in self._find_unserved():
            return False
        self._infrastructure.unroute(model, region)
        if model in self._find_unserved():
            return True
        self._follow_table(model, region, followed=0)
        return False

    def _find_unserved(self) -> Collection[str]:
        with self._store.read() as repository:
            return repository.models_unserved()

    def _apply_differences(self, region: str, found: Differences, state: RegionState) -> Mapping[str, str]:
        """Apply replicas, then routes, then remove everything that the store lacks.

        Replicas come first, so that the targets of traffic exist.

        Calls of one kind run side by side: a region that lost its state gets all of it within a pass. A model whose
        replicas can't be applied keeps the table that its gateway has, and one that fails keeps its replicas. Returns
        the models that failed, with the error.
        """
        calls = SingleCalls()
        with ThreadPoolExecutor(CALLS, thread_name_prefix="reconcile") as pool:
            calls.run_all([(key.model, partial(self._apply, key)) for key in found.apply], pool, beat)
            followed = {model: state.routes.get(model, 0) for model in found.route}
            routed = [model for model in found.route if not followed[model] or model not in calls.failed]
            calls.run_all([(m, partial(self._route, m, region, followed=followed[m])) for m in routed], pool, beat)
            calls.run_all([(model, partial(self._unroute, model, region)) for model in found.unroute], pool, beat)
            ended = [key for key in found.delete if key.model not in calls.failed]
            calls.run_all([(key.model, partial(self._delete, key)) for key in ended], pool, beat)
        return calls.failed

    def _apply(self, key: DeploymentKey) -> None:
        """Apply the stored replica set, unless a change moves its model by now."""
        with self._store.read() as repository:
            settled = repository.is_settled(key.model)
        if settled:
            self._follow(key)

    def _follow(self, key: DeploymentKey) -> None:
        """Apply the stored replica set until it has not changed meanwhile.

        A change writes before or after it applies.
        """
        told = None
        for _ in range(TRIES):
            with self._store.read() as repository:
                stored = repository.deployment(key)
            if stored == told:
                return
            if stored is not None:
                self._infrastructure.apply(stored)
            else:  # a change has ended it since the last call
                self._infrastructure.delete(key)
            told = stored

    def _delete(self, key: DeploymentKey) -> None:
        """End a replica set that the store still lacks; one that a change adds meanwhile is started again."""
        with self._store.read() as repository:
            lacking = repository.deployment(key) is None and repository.is_settled(key.model)
        if lacking:
            self._infrastructure.delete(key)
            self._follow(key)

    def _unroute(self, model: str, region: str) -> None:
        """Remove a model from a gateway while the store has no table.

        One that a change adds meanwhile is applied again.
        """
        with self._store.read() as repository:
            lacking = repository.route(model, region) is None and repository.is_settled(model)
        if lacking:
            self._infrastructure.unroute(model, region)
            self._follow_table(model, region, followed=0)

    def _route(self, model: str, region: str, *, followed: int) -> None:
        """Apply the stored table, unless a change moves its model by now.

        One that only refuses users is applied in any case.
        """
        with self._store.read() as repository:
            table = repository.route(model, region)
            counts = table is not None and (table.refuses or repository.is_settled(model))
        if counts:
            self._follow_table(model, region, followed=followed)

    def _follow_table(self, model: str, region: str, *, followed: int) -> None:
        """Apply the stored table; if the gateway is ahead of it, store it again with a later revision."""
        with self._store.read() as repository:
            table = repository.route(model, region)
        if table is None:
            return
        later = table if table.revision > followed else table.model_copy(update={"revision": followed + 1})
        try:
            self._infrastructure.route(later)
            if later.revision != table.revision:
                self._write(table, later)
        except StaleWrite:  # a change has applied a later one
            return

    def _write(self, read: RouteTable, later: RouteTable) -> None:
        with self._store.begin(read.model) as repository:
            if repository.route(read.model, read.region) == read:
                repository.put_route(later)

    def _note(self, region: str, models: tuple[str, ...]) -> None:
        """Record an event for models that differ now and did not in the last pass."""
        before, self._told[region] = self._told.get(region, ()), models
        if not models or models == before:
            return
        more = f" and {len(models) - NAMED} more" if len(models) > NAMED else ""
        with self._store.begin() as repository:
            repository.add_event(None, "Reconciled", f"{region} was told again: {', '.join(models[:NAMED])}{more}")


def _first(failed: Mapping[str, str]) -> Mapping[str, str]:
    return {model: failed[model] for model in sorted(failed)[:NAMED]}


def desired_region(repository: Repository, region: str, parsed: ParsedSets) -> DesiredRegion:
    """Return the desired state of a region."""
    sets, failed = parsed.of(region, repository.deployment_documents(region))
    settled = repository.settled_models() - failed.keys()
    return DesiredRegion(
        sets={key: found for key, found in sets.items() if key.model in settled},
        tables={model: number for model, number in repository.route_revisions(region).items() if model in settled},
        settled=settled,
        refusing=repository.refusing_revisions(region),
        astray=frozenset(repository.models_astray(but=DrainedFleet.of(repository.drains()).lost)),
        failed=failed,
    )


def differences(desired: DesiredRegion, state: RegionState) -> Differences:
    """List the differences, sorted by name. Replicas of models that the store does not know are left alone."""
    running: dict[DeploymentKey, list[Replica]] = defaultdict(list)
    for replica in state.replicas:
        if replica.phase is not ReplicaPhase.DRAINING:
            running[replica.key].append(replica)
    found = Differences()
    behind = (
        key
        for key, wanted in desired.sets.items()
        if key.model not in desired.astray and not in_sync(wanted, running.get(key, ()))
    )
    found.apply.extend(sorted(behind, key=str))
    told = desired.settled - desired.astray
    gone = (key for key in running if key not in desired.sets and key.model in told)
    found.delete.extend(sorted(gone, key=str))
    missing = {model: number for model, number in desired.refusing.items() if model not in state.routes}
    tables = {**missing, **desired.tables}
    found.route.extend(sorted(m for m, number in tables.items() if state.routes.get(m, 0) != number))
    found.unroute.extend(sorted(m for m in state.routes if m not in desired.tables and m in desired.settled))
    return found


def in_sync(wanted: DesiredSet, replicas: Collection[Replica]) -> bool:
    """Check whether the replicas are as many as desired and hold their generations, or are about to."""
    if len(replicas) != wanted.replicas:
        return False
    held = [{*replica.ready, *replica.coming} for replica in replicas]
    alone = {**wanted.own, **wanted.shadow}
    if not all(sum(number in has for has in held) >= count for number, count in alone.items()):
        return False
    shared = wanted.generations - wanted.shadow.keys()
    return bool(wanted.own) or sum(shared <= has for has in held) >= wanted.replicas - sum(wanted.shadow.values())
