"""What a pass of retention costs, and how long publishes wait meanwhile.

    .venv/bin/python -m benchmarks.lifecycle.retention
        (ARGS: --models 10000 --snapshots 100 --due 3 --passes 3 --directory DIR --fill --json out.json)

So many models have so many snapshots each (10,000 x 100 are a million), all with their bytes, a generation, a change
and two events for each, and a row for each blob and manifest of the artifact store; sixteen have one owner. The last
generation serves. Of each model the `due` oldest snapshots are beyond the retention, and as many changes, and twice as
many events. The artifact store is a list of names: its own answers, over a network, come on top.

A process records publishes, one after another, to models in turns, and notes how long each took. The baseline is the
same process for `--seconds` before the first pass. Then passes follow until nothing is left, or `--passes` were made.
Wall time of each pass, what it did, and its peak memory; the publishes of the baseline and those during the passes.

On SQLite and on PostgreSQL, see benchmarks/databases.py for `--engines`, `--directory` and `--fill`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.databases import add_options, databases
from ipnext.artifacts.port import ArtifactStore, StoredItem
from ipnext.errors import ArtifactMissing
from ipnext.model.access.artifact_use import CollectionView
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, SnapshotSource
from ipnext.model.registry.retention import Keep, SnapshotKeep
from ipnext.model.value import canonical_json
from ipnext.platform.collection import Collection, Retention
from ipnext.platform.publication import Publisher
from ipnext.plugins import Plugins
from ipnext.store.store import Store

PUBLISHED_TO: Final = 200
"""Models that are published to in turns."""
PAUSE_SECONDS: Final = 0.02
"""Between two publishes."""
OLD: Final = timedelta(days=400)
WEIGHTS, MANIFEST, SHARED = "a", "b", "c"
"""First digit of digests: of a snapshot's weights, of its manifest, and of a file that a model's snapshots share."""


def name_of(model: int) -> str:
    """Return the name of a model."""
    return f"model-{model:06x}"


def digest_of(kind: str, model: int, number: int) -> str:
    """Return a digest that differs from others in its first digits, as real ones do."""
    return f"{kind}{model:06x}{number:08x}".ljust(64, "0")


class Names:
    """An artifact store that has names only."""

    uri = "file:///store"

    def __init__(self, models: int, snapshots: int) -> None:
        self._models, self._snapshots = models, snapshots
        self._removed = set[str]()

    def items(self) -> Iterator[StoredItem]:
        """Yield all that was not removed."""
        at = datetime.now(UTC) - OLD
        for model in range(self._models):
            yield StoredItem(digest_of(SHARED, model, 0), 1_000, at)
            for number in range(1, self._snapshots + 1):
                for kind in (WEIGHTS, MANIFEST):
                    digest = digest_of(kind, model, number)
                    if digest not in self._removed:
                        yield StoredItem(digest, 1_000_000, at, kind == MANIFEST)

    def remove(self, item: StoredItem) -> None:
        """Forget a name."""
        self._removed.add(item.digest)

    def manifest(self, uri: str) -> SnapshotManifest:
        """Raise: only versions of sources are asked for."""
        raise ArtifactMissing(uri)

    def remove_leftovers(self, *, older_than_seconds: float) -> int:
        """Remove nothing."""
        del older_than_seconds
        return 0


def fill(store: Store, models: int, snapshots: int) -> None:
    """Write models with their histories, by the database's own means."""
    document = _manifest().model_dump(mode="json", by_alias=True)
    plain = canonical_json(document)
    manifest = canonical_json(_snapshot(digest_of(WEIGHTS, 0, 0), digest_of(SHARED, 0, 0)))
    with store.begin() as unit:
        connection = unit.connection()
        sqlite = connection.dialect.name == "sqlite"
        connection.execute(text("CREATE TEMPORARY TABLE m (i integer, name text)"))
        connection.execute(text("CREATE TEMPORARY TABLE n (j integer)"))
        for index in range(models):
            connection.execute(text("INSERT INTO m VALUES (:i, :name)"), {"i": index, "name": name_of(index)})
        for number in range(1, snapshots + 1):
            connection.execute(text("INSERT INTO n VALUES (:j)"), {"j": number})
        given = {"plain": plain, "own": name_of(0), "manifest": manifest, "count": snapshots}
        given |= {"weights": digest_of(WEIGHTS, 0, 0), "shared": digest_of(SHARED, 0, 0)}
        for statement in _statements(sqlite=sqlite, snapshots=snapshots):
            named = {key: value for key, value in given.items() if f":{key}" in statement}
            connection.execute(text(statement), named)


def _statements(*, sqlite: bool, snapshots: int) -> Iterator[str]:
    def digest(kind: str, number: str) -> str:
        if sqlite:
            return f"(printf('{kind}%06x%08x', m.i, {number}) || '{'0' * 49}')"
        hexadecimal = f"lpad(to_hex(m.i), 6, '0') || lpad(to_hex({number}), 8, '0')"
        return f"('{kind}' || {hexadecimal} || '{'0' * 49}')"

    def at(number: str) -> str:
        days = f"({snapshots} - {number})"
        return f"datetime('now', '-' || {days} || ' days')" if sqlite else f"now() - ({days} || ' days')::interval"

    no, yes = ("0", "1") if sqlite else ("false", "true")
    old, owner = at("0"), "substr(m.name, 7, 5)"
    account = f"'owner/' || {owner}"
    yield (
        "INSERT INTO models (name, manifest, generation, observed_generation, version, serving_generation, owner,"
        " ready, retired, created_at, updated_at, document_bytes, access_bytes)"
        f" SELECT m.name, replace(CAST(:plain AS text), CAST(:own AS text), m.name), 1, 1, 1, :count, {owner}, {yes},"
        f" {no}, {old}, {old}, 0, 0 FROM m"
    )
    yield (
        "INSERT INTO snapshots"
        " (model, part, number, digest, uri, manifest, created_at, served_at, is_delta, size_bytes)"
        f" SELECT m.name, 'dense', n.j, {digest(MANIFEST, 'n.j')}, 'file:///store/snapshots/' || n.j,"
        f" replace(replace(CAST(:manifest AS text), CAST(:weights AS text), {digest(WEIGHTS, 'n.j')}),"
        f" CAST(:shared AS text), {digest(SHARED, '0')}), {at('n.j')}, {at('n.j')}, {no}, 1000000 FROM m, n"
    )
    yield (
        "INSERT INTO generations (model, number, snapshots, state, created_at, serving_at)"
        " SELECT m.name, n.j, '{\"dense\":' || n.j || '}',"
        f" CASE WHEN n.j = :count THEN 'serving' ELSE 'retired' END, {at('n.j')}, {at('n.j')} FROM m, n"
    )
    yield (
        "INSERT INTO changes (id, model, kind, sequence, generation, state, message, created_at, finished_at)"
        f" SELECT m.name || '-' || n.j, m.name, 'publish', n.j, n.j, 'done', '', {at('n.j')}, {at('n.j')} FROM m, n"
    )
    for kind in ("Recorded", "Serving"):
        yield (
            "INSERT INTO events (at, model, kind, message)"
            f" SELECT {at('n.j')}, m.name, '{kind}', 'generation ' || n.j FROM n, m ORDER BY n.j"
        )
    for kind in (WEIGHTS, MANIFEST):
        yield (
            "INSERT INTO artifacts (digest, size_bytes, account, uploads, stored, touched_at)"
            f" SELECT {digest(kind, 'n.j')}, 1000000, {account}, 0, {yes}, {old} FROM m, n"
        )
    yield (
        "INSERT INTO artifacts (digest, size_bytes, account, uploads, stored, touched_at)"
        f" SELECT {digest(SHARED, '0')}, 1000, {account}, 0, {yes}, {old} FROM m"
    )


def _manifest() -> ModelManifest:
    return ModelManifest.model_validate(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": name_of(0)},
            "spec": {
                "parts": [{"name": "dense", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}],
                "demand": [{"region": "north", "qps": 10}],
            },
        }
    )


def _snapshot(weights: str, shared: str) -> SnapshotManifest:
    files = (
        ArtifactFile(path="model.safetensors", sha256=weights, size_bytes=1_000_000),
        ArtifactFile(path="tokenizer.json", sha256=shared, size_bytes=1_000),
    )
    return SnapshotManifest(
        engine="vllm", signature=Signature(inputs=(), outputs=()), files=files, producer={"x": "y" * 500}
    )


def publish(url: str, seconds: float) -> None:
    """Record publishes until the time is over or the input ends; print the seconds of each, one a line."""
    store = Store.open(url)
    publisher = Publisher(store, cast("ArtifactStore", None), Plugins(), 2**50)
    ends_at, number, mark = time.monotonic() + seconds, 0, time.time_ns()
    while time.monotonic() < ends_at:
        model = name_of(number % PUBLISHED_TO)
        number += 1
        content = f"d{mark:x}{number:x}".ljust(64, "0")
        source = SnapshotSource(manifest=_snapshot(content, digest_of(SHARED, 0, 0)), uri="file:///store/snapshots/x")
        began = time.perf_counter()
        owner = model[6:11]
        publisher.announce(owner, source.manifest)
        with store.begin(model) as unit:
            publisher.record(unit, model, owner, {"dense": source}, change_id=f"p-{mark}-{number}")
        sys.stdout.write(f"{time.perf_counter() - began:.6f}\n")
        sys.stdout.flush()
        time.sleep(PAUSE_SECONDS)
    store.close()


class Publishes:
    """The process that publishes."""

    def __init__(self, url: str, seconds: float) -> None:
        arguments = [
            sys.executable,
            "-m",
            "benchmarks.lifecycle.retention",
            "--publish",
            url,
            "--seconds",
            str(seconds),
        ]
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)

    def await_first(self) -> None:
        """Wait until the first publish is recorded."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def end(self, *, early: bool = False) -> list[float]:
        """Return the seconds of each publish but the first one that was awaited."""
        if early:
            self._process.terminate()
        found, _ = self._process.communicate()
        return [float(line) for line in found.splitlines() if line.count(".") == 1]


def measure(store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """Measure publishes without a pass, then passes with publishes at the same time."""
    url, models, snapshots, due = store.name, options.models, options.snapshots, options.due
    seconds, most_passes = options.seconds, options.passes
    baseline = Publishes(url, seconds).end()
    left = Keep(snapshots - due, timedelta())
    events = Keep(2 * (snapshots - due), timedelta())
    others = Keep(1000, timedelta(days=900))
    retention = Retention(
        snapshots=SnapshotKeep(left, 3),
        history={"event": events, "change": left, "plan": others, "replan": others, "source version": others},
    )
    artifacts = cast("ArtifactStore", Names(models, snapshots))
    began = time.perf_counter()
    shown = Collection(store, artifacts, retention, dry_run=True).run()
    dry_seconds = time.perf_counter() - began
    publishes = Publishes(url, 3600)
    publishes.await_first()
    passes: list[tuple[float, CollectionView]] = []
    while len(passes) < most_passes:
        began = time.perf_counter()
        found = Collection(store, artifacts, retention).run()
        passes.append((time.perf_counter() - began, found))
        if not found.unfinished:
            break
    during = publishes.end(early=True)
    return {
        "dry_run_seconds": dry_seconds,
        "due": {each.kind: each.count for each in shown.classes},
        "passes": [
            {"seconds": seconds_, "done": {each.kind: each.count for each in view.classes}} for seconds_, view in passes
        ],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "publishes": {"without": _figures(baseline), "during": _figures(during)},
    }


def _figures(seconds: list[float]) -> Mapping[str, float]:
    found = sorted(seconds)
    return {
        "count": len(found),
        "p50_ms": statistics.median(found) * 1e3,
        "p99_ms": found[int(len(found) * 0.99)] * 1e3,
        "largest_ms": found[-1] * 1e3,
    }


def report(console: Console, engine: str, found: Mapping[str, Any]) -> None:
    """Print the figures of one engine."""
    passes = Table(title=f"{engine}: passes", title_justify="left")
    for head in ("pass", "seconds", "done"):
        passes.add_column(head)
    passes.add_row("dry run", f"{found['dry_run_seconds']:.1f}", _counts(found["due"]))
    for number, one in enumerate(found["passes"], 1):
        passes.add_row(str(number), f"{one['seconds']:.1f}", _counts(one["done"]))
    console.print(passes)
    publishes = Table(title=f"{engine}: publishes, ms; peak memory of the collector {found['peak_mib']:.0f} MiB")
    for head in ("", "publishes", "p50", "p99", "largest"):
        publishes.add_column(head)
    for name, one in found["publishes"].items():
        figures = (f"{one[key]:.0f}" for key in ("count", "p50_ms", "p99_ms", "largest_ms"))
        publishes.add_row(f"{name} passes", *figures)
    console.print(publishes)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}s" for kind, count in counts.items()) or "nothing"


def main() -> None:
    """Read the options, and measure each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--snapshots", type=int, default=100)
    parser.add_argument("--due", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the baseline")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--publish", help=argparse.SUPPRESS)
    add_options(parser)
    options = parser.parse_args()
    if options.publish:
        publish(options.publish, options.seconds)
        return
    console, results = Console(width=140), {}
    with databases(options.directory, options.engines) as opened:
        for engine in options.engines:
            name = f"retention_{options.models}_{options.snapshots}"
            store = opened(engine, name, lambda store: fill(store, options.models, options.snapshots))
            if options.fill:
                continue
            results[engine] = measure(store, options)
            report(console, engine, results[engine])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
