"""How generations are shown, with the snapshots that serve."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import age, rows
from ipnext.model.registry.registry import Generation


def generations_table(generations: Iterable[Generation]) -> Table:
    """One line for each generation."""
    lines = (
        (g.number, g.state.value, _pairs(g), age(g.created_at), ": ".join(t for t in (g.reason, g.message) if t))
        for g in generations
    )
    return rows("\ngenerations", ("generation", "state", "snapshots", "age", "why"), lines)


def _pairs(generation: Generation) -> str:
    pairs = " ".join(
        f"{part}={snapshot}" + _derived(generation, part) for part, snapshot in generation.snapshots.items()
    )
    return pairs if generation.layout is None else f"{pairs} (in {len(generation.layout.parts)} parts)"


def _derived(generation: Generation, part: str) -> str:
    """Return what serves in place of the published snapshot, with the hardware kinds that have another one."""
    found = generation.derived
    if found is None:
        return ""
    told = [str(found.parts[part])] if part in found.parts else []
    told += [f"{numbers[part]} on {kind}" for kind, numbers in sorted(found.by_hardware.items()) if part in numbers]
    return f" (derived: {', '.join(told)})" if told else ""
