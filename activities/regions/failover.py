"""Failover from a lost region, for every model at once: route tables are computed, pushed in parallel, then stored."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from activities.runtime.single_calls import OF_ONE, describe, name_failed, read_each
from activities.state.desired import DesiredFacts
from activities.state.observed import observe
from activities.state.routes.failover_shares import Survivor
from activities.state.routes.route_shares import fail_over, survivors
from activities.state.routes.routed_models import name_shadow, read_routed
from ipnext.errors import IPnextError, RegionUnreachable, StaleWrite, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.regions.stray_users import describe_astray
from ipnext.store.operations.change_end import judge_again
from ipnext.store.repository import Repository
from ipnext.store.store import Store

PUSHES = 64
"""Tables that are pushed in parallel: each waits until its gateway applies it, and an agent writes those that wait
together."""

FIRST_BATCH = 8
"""Models whose tables are sent first ..."""

BATCH = 64
"""... and then this many at a time: each batch is read by a constant number of queries and written in one unit.

A model that another unit writes at that moment is left out of it, and written in a separate unit at the end.
"""

NAMED = 3
"""Models that a message names at most."""

MANY = 8
"""If this many tables of a region fail as unavailable and none of it succeeds, the region is not called any more."""

WRITTEN = "a change stored another route table at the same time"
"""Error of a model that is processed once more."""


@dataclass(frozen=True)
class SentAround:
    """Result of a failover: tables in force, their models, and regions whose gateway does not answer."""

    tables: int
    models: int
    unreachable: tuple[str, ...]
    unanswered: tuple[str, ...]
    """Models that no remaining region can answer."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Model, or model and region of its table -> error. The next pass tries them again."""

    @property
    def message(self) -> str:
        """The result in words."""
        done = f"traffic of {self.models} models was sent around it ({self.tables} route tables)"
        return "; ".join(filter(None, (done, self.remaining_work)))

    @property
    def remaining_work(self) -> str:
        """What is not done, in words; empty if nothing is."""
        told = list[str]()
        if self.unanswered:
            more = f" and {len(self.unanswered) - NAMED} more" if len(self.unanswered) > NAMED else ""
            told.append(f"no region left answers {', '.join(self.unanswered[:NAMED])}{more}")
        if self.unreachable:
            told.append(f"gateways of {', '.join(self.unreachable)} do not answer and do not follow yet")
        if self.failed:
            told.append(f"not done, and tried again: {name_failed(self.failed)}")
        return "; ".join(told)


class RegionFailover:
    """The gateways of all remaining regions."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def send_around(self, region: str) -> SentAround:
        """Apply tables without lost regions wherever one names `region`.

        One step and no gate: the remaining regions answer at once. The lost region's gateway gets its table once it is
        restored. A model that is being retired gets none: its gateways remove it one by one, and would learn of it
        again. Models are processed in batches, the most important first: the tables of a batch are pushed and stored
        before the next one is read. A table, model or region that fails stops no other; the result names it. Models
        that a change moved meanwhile are processed once more.

        Raises Unavailable: the store does not answer.
        """
        with self._store.read() as repository:
            retiring = repository.retiring_models()
            routed = [model for model in repository.models_routed_to(region) if model not in retiring]
        done = _Progress()
        with ThreadPoolExecutor(PUSHES, thread_name_prefix="route-around") as pool:
            for models in _in_batches(routed):
                self._send_batch(models, done, pool)
            for models in _in_batches(done.pop_outdated()):
                self._send_batch(models, done, pool)
        for model, sent in sorted(done.busy.items()):
            self._store_alone(model, sent, done)
        return done.result

    def _send_batch(self, models: Sequence[str], done: "_Progress", pool: ThreadPoolExecutor) -> None:
        with self._store.read() as repository:
            found, unread = read_each(partial(read_routed, repository), models)
        done.failed.update({(model, ""): error for model, error in unread.items()})
        lost = _lost(found)
        others = {table.region for facts in found for table in facts.tables.values()} - lost
        states, silent = self._observe_regions(others - done.unreachable, models, done, pool)
        ready = ready_counts(states.values())
        tables = [table for facts in found for table in self._compute_tables(facts, states, ready, done)]
        done.answered |= {
            (facts.model, region) for facts in found for region, table in facts.tables.items() if table.shares
        }
        pushed = [table for table in tables if table.region not in lost and table.region in states]
        done.note_pushed(pushed, list(pool.map(self._push_table, pushed)))
        done.unreachable |= silent & {table.region for table in tables}
        kept = [table for table in tables if not done.has_failed(table)]
        sent = _Sent(kept, pushed, read=_revisions(found), astray=_find_astray(found, kept))
        self._keep_batch(sent, done)

    def _compute_tables(
        self,
        facts: DesiredFacts,
        states: Mapping[str, RegionState],
        ready: Mapping[tuple[DeploymentKey, int], int],
        done: "_Progress",
    ) -> Sequence[RouteTable]:
        try:
            return tables_around(facts, states, ready)
        except OF_ONE as error:
            done.failed[facts.model, ""] = error
            return ()

    def _keep_batch(self, sent: "_Sent", done: "_Progress") -> None:
        """Store the tables of a batch in one unit.

        Models that another unit writes, or all if the unit fails, are left to the end.
        """
        models = {table.model for table in sent.kept}
        try:
            with self._store.begin_free(models) as repository:
                free = repository.scope or frozenset()
                now = sent.of(free)
                _keep(repository, now)
        except Unavailable:
            raise
        except OF_ONE:
            free, now = frozenset(), sent.of(())
        done.note_kept(now)
        self._forget(now)
        done.busy |= {model: sent.of({model}) for model in models - free}

    def _store_alone(self, model: str, sent: "_Sent", done: "_Progress") -> None:
        try:
            with self._store.begin(model) as repository:
                _keep(repository, sent)
        except Unavailable:
            raise
        except OF_ONE as error:
            done.failed[model, ""] = error
            return
        done.note_kept(sent)
        self._forget(sent)

    def _observe_regions(
        self, regions: Collection[str], models: Sequence[str], done: "_Progress", pool: ThreadPoolExecutor
    ) -> tuple[dict[str, RegionState], frozenset[str]]:
        """Return the states of the regions that answer, observed in parallel, and the names of those that do not."""

        def one(region: str) -> dict[str, RegionState]:
            try:
                return observe(self._infrastructure, [region], models)[0]
            except OF_ONE as error:
                done.failed["", region] = error
                return {}

        states = {name: state for answer in pool.map(one, sorted(regions)) for name, state in answer.items()}
        return states, frozenset(regions - states.keys())

    def _forget(self, sent: "_Sent") -> None:
        """Remove tables from gateways again that were removed from the store, or are about to be.

        If one fails, the retirement of the model retries until it does not, or the reconciler removes it.
        """
        for table in sent.pushed:
            if table.model in sent.retiring or _key(table) in sent.removed:
                with suppress(IPnextError):
                    self._infrastructure.unroute(table.model, table.region)

    def _push_table(self, table: RouteTable) -> Exception | None:
        """Push a table; return its error, if any."""
        try:
            self._infrastructure.route(table)
        except OF_ONE as error:
            return error
        return None


@dataclass
class _Sent:
    """Tables to store, and those of them that gateways applied."""

    kept: Sequence[RouteTable]
    pushed: Sequence[RouteTable]
    read: Mapping[tuple[str, str], int]
    """(Model, region) -> revision of the stored table that these were computed from."""
    retiring: frozenset[str] = frozenset()
    """Models that were being retired when the tables were stored."""
    removed: frozenset[tuple[str, str]] = frozenset()
    """(Model, region) of tables that the store had no more by then: a retirement began and ended in between."""
    outdated: frozenset[str] = frozenset()
    """Models of which a change had stored another table by then: that one stays."""
    astray: frozenset[str] = frozenset()
    """Models with users who were sent, or are now, to a generation that does not serve."""

    def of(self, models: Collection[str]) -> "_Sent":
        """Return the tables of these models."""
        kept, pushed = ([table for table in found if table.model in models] for found in (self.kept, self.pushed))
        return _Sent(kept, pushed, self.read, astray=self.astray.intersection(models))


def _keep(repository: Repository, sent: _Sent) -> None:
    """Store the tables that replace the ones read, and whether their models are ready by them.

    None of a model that is being retired, or was: a table of it would send users to replicas that have ended.
    """
    sent.retiring = repository.retiring_models()
    now = repository.revisions_of({table.model for table in sent.kept})
    sent.removed = frozenset(map(_key, sent.kept)) - now.keys()
    staying = [table for table in sent.kept if table.model not in sent.retiring and _key(table) not in sent.removed]
    sent.kept = [table for table in staying if now[_key(table)] == sent.read[_key(table)]]
    sent.outdated = frozenset(table.model for table in staying if now[_key(table)] != sent.read[_key(table)])
    repository.put_routes(sent.kept)
    for model in sorted(sent.astray.intersection(table.model for table in sent.kept)):
        judge_again(repository, model)


def _key(table: RouteTable) -> tuple[str, str]:
    return table.model, table.region


def _revisions(found: Iterable[DesiredFacts]) -> Mapping[tuple[str, str], int]:
    return {_key(table): table.revision for facts in found for table in facts.tables.values()}


def _find_astray(found: Sequence[DesiredFacts], new: Sequence[RouteTable]) -> frozenset[str]:
    """Return the models of which a former or a new table sends users to a generation that does not serve."""
    changed = {table.model for table in new}
    serving = {facts.model: facts.serving for facts in found if facts.serving is not None and facts.model in changed}
    tables = (*new, *(table for facts in found for table in facts.tables.values()))
    return frozenset(
        table.model for table in tables if table.model in serving and describe_astray([table], serving[table.model])
    )


@dataclass
class _Progress:
    """Results of the batches so far."""

    tables: int = 0
    models: set[str] = field(default_factory=set)
    unreachable: set[str] = field(default_factory=set)
    """Regions that are not called any more: each call may take until a timeout."""
    unanswered: set[str] = field(default_factory=set)
    answered: set[tuple[str, str]] = field(default_factory=set)
    """(Model, region) of users who had an answer before."""
    busy: dict[str, "_Sent"] = field(default_factory=dict)
    """Tables of models that another unit wrote when their batch was stored."""
    failed: dict[tuple[str, str], Exception] = field(default_factory=dict)
    """(Model, region) -> error of a table; the region is empty for a whole model, the model for a whole region."""
    _works: set[str] = field(default_factory=set)
    """Regions that took a table."""
    _away: Counter[str] = field(default_factory=Counter)
    """Region -> tables that failed as unavailable."""

    def note_pushed(self, pushed: Sequence[RouteTable], errors: Sequence[Exception | None]) -> None:
        """Note which tables were applied, and which regions are not to be called any more."""
        for table, error in zip(pushed, errors, strict=True):
            if error is None:
                self._works.add(table.region)
                continue
            self.failed[table.model, table.region] = error
            self._away[table.region] += isinstance(error, Unavailable)
            if isinstance(error, RegionUnreachable):
                self.unreachable.add(table.region)
        self.unreachable |= {region for region, count in self._away.items() if count >= MANY} - self._works

    def note_kept(self, sent: _Sent) -> None:
        """Count stored tables, and note the models that a change wrote."""
        self.failed.update({(model, ""): StaleWrite(WRITTEN) for model in sent.outdated})
        self.tables += len(sent.kept)
        self.models |= {table.model for table in sent.kept}
        emptied = (table for table in sent.kept if not table.shares)
        self.unanswered |= {table.model for table in emptied if (table.model, table.region) in self.answered}

    def has_failed(self, table: RouteTable) -> bool:
        """Check whether a table was not applied, and so is not stored."""
        return table.region in self.unreachable or (table.model, table.region) in self.failed

    def pop_outdated(self) -> Sequence[str]:
        """Return models of which a change stored or applied a later table meanwhile; their failures are forgotten."""
        models = sorted({model for (model, _), error in self.failed.items() if model and isinstance(error, StaleWrite)})
        for key in [key for key in self.failed if key[0] in models]:
            del self.failed[key]
        return models

    @property
    def result(self) -> SentAround:
        told = {
            " in ".join(filter(None, key)): describe(error)
            for key, error in self.failed.items()
            if (not key[0]) is (key[1] in self.unreachable)
        }
        return SentAround(
            tables=self.tables,
            models=len(self.models),
            unreachable=tuple(sorted(self.unreachable)),
            unanswered=tuple(sorted(self.unanswered)),
            failed=told,
        )


def _in_batches(models: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield a few models at first, so that the first users fail over at once; then more at a time."""
    start, size = 0, FIRST_BATCH
    while start < len(models):
        yield models[start : start + size]
        start, size = start + size, BATCH


def tables_around(
    facts: DesiredFacts, states: Mapping[str, RegionState], ready: Mapping[tuple[DeploymentKey, int], int]
) -> Sequence[RouteTable]:
    """Return the changed tables of one model, by the replicas that are `ready` now; if none is, by the desired ones.

    Also that of a region that users come to if its gateway is ahead of the stored table: a run ended, or will begin
    again, after it removed a generation from the router that the stored table still names.
    """
    held = tuple(facts.deployments.values())
    able = [found for found in survivors(facts, held, ready) if _is_routed(facts, found)]
    if not any(found.qps > 0 for found in able):
        able = [found for found in survivors(facts, held) if _is_routed(facts, found)]
    now = {region: table.shares for region, table in facts.tables.items()}
    new = fail_over(facts, now, able)
    changed = {region for region, found in new.items() if found != now[region]}
    targets = {share.to for region in changed for share in new[region] if share.fraction > 0}
    ahead = {region for region in targets & now.keys() if _is_ahead(facts.tables[region], states.get(region))}
    tables = (
        facts.tables[region].model_copy(
            update={"shares": new[region], "revision": _next(facts.tables[region], states.get(region))}
        )
        for region in sorted(changed | ahead)
    )
    return [name_shadow(facts, table) for table in tables]


def ready_counts(states: Iterable[RegionState]) -> Mapping[tuple[DeploymentKey, int], int]:
    """Count replicas that are ready, by (replica set, generation)."""
    return Counter(
        (replica.key, generation)
        for state in states
        for replica in state.replicas
        if replica.phase is not ReplicaPhase.DRAINING
        for generation in replica.ready
    )


def _is_routed(facts: DesiredFacts, survivor: Survivor) -> bool:
    """Check whether the survivor's router knows the generation already."""
    table = facts.tables.get(survivor.region)
    return table is not None and any(served.generation == survivor.generation for served in table.served)


def _is_ahead(table: RouteTable, state: RegionState | None) -> bool:
    """Check whether a gateway has applied a later table than the stored one."""
    return state is not None and state.routes.get(table.model, 0) > table.revision


def _next(table: RouteTable, state: RegionState | None) -> int:
    followed = state.routes.get(table.model, 0) if state else 0
    return max(table.revision, followed) + 1


def _lost(found: Iterable[DesiredFacts]) -> frozenset[str]:
    return frozenset(region for facts in found for region in facts.lost)
