"""Failover from a lost region, for every model at once: route tables are computed, pushed in parallel, then stored."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from activities.state.desired import Facts, sent_around, survivors
from activities.state.failover_shares import Survivor
from activities.state.observed import observe
from activities.state.routed_models import read_routed
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import DeploymentKey, RegionState, ReplicaPhase, RouteTable
from ipnext.store.repository import Repository
from ipnext.store.session import Store

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


@dataclass(frozen=True)
class SentAround:
    """Result of a failover: tables in force, their models, and regions whose gateway does not answer."""

    tables: int
    models: int
    unreachable: tuple[str, ...]
    unanswered: tuple[str, ...]
    """Models that no remaining region can answer."""

    @property
    def message(self) -> str:
        """The result in words."""
        told = f"traffic of {self.models} models was sent around it ({self.tables} route tables)"
        if self.unanswered:
            told += f"; no region left answers {', '.join(self.unanswered[:NAMED])}"
            told += f" and {len(self.unanswered) - NAMED} more" if len(self.unanswered) > NAMED else ""
        if self.unreachable:
            told += f"; gateways of {', '.join(self.unreachable)} do not answer and do not follow yet"
        return told


class Surviving:
    """The gateways of all remaining regions."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def send_around(self, region: str) -> SentAround:
        """Apply tables without lost regions wherever one names `region`. Raises StaleWrite if another change came first.

        One step and no gate: the remaining regions answer at once. The lost region's gateway gets its table once it is
        restored. A model that is being retired gets none: its gateways remove it one by one, and would learn of it
        again. Models are processed in batches, the most important first: the tables of a batch are pushed and stored
        before the next one is read.
        """
        with self._store.read() as repository:
            retiring = repository.retiring_models()
            routed = [model for model in repository.models_routed_to(region) if model not in retiring]
        done = _Progress()
        with ThreadPoolExecutor(PUSHES, thread_name_prefix="route-around") as pool:
            for models in _in_batches(routed):
                self._send_batch(models, done, pool)
        for model, sent in sorted(done.busy.items()):
            with self._store.begin(model) as repository:
                _keep(repository, sent, done)
            self._forget(sent)
        return done.result

    def _send_batch(self, models: Sequence[str], done: "_Progress", pool: ThreadPoolExecutor) -> None:
        with self._store.read() as repository:
            found = read_routed(repository, models)
        lost = _lost(found)
        others = {table.region for facts in found for table in facts.tables.values()} - lost
        states, silent = self._observed(others - done.unreachable, models, pool)
        ready = ready_counts(states.values())
        tables = [table for facts in found for table in tables_around(facts, states, ready)]
        pushed = [table for table in tables if table.region not in lost and table.region in states]
        failed = {name for name in pool.map(self._pushed, pushed) if name is not None}
        named = {table.region for table in tables}
        done.unreachable |= failed | (silent & named)
        kept = [table for table in tables if table.region not in done.unreachable]
        sent = _Sent(kept, pushed)
        with self._store.begin_free({table.model for table in kept}) as repository:
            free = repository.scope or frozenset()
            now = sent.of(free)
            _keep(repository, now, done)
        self._forget(now)
        done.busy |= {model: sent.of({model}) for model in {table.model for table in kept} - free}

    def _observed(
        self, regions: Collection[str], models: Sequence[str], pool: ThreadPoolExecutor
    ) -> tuple[dict[str, RegionState], frozenset[str]]:
        """Return the states of the regions that answer, observed in parallel, and the names of those that do not."""

        def one(region: str) -> dict[str, RegionState]:
            return observe(self._infrastructure, [region], models)[0]

        states = {name: state for answer in pool.map(one, sorted(regions)) for name, state in answer.items()}
        return states, frozenset(regions - states.keys())

    def _forget(self, sent: "_Sent") -> None:
        """Remove retiring models from gateways again. If one is unreachable, the retirement of the model retries until it is not."""
        for table in sent.pushed:
            if table.model in sent.retiring:
                with suppress(Unavailable):
                    self._infrastructure.unroute(table.model, table.region)

    def _pushed(self, table: RouteTable) -> str | None:
        """Push a table; return its region if that is unreachable, else None."""
        try:
            self._infrastructure.route(table)
        except Unavailable:
            return table.region
        return None


@dataclass
class _Sent:
    """Tables to store, and those of them that gateways applied."""

    kept: Sequence[RouteTable]
    pushed: Sequence[RouteTable]
    retiring: frozenset[str] = frozenset()
    """Models that were being retired when the tables were stored."""

    def of(self, models: Collection[str]) -> "_Sent":
        """Return the tables of these models."""
        kept, pushed = ([table for table in found if table.model in models] for found in (self.kept, self.pushed))
        return _Sent(kept, pushed)


def _keep(repository: Repository, sent: _Sent, done: "_Progress") -> None:
    """Store the tables of models that are not being retired."""
    sent.retiring = repository.retiring_models()
    repository.put_routes([table for table in sent.kept if table.model not in sent.retiring])
    done.tables += len(sent.kept)
    done.models |= {table.model for table in sent.kept}
    done.unanswered |= {table.model for table in sent.kept if not table.shares}


@dataclass
class _Progress:
    """Results of the batches so far."""

    tables: int = 0
    models: set[str] = field(default_factory=set)
    unreachable: set[str] = field(default_factory=set)
    """Regions that are not called any more: each call may take until a timeout."""
    unanswered: set[str] = field(default_factory=set)
    busy: dict[str, "_Sent"] = field(default_factory=dict)
    """Tables of models that another unit wrote when their batch was stored."""

    @property
    def result(self) -> SentAround:
        return SentAround(
            tables=self.tables,
            models=len(self.models),
            unreachable=tuple(sorted(self.unreachable)),
            unanswered=tuple(sorted(self.unanswered)),
        )


def _in_batches(models: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield a few models at first, so that the first users fail over at once; then more at a time."""
    start, size = 0, FIRST_BATCH
    while start < len(models):
        yield models[start : start + size]
        start, size = start + size, BATCH


def tables_around(
    facts: Facts, states: Mapping[str, RegionState], ready: Mapping[tuple[DeploymentKey, int], int]
) -> Sequence[RouteTable]:
    """Return the changed tables of one model, by the replicas that are `ready` now; if none is, by the desired ones."""
    held = tuple(facts.deployments.values())
    able = [found for found in survivors(facts, held, ready) if _routed(facts, found)]
    if not any(found.qps > 0 for found in able):
        able = [found for found in survivors(facts, held) if _routed(facts, found)]
    now = {region: table.shares for region, table in facts.tables.items()}
    new = sent_around(facts, now, able)
    return [
        table.model_copy(update={"shares": new[region], "revision": _next(table, states.get(region))})
        for region, table in sorted(facts.tables.items())
        if new[region] != table.shares
    ]


def ready_counts(states: Iterable[RegionState]) -> Mapping[tuple[DeploymentKey, int], int]:
    """Count replicas that are ready, by (replica set, generation)."""
    return Counter(
        (replica.key, generation)
        for state in states
        for replica in state.replicas
        if replica.phase is not ReplicaPhase.DRAINING
        for generation in replica.ready
    )


def _routed(facts: Facts, survivor: Survivor) -> bool:
    """True if the survivor's router knows the generation already."""
    table = facts.tables.get(survivor.region)
    return table is not None and any(served.generation == survivor.generation for served in table.served)


def _next(table: RouteTable, state: RegionState | None) -> int:
    followed = state.routes.get(table.model, 0) if state else 0
    return max(table.revision, followed) + 1


def _lost(found: Iterable[Facts]) -> frozenset[str]:
    return frozenset(region for facts in found for region in facts.lost)
