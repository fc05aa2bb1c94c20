"""What `lineage`, `snapshot` and `get holds` show."""

from collections.abc import Iterable
from typing import Final

from rich.table import Table

from ipnext.cli.output import age, rows
from ipnext.model.api.lineage import (
    Derivation,
    HoldView,
    LineageGeneration,
    RelatedSnapshot,
    SnapshotLineage,
    TrainingRun,
)
from ipnext.model.registry.registry import Snapshot

DIGITS = 12
"""Of a digest."""
MADE_HERE: Final = frozenset[Derivation]({"optimized", "cut"})
"""How a snapshot follows from another one if the platform made it, so that no client published it."""


def holds_table(holds: Iterable[HoldView]) -> Table:
    """One line for each hold."""
    lines = ((h.model, h.part, h.number, h.held_by, age(h.created_at), h.reason) for h in holds)
    return rows("", ("model", "part", "snapshot", "held by", "since", "reason"), lines)


def snapshots_table(found: Iterable[Snapshot]) -> Table:
    """One line for each snapshot."""
    lines = (
        (
            *(s.model, s.part, s.number, s.manifest.engine, age(s.created_at), s.manifest.size_bytes),
            *(s.digest[:DIGITS], s.derived_from or "", _describe_hardware(s)),
        )
        for s in found
    )
    heads = ("model", "part", "snapshot", "engine", "age", "bytes", "digest", "derived from", "for hardware")
    return rows("", heads, lines)


def lineage_table(found: Iterable[SnapshotLineage]) -> Table:
    """One line for each snapshot: training run, what it follows from, derived snapshots, generations, placements."""
    heads = ("part", "snapshot", "age", "bytes", "training run", "from", "derived", "generations", "placed in", "kept")
    return rows("", heads, map(_line, found))


def lineage_tables(one: SnapshotLineage) -> Iterable[Table | str]:
    """All of one snapshot's lineage."""
    kept = _describe_retention(one)
    yield f"{one.model}/{one.part}, snapshot {one.number}: {one.size_bytes:,} bytes, SHA-256 {one.digest}, {kept}"
    if one.training_run is not None:
        yield from _run_tables(one.training_run)
    elif one.parent is None or one.parent.derivation not in MADE_HERE:
        yield "published by a client, without a training run"
    if one.parent is not None:
        yield f"{one.parent.derivation} of {_name(one.parent)}"
    derived = ((r.part, r.number, r.derivation, ", ".join(r.hardware), r.digest[:DIGITS]) for r in one.derived)
    heads = ("part", "snapshot", "derivation", "for hardware", "digest")
    yield rows("\nderived snapshots", heads, derived)
    heads = ("generation", "state", "age", "last began to serve", "users in")
    yield rows("\ngenerations", heads, map(_generation_line, one.generations))
    placed = ((p.region, p.hardware, p.part, p.replicas, ", ".join(map(str, p.generations))) for p in one.placements)
    yield rows("\nplacements", ("region", "hardware", "part", "replicas", "generations"), placed)


def _run_tables(run: TrainingRun) -> Iterable[Table | str]:
    trained = "" if run.trained_at is None else f", trained {age(run.trained_at)} ago"
    yield f"version {run.key} of source {run.source} ({run.place}){trained}"
    facts = [("lineage", *item) for item in run.lineage.items()]
    facts += [("metric", name, f"{value:g}") for name, value in run.metrics.items()]
    facts += [("tag", *item) for item in run.tags.items()]
    if facts:
        yield rows("\ntraining run", ("kind", "name", "value"), facts)


def _line(one: SnapshotLineage) -> tuple[object, ...]:
    run = one.training_run
    told = "" if run is None else run.lineage.get("run", run.key)
    derived = ", ".join(f"{_name(each)} ({each.derivation})" for each in one.derived)
    generations = ", ".join(f"{each.number} {each.state.value}" for each in one.generations)
    placed = ", ".join(sorted({each.region for each in one.placements if each.replicas}))
    parent = "" if one.parent is None else f"{_name(one.parent)} ({one.parent.derivation})"
    return (
        one.part,
        one.number,
        age(one.created_at),
        one.size_bytes,
        told,
        parent,
        derived,
        generations,
        placed,
        _describe_retention(one),
    )


def _generation_line(one: LineageGeneration) -> tuple[object, ...]:
    users = ", ".join(f"{region} {share:.0%}" for region, share in one.users_in.items())
    served = "" if one.serving_at is None else f"{age(one.serving_at)} ago"
    return one.number, one.state.value, age(one.created_at), served, users


def _name(related: RelatedSnapshot) -> str:
    return f"{related.part}/{related.number}" if related.number else f"{related.part}, {related.digest[:DIGITS]}"


def derivation_line(snapshot: Snapshot) -> str:
    """Describe a derived snapshot: its step, the hardware that it is for, its parent, and the versions of its tools."""
    producer = dict(snapshot.manifest.producer)
    step = producer.pop("step", "a step")
    tools = ", ".join(f"{tool} {version}" for tool, version in sorted(producer.items()))
    parent = (snapshot.manifest.parent or "")[:DIGITS]
    origin = f"derived by {step} from snapshot {snapshot.derived_from} (parent {parent})"
    return f"{origin}, for hardware: {_describe_hardware(snapshot)}; tools: {tools}"


def _describe_hardware(snapshot: Snapshot) -> str:
    """Return the hardware kinds that a snapshot was derived, or cut, for; empty of a published one."""
    return ", ".join(snapshot.hardware) or ("" if snapshot.derived_from is None else "all")


def _describe_retention(one: SnapshotLineage) -> str:
    if one.collected_at is not None:
        return f"released {age(one.collected_at)} ago"
    return "kept" if one.held is None else f"held by {one.held.held_by}: {one.held.reason}"
