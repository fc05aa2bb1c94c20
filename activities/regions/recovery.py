"""Recovery of a region that was lost to its desired state: routes first, then removals, then replicas.

Only differences are applied: models in batches, with many calls side by side. Each batch of tables is stored in a short
unit of work of its own, so that writes of other models neither wait for the recovery nor make it start over.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

from activities.regions.desired_region import ModelMark, StoredRegion, read_stored
from activities.regions.failover import BATCH
from activities.runtime.single_calls import OF_ONE, describe, read_each
from activities.state.desired import DesiredFacts
from activities.state.replica_sets import shrinking_first
from activities.state.routes.routed_models import merge_served, name_shadow, read_routed
from activities.state.routes.served_generations import served_generations
from activities.state.wave_state import keep_held_shares
from ipnext.errors import RegionUnreachable, StaleWrite, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.value import digest_of
from ipnext.model.wire import decode_frozen
from ipnext.store.repository import Repository
from ipnext.store.store import Store

CALLS = 16
"""Tables or replica sets that are sent side by side."""

PASSES = 4
"""Comparisons of a region with the store in one attempt, each after what the one before has applied. The first has all
models, later ones those that changed meanwhile: a store that never rests does not keep a region out.
"""

MANY = 8
"""If this many calls fail and none of them succeeds, the region counts as unreachable; so it does while no call has
succeeded."""

Item = TypeVar("Item")


class RegionRecovery:
    """Restores one region; needs the store and the infrastructure.

    Made for one attempt; `beat` is called before each batch. A call that fails for one model does not stop the others.
    Unavailable if the region does not answer, or if all of many calls fail.
    """

    def __init__(
        self,
        store: Store,
        infrastructure: Infrastructure,
        region: str,
        *,
        beat: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._beat = beat
        self._store = store
        self._infrastructure = infrastructure
        self._region = region
        self._state = infrastructure.observe(region)
        applied = infrastructure.read_applied(region)
        self._revisions = dict(self._state.routes)
        """Model -> revision of the table that the gateway has applied."""
        self._tables = dict(applied.tables)
        self._sets = {found.key: found.digest for found in applied.sets}
        self._running = Counter(found.key for found in self._state.replicas if found.phase is not ReplicaPhase.DRAINING)
        self._marks: dict[str, ModelMark] = {}
        """Model -> what its applied table was computed from."""
        self._answered: dict[str, int] = {}
        """Model -> revision of a table that answers users again whose shares were dropped."""
        self._works = False
        """True if a call has succeeded, or the gateway has a table that the store wants."""
        self.failed: dict[str, str] = {}
        """Model -> error of its last call, if that failed."""
        self.suspects: set[str] = set()
        """Models with users or replicas on a generation that does not serve, as far as the read facts tell, and those
        that changed since."""

    def reconcile(self) -> None:
        """Apply the desired state until nothing differs. Its gateway is updated before its replicas end.

        Tables that differ from the stored ones are stored.
        """
        for _ in range(PASSES):
            with self._pass() as (stored, pool):
                told = self._route(stored, pool) + self._replace(stored, pool)
            if not told and not self.failed:
                return

    def catch_up(self) -> None:
        """Apply what changes have stored since, as it is stored.

        The region is in service, and they apply it themselves from now on. The reconciler does what is left.
        """
        for _ in range(PASSES):
            with self._pass() as (stored, pool):
                self.suspects |= {model for model, mark in stored.marks.items() if self._marks.get(model) != mark}
                told = self._route_stored(stored, pool) + self._replace(stored, pool)
            if not told:
                return

    @contextmanager
    def _pass(self) -> Iterator[tuple[StoredRegion, ThreadPoolExecutor]]:
        self.failed = {}
        with self._store.read() as repository:
            stored = read_stored(repository, self._region)
        with ThreadPoolExecutor(CALLS, thread_name_prefix="return") as pool:
            yield stored, pool

    def _route(self, stored: StoredRegion, pool: ThreadPoolExecutor) -> int:
        """Apply and store the tables of models that changed since their last one; return how many differed."""
        changed = [model for model, mark in sorted(stored.marks.items()) if self._marks.get(model) != mark]
        return sum(
            self._route_batch(changed[start : start + BATCH], stored, pool) for start in range(0, len(changed), BATCH)
        )

    def _route_batch(self, models: Sequence[str], stored: StoredRegion, pool: ThreadPoolExecutor) -> int:
        with self._store.read() as repository:
            found, unread = read_each(partial(read_routed, repository), models)
        self._fail(unread)
        self._beat(f"routes of {models[0]} and {len(models) - 1} more")
        read = {facts.model: facts.tables[self._region].revision for facts in found if self._region in facts.tables}
        wanted = self._build_tables(found, stored)
        tables = [table for table in wanted.values() if table is not None]
        differing = [table for table in tables if not self._has(table)]
        self._works = self._works or len(differing) < len(tables)
        self._each(self._push, differing, lambda table: table.model, pool)
        new = [table for table in tables if table.revision != read[table.model]]
        kept = self._keep([table for table in new if table.model not in self.failed], read)
        left = {table.model for table in new}.union(self.failed) - kept.keys()
        for model in set(models) - left:
            mark = stored.marks[model]
            self._marks[model] = mark.with_revision(self._region, kept[model]) if model in kept else mark
        return len(differing)

    def _build_tables(self, found: Sequence[DesiredFacts], stored: StoredRegion) -> Mapping[str, RouteTable | None]:
        """Compute the tables of models; note those that may have drifted, and those whose table can't be computed."""
        wanted: dict[str, RouteTable | None] = {}
        for facts in found:
            try:
                table = self._table(facts, stored.marks[facts.model].settled)
                drifted = may_have_drifted(facts, table)
            except OF_ONE as error:
                self._fail({facts.model: error})
                continue
            wanted[facts.model] = table
            self.suspects |= {facts.model} if drifted else set()
        return wanted

    def _fail(self, errors: Mapping[str, Exception]) -> None:
        self.failed |= {model: describe(error) for model, error in errors.items()}

    def _has(self, table: RouteTable) -> bool:
        """Check whether the gateway has applied exactly this table."""
        return (self._revisions.get(table.model), self._tables.get(table.model)) == (table.revision, digest_of(table))

    def _push(self, table: RouteTable) -> None:
        self._infrastructure.route(table)
        self._revisions[table.model], self._tables[table.model] = table.revision, digest_of(table)

    def _keep(self, tables: Sequence[RouteTable], read: Mapping[str, int]) -> Mapping[str, int]:
        """Store tables of models whose stored one still has the revision that was `read`. Return the models' revisions.

        A model that another unit writes at this moment is left to the next pass.
        """
        if not tables:
            return {}
        with self._store.begin_free({table.model for table in tables}) as repository:
            free = [table for table in tables if table.model in (repository.scope or ())]
            now = repository.revisions_of({table.model for table in free})
            same = [table for table in free if now.get((table.model, self._region)) == read[table.model]]
            repository.put_routes(same)
        return {table.model: table.revision for table in same}

    def _stored_tables(self, repository: Repository, models: Collection[str]) -> Sequence[RouteTable]:
        return [table for table in repository.routes_of(models) if table.region == self._region]

    def _table(self, facts: DesiredFacts, settled: int | None) -> RouteTable | None:
        """Return a model's table with the generations that the region still holds; None if the store has none.

        Users whose shares were dropped because no other region held the model are answered again if this one does. None
        are sent to generations that are not held any more, there or elsewhere: the rest of their shares gets all of
        them. The router keeps generations that gateways of other regions still send to by their stored tables: one may
        not be reachable. If the content is the stored one, so is the revision, unless the gateway has another table of
        that revision or a later one.
        """
        table = facts.tables.get(self._region)
        if table is None:
            return None
        served, shares = self._list_served(facts, table), self._shares(facts, table, settled)
        same = name_shadow(facts, table.model_copy(update={"shares": shares, "served": served}))
        applied = self._revisions.get(facts.model, 0)
        if same == table and (applied < table.revision or self._has(table)):
            return table
        later = same.model_copy(update={"revision": max(table.revision, applied) + 1})
        if shares and not self._former(table):
            self._answered[facts.model] = later.revision
        return later

    def _list_served(self, facts: DesiredFacts, table: RouteTable) -> tuple[ServedGeneration, ...]:
        held = served_generations(facts, self._region, tuple(facts.deployments.values()))
        others = [other for other in facts.tables.values() if other.region != self._region]
        sent = {s.generation for other in others for s in other.shares if s.to == self._region and s.fraction > 0}
        return merge_served(held, [found for found in table.served if found.generation in sent])

    def _former(self, table: RouteTable) -> tuple[RouteShare, ...]:
        """Return the stored shares, without those that this attempt has added."""
        return () if self._answered.get(table.model) == table.revision else table.shares

    def _shares(self, facts: DesiredFacts, table: RouteTable, settled: int | None) -> tuple[RouteShare, ...]:
        held = served_generations(facts, self._region, tuple(facts.deployments.values()))
        others = [other for other in facts.tables.values() if other.region != self._region]
        known = {(other.region, found.generation) for other in others for found in other.served}
        known |= {(self._region, found.generation) for found in held}
        shares = keep_held_shares(self._former(table), known)
        if not shares and (self._region, settled) in known and has_ready_replicas(facts, self._state, settled):
            return (RouteShare(to=self._region, generation=settled or 0, fraction=1.0),)
        return shares

    def _route_stored(self, stored: StoredRegion, pool: ThreadPoolExecutor) -> int:
        """Apply stored tables that are later than the applied ones; return how many there were."""
        later = [model for model, number in stored.revisions.items() if number > self._revisions.get(model, 0)]
        if not later:
            return 0
        with self._store.read() as repository:
            tables, unread = read_each(partial(self._stored_tables, repository), later)
        self._fail(unread)
        self._each(self._push_stored, tables, lambda table: table.model, pool)
        return len(tables)

    def _push_stored(self, table: RouteTable) -> None:
        with suppress(StaleWrite):  # a change has applied a later one
            self._push(table)
        self._revisions[table.model] = table.revision

    def _replace(self, stored: StoredRegion, pool: ThreadPoolExecutor) -> int:
        """Remove what the store lacks, then apply replica sets that differ; return how many did."""
        gone = sorted(self._revisions.keys() - stored.revisions.keys())
        self._each(self._unroute, gone, lambda model: model, pool)
        ended = sorted((self._sets.keys() | self._running.keys()) - stored.documents.keys(), key=str)
        self._each(self._delete, ended, lambda key: key.model, pool)
        wanted = shrinking_first(self._differing(stored), self._running)
        shrinking = [found for found in wanted if found.replicas <= self._running.get(found.key, 0)]

        def apply(deployment: Deployment) -> None:
            self._infrastructure.apply(deployment)
            self._sets[deployment.key] = stored.digests[deployment.key]
            self._running[deployment.key] = deployment.replicas

        for some in (shrinking, wanted[len(shrinking) :]):
            self._each(apply, some, lambda found: found.key.model, pool)
        return len(gone) + len(ended) + len(wanted)

    def _differing(self, stored: StoredRegion) -> Sequence[Deployment]:
        """Return the replica sets that the region was not sent, by key; unreadable ones are noted as failed."""
        found = list[Deployment]()
        for key in sorted((k for k, digest in stored.digests.items() if self._sets.get(k) != digest), key=str):
            try:
                found.append(decode_frozen(Deployment, stored.documents[key]))
            except OF_ONE as error:
                self._fail({key.model: error})
        return found

    def _unroute(self, model: str) -> None:
        self._infrastructure.unroute(model, self._region)
        self._revisions.pop(model, None)
        self._tables.pop(model, None)

    def _delete(self, key: DeploymentKey) -> None:
        self._infrastructure.delete(key)
        self._sets.pop(key, None)
        self._running.pop(key, None)

    def _each(
        self,
        call: Callable[[Item], None],
        items: Sequence[Item],
        model_of: Callable[[Item], str],
        pool: ThreadPoolExecutor,
    ) -> None:
        """Run calls side by side, and note the models whose call failed."""

        def one(item: Item) -> Exception | None:
            try:
                call(item)
            except RegionUnreachable:
                raise
            except OF_ONE as error:
                return error
            return None

        errors = list(pool.map(one, items))
        self._fail({model_of(item): error for item, error in zip(items, errors, strict=True) if error})
        away = [error for error in errors if isinstance(error, Unavailable)]
        self._works = self._works or len(away) < len(errors)
        if len(away) == len(errors) and (len(away) >= MANY or (away and not self._works)):
            raise away[0]


def has_ready_replicas(facts: DesiredFacts, state: RegionState, generation: int | None) -> bool:
    """Check whether every part of a generation has a ready replica in the region."""
    found = facts.generations.get(generation or 0)
    ready = {
        replica.key.part
        for replica in state.replicas
        if replica.key.model == facts.model
        and replica.phase is not ReplicaPhase.DRAINING
        and generation in replica.ready
    }
    return found is not None and ready.issuperset(found.parts)


def may_have_drifted(facts: DesiredFacts, table: RouteTable | None) -> bool:
    """Check whether users or replicas are on a generation that does not serve.

    `table` is the region's table from now on.
    """
    if facts.serving is None:
        return False
    tables = [*facts.tables.values(), *([table] if table is not None else [])]
    astray = any(s.fraction > 0 and s.generation != facts.serving for found in tables for s in found.shares)
    return astray or any(
        number != facts.serving and (found.own.get(number, 0) > 0 or not _has_served(facts, number))
        for found in facts.deployments.values()
        if found.replicas
        for number in (*found.generations, *found.own)
    )


def _has_served(facts: DesiredFacts, number: int) -> bool:
    generation = facts.generations.get(number)
    return generation is not None and generation.serving_at is not None
