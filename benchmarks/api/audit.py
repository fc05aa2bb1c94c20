"""What an entry of the audit adds to a unit of work, and how fast entries are verified.

    .venv/bin/python -m benchmarks.api.audit
        (ARGS: --units 1000 --rounds 5 --engines SQLite PostgreSQL --directory DIR)

One client writes an event of one model a unit, in turns without a principal (the baseline) and of a principal whose
unit notes two documents of 2 KB. CPU is that of this process, thus without PostgreSQL's server; wall time includes the
commit. Then as many clients as `--writers`, each of a model of its own, write at once: the entries of one chain are
committed one after another, which is what this pair shows.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.databases import add_options, databases
from ipnext.access.acting import RequestAuthority, acting
from ipnext.model.access.audit_chain import verify
from ipnext.model.access.rights import Principal
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.store.store import Store

WHO = RequestAuthority(
    Principal(kind="key", id="abcdefghijklmnop", name="deployer"), "127.0.0.1", "models.apply", "a-policy"
)
DOCUMENT = {"text": "x" * 2000}


def manifest(name: str) -> ModelManifest:
    """Return the manifest of a model of one part."""
    part = {"name": "dense", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
    nodes = [{"name": "dense", "part": "dense", "inputs": {"x": "request.x"}}]
    graph = {"nodes": nodes, "outputs": {"score": "dense.score"}}
    spec = {"parts": [part], "graph": graph, "demand": [{"region": "north", "qps": 1}]}
    return ModelManifest.model_validate(
        {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": name}, "spec": spec}
    )


def fill(models: int) -> Callable[[Store], None]:
    """Return a function that fills a store with so many models."""

    def filled(store: Store) -> None:
        with store.begin() as unit:
            for number in range(models):
                unit.put_model(manifest(f"m{number}"), expected_version=None)

    return filled


def write(store: Store, model: str, units: int, *, audited: bool) -> None:
    """So many units of a model."""
    for _ in range(units):
        context = (
            acting(RequestAuthority(WHO.principal, WHO.source, WHO.action, WHO.policy, model=model, owner="search"))
            if audited
            else None
        )
        with context or nullcontext(), store.begin(model) as unit:
            unit.add_event(model, "Measured", "text")
            if audited:
                unit.note_audit(before=DOCUMENT, after=DOCUMENT)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def at_once(store: Store, writers: int, units: int, *, audited: bool) -> None:
    """Do the same by several threads, each with a model of its own."""
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(lambda number: write(store, f"m{number}", units, audited=audited), range(writers)))


def verified(store: Store) -> tuple[int, float]:
    """Entries, and microseconds of CPU to verify one that has been read."""
    entries, after = [], None
    while True:
        with store.read() as unit:
            page = unit.audit_page(after=after, limit=1000, oldest_first=True)
        entries += [entry.plain() for entry in page.items]
        after = page.next
        if after is None:
            break
    _, cpu = timed(lambda: print(verify(entries).fault or "the chain is whole"))
    return len(entries), cpu / max(1, len(entries)) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--units", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--writers", type=int, default=8)
    given = parser.parse_args()
    table = Table(title="microseconds a unit: median of the rounds")
    for head in ("engine", "writers", "wall open", "wall audited", "CPU open", "CPU audited"):
        table.add_column(head)
    with tempfile.TemporaryDirectory() as scratch, databases(given.directory or Path(scratch), given.engines) as opened:
        for engine in given.engines:
            store = opened(engine, "audit", fill(given.writers))
            for writers in (1, given.writers):
                units = given.units // writers
                found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
                for _ in range(given.rounds):
                    for audited, times in found.items():
                        times.append(timed(partial(at_once, store, writers, units, audited=audited)))
                cells = [
                    f"{statistics.median(each[kind] for each in found[audited]) / units / writers * 1e6:.0f}"
                    for kind in (0, 1)
                    for audited in (False, True)
                ]
                table.add_row(engine, str(writers), *cells)
            count, cost = verified(store)
            print(f"{engine}: {count} entries, {cost:.0f} us of CPU to verify one")
    Console().print(table)


if __name__ == "__main__":
    main()
