"""Sending the traffic around a lost region, for every model at once: tables are computed, pushed side by side, then kept."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from activities.regions import observe
from activities.rerouting import Survivor
from activities.wanted import Facts, read_facts, sent_around, survivors
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment import DeploymentKey, RegionState, ReplicaPhase, RouteTable
from ipnext.store.session import Store

PUSHES = 16
"""Tables that are pushed side by side: each waits until its gateway follows."""

NAMED = 3
"""Models that a message names at most."""


@dataclass(frozen=True)
class SentAround:
    """What came of it: tables in force, models they are of, and regions whose gateway does not answer."""

    tables: int
    models: int
    unreachable: tuple[str, ...]
    unanswered: tuple[str, ...]
    """Models that no region left can answer."""

    @property
    def message(self) -> str:
        """In words."""
        told = f"traffic of {self.models} models was sent around it ({self.tables} route tables)"
        if self.unanswered:
            told += f"; no region left answers {', '.join(self.unanswered[:NAMED])}"
            told += f" and {len(self.unanswered) - NAMED} more" if len(self.unanswered) > NAMED else ""
        if self.unreachable:
            told += f"; gateways of {', '.join(self.unreachable)} do not answer and do not follow yet"
        return told


class Surviving:
    """The gateways of all regions that are left."""

    def __init__(self, store: Store, infrastructure: Infrastructure) -> None:
        self._store = store
        self._infrastructure = infrastructure

    def send_around(self, region: str) -> SentAround:
        """Put tables without lost regions in force wherever one names `region`. StaleWrite where another change came first.

        One step and no gate: what is left answers at once. Its own gateway gets its table once it is back. A model that is
        being retired gets none: its gateways forget it one by one, and would learn of it again.
        """
        with self._store.read() as repository:
            routed = sorted(set(repository.models_routed_to(region)) - repository.retiring_models())
            found = [read_facts(repository, model, 0) for model in routed]
        others = {table.region for facts in found for table in facts.tables.values()} - _lost(found)
        states, silent = observe(self._infrastructure, others, [facts.model for facts in found])
        tables = [table for facts in found for table in tables_around(facts, states)]
        pushed = [table for table in tables if table.region not in _lost(found) and table.region in states]
        with ThreadPoolExecutor(PUSHES, thread_name_prefix="route-around") as pool:
            failed = [name for name in pool.map(self._pushed, pushed) if name is not None]
        unreachable = {*failed, *(silent if any(t.region in silent for t in tables) else ())}
        kept = [table for table in tables if table.region not in unreachable]
        with self._store.begin() as repository:
            retiring = repository.retiring_models()
            for table in kept:
                if table.model not in retiring:
                    repository.put_route(table)
        for table in pushed:
            if table.model in retiring:
                self._forgotten(table)
        return SentAround(
            tables=len(kept),
            models=len({table.model for table in kept}),
            unreachable=tuple(sorted(unreachable)),
            unanswered=tuple(sorted({table.model for table in kept if not table.shares})),
        )

    def _forgotten(self, table: RouteTable) -> None:
        """Where it can't be reached now, what retires the model asks until it can."""
        with suppress(Unavailable):
            self._infrastructure.unroute(table.model, table.region)

    def _pushed(self, table: RouteTable) -> str | None:
        """Nothing, or the region that can't be reached."""
        try:
            self._infrastructure.route(table)
        except Unavailable:
            return table.region
        return None


def tables_around(facts: Facts, states: Mapping[str, RegionState]) -> Sequence[RouteTable]:
    """The tables of one model that change, by what is ready now; where nothing is, by what is wanted."""
    held = tuple(facts.deployments.values())
    able = [found for found in survivors(facts, held, ready_counts(states.values())) if _routed(facts, found)]
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
    """(Replica set, generation) -> replicas that answer for it."""
    return Counter(
        (replica.key, generation)
        for state in states
        for replica in state.replicas
        if replica.phase is not ReplicaPhase.DRAINING
        for generation in replica.ready
    )


def _routed(facts: Facts, survivor: Survivor) -> bool:
    """Whether the survivor's router knows the generation already."""
    table = facts.tables.get(survivor.region)
    return table is not None and any(served.generation == survivor.generation for served in table.served)


def _next(table: RouteTable, state: RegionState | None) -> int:
    followed = state.routes.get(table.model, 0) if state else 0
    return max(table.revision, followed) + 1


def _lost(found: Iterable[Facts]) -> frozenset[str]:
    return frozenset(region for facts in found for region in facts.lost)
