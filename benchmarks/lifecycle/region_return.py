"""What the return of a lost region costs, for many models: statements, the longest unit that writes, calls and time.

    python -m benchmarks.lifecycle.region_return
        (--models 1000 --confirm-ms 25 --engines SQLite PostgreSQL --json out.json)

A store holds N models of one part that are served in three regions. Gateways are in memory and take so long to confirm
a table as is asked for. One region was lost and is asked back: it knows nothing, or its gateway has later tables than
the store, or it has all but ten models. The baseline is to apply all tables one after the other with a later revision,
all replica sets, and to store all tables in one unit of work of all models, as one would without digests and batches.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, event
from temporalio.testing import ActivityEnvironment

from activities.planning.drift import drift_of
from activities.regions.activities import DrainActivities
from activities.state.routes.routed_models import read_routed
from benchmarks.databases import ENGINES, Fill, databases
from benchmarks.lifecycle.drain_lost_region import LOST, SlowGateways, fill
from ipnext.infra.fake.region import MemoryRegion
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.process.garbage_collection import collect_rarely
from ipnext.store.store import Store

DIFFERING = 10
CASES = ("knows nothing", "is ahead", "all but ten")

Way = Callable[[Store, "Gateways"], None]


class Gateways(SlowGateways):
    """Counts the tables and replica sets that it is sent."""

    def __init__(self, confirm_seconds: float) -> None:
        super().__init__(confirm_seconds)
        self.sent = 0

    def _count_traffic(self, region: MemoryRegion) -> None:
        """No traffic: counting it would cost more than the work."""

    def route(self, table: RouteTable) -> None:
        """See the port."""
        self.sent += 1
        super().route(table)

    def apply(self, deployment: Deployment) -> None:
        """See the port."""
        self.sent += 1
        super().apply(deployment)


@dataclass
class Cost:
    """Of one return."""

    seconds: float = 0.0
    statements: int = 0
    longest_unit_ms: float = 0.0
    """Of those that write: others wait for it."""
    calls: int = 0


def return_region(store: Store, infrastructure: Gateways) -> None:
    """Return the region as the drain does."""
    activities = DrainActivities(store, infrastructure, lambda: None, lambda *_: None)
    seen = ActivityEnvironment().run(activities.return_region, DrainInput(region=LOST))
    assert seen.state is DrainState.RETURNED, seen


def table_by_table(store: Store, infrastructure: Gateways) -> None:
    """Apply one table after another, as the baseline."""
    state = infrastructure.observe(LOST)
    with store.read() as repository:
        models = repository.models_routed_in(LOST)
        tables = [facts.tables[LOST] for facts in read_routed(repository, models)]
        deployments = repository.deployments_in(LOST)
    later = [
        table.model_copy(update={"revision": max(table.revision, state.routes.get(table.model, 0)) + 1})
        for table in tables
    ]
    for table in later:
        infrastructure.route(table)
    for deployment in deployments:
        infrastructure.apply(deployment)
    with store.begin() as repository:
        assert repository.deployments_in(LOST) == deployments
        for table in later:
            repository.put_route(table)
        drain = repository.drain(LOST)
        assert drain is not None
        repository.update_drain(drain.id, state=DrainState.RETURNED)
    with store.read() as repository:
        for model in models:
            drift_of(repository, model)


@contextmanager
def counted(engine: Engine, cost: Cost) -> Iterator[None]:
    """Count statements, and time the units that write."""
    began: dict[int, float] = {}
    writes: set[int] = set()

    def begin(connection: Any) -> None:
        began[id(connection)] = time.perf_counter()

    def run(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        cost.statements += 1
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            writes.add(id(connection))

    def commit(connection: Any) -> None:
        took = time.perf_counter() - began.pop(id(connection), time.perf_counter())
        if id(connection) in writes:
            cost.longest_unit_ms = max(cost.longest_unit_ms, 1000 * took)
            writes.discard(id(connection))

    hooks: dict[str, Any] = {"begin": begin, "before_cursor_execute": run, "commit": commit}
    for name, hook in hooks.items():
        event.listen(engine, name, hook)
    try:
        yield
    finally:
        for name, hook in hooks.items():
            event.remove(engine, name, hook)


def prepared(infrastructure: Gateways, store: Store, case: str) -> None:
    """Make the region what the case says; `fill` has sent it everything."""
    with store.begin() as repository:
        drain = repository.drain(LOST)
        assert drain is not None
        repository.update_drain(drain.id, state=DrainState.RETURNING)
        models = repository.models_routed_in(LOST)
        sets, tables = repository.deployments_in(LOST), [repository.route(model, LOST) for model in models]
    infrastructure.mend(LOST)
    away = {"knows nothing": models, "all but ten": models[:DIFFERING], "is ahead": ()}[case]
    for deployment in sets:
        if deployment.key.model in away:
            infrastructure.delete(deployment.key)
    for table in tables:
        assert table is not None
        if case == "is ahead":
            SlowGateways.route(infrastructure, table.model_copy(update={"revision": table.revision + 1}))
        if table.model in away:
            infrastructure.unroute(table.model, LOST)
    for _ in range(2):
        infrastructure.observe(LOST)


def cost_of(way: Way, case: str, given: argparse.Namespace, opened: Callable[[Fill], Store]) -> Cost:
    """Cost of one return of a region."""
    infrastructure, cost = Gateways(given.confirm_ms / 1000), Cost()
    store = opened(lambda store: fill(store, infrastructure, given.models))
    infrastructure.confirm_seconds = 0.0
    prepared(infrastructure, store, case)
    infrastructure.begin()
    infrastructure.sent = 0
    with counted(store._engine, cost):  # noqa: SLF001
        began = time.perf_counter()
        way(store, infrastructure)
        cost.seconds = time.perf_counter() - began
    cost.calls = infrastructure.sent
    return cost


def main() -> None:
    """All cases, both ways once each, in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--confirm-ms", type=float, default=25.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    given = parser.parse_args()
    collect_rarely()  # as workers do
    shown = Table(title=f"{given.models} models, {given.confirm_ms:g} ms a table")
    for column in ("engine", "region", "way", "seconds", "statements", "longest unit, ms", "calls"):
        shown.add_column(column)
    found: dict[str, Any] = {}
    ways = {"table by table (baseline)": table_by_table, "differences in batches": return_region}
    with databases(None, given.engines) as database:
        for number, (engine, case, name) in enumerate(product(given.engines, CASES, ways)):
            cost = cost_of(ways[name], case, given, partial(database, engine, f"return_{number}"))
            found[f"{engine}, {case}: {name}"] = vars(cost)
            figures = (f"{cost.seconds:.2f}", str(cost.statements), f"{cost.longest_unit_ms:.0f}", str(cost.calls))
            shown.add_row(engine, case, name, *figures)
    Console().print(shown)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
