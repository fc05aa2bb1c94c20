"""Many histories, in one process or several, and their counts."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import get_context

from .world import Outcome, history

CHUNK = 50


def run_histories(seeds: range, *, parts: bool = False) -> tuple[Counter[str], list[Outcome]]:
    """Run some histories: counts, and those that broke something. `parts`: manifests add and remove parts, too."""
    total: Counter[str] = Counter()
    broken = []
    for seed in seeds:
        found = history(seed, manifests=True, parts=parts)
        total.update(found.counted)
        total.update({"histories": 1, "steps": found.steps, "looks": found.looks})
        if found.violated:
            total[f"violation: {found.violated}"] += 1
            broken.append(found)
    return total, broken


def _ignore(_outcome: Outcome) -> None:
    """Wait for the end."""


def run_campaign(
    seeds: range, processes: int, *, parts: bool = False, on_broken: Callable[[Outcome], None] = _ignore
) -> tuple[Counter[str], list[Outcome]]:
    """Run many histories, in several processes. `on_broken` gets each broken history soon after it ended."""
    chunks = [seeds[start : start + CHUNK] for start in range(0, len(seeds), CHUNK)]
    run = partial(run_histories, parts=parts)
    if processes == 1:
        return _merge(map(run, chunks), on_broken)
    with get_context("spawn").Pool(processes) as pool:
        return _merge(pool.imap_unordered(run, chunks), on_broken)


def _merge(
    parts: Iterable[tuple[Counter[str], list[Outcome]]], on_broken: Callable[[Outcome], None]
) -> tuple[Counter[str], list[Outcome]]:
    total: Counter[str] = Counter()
    broken: list[Outcome] = []
    for counted, found in parts:
        total.update(counted)
        broken += found
        for outcome in found:
            on_broken(outcome)
    return total, sorted(broken, key=lambda outcome: outcome.seed)
