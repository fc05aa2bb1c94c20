"""Branches of a pipeline: the snapshot that each hardware kind of a part ends with.

Steps without hardware kinds are shared: a snapshot is derived once for all kinds that hold the same one. Called by the
pipeline.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.optimization import OptimizationStep, part_of, steps_digest
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import Snapshot

OTHERS: Final = ""
"""Stands for the hardware kinds that no step names, also for those that the part gets later."""

Ends = Mapping[str, Mapping[str, Snapshot]]
"""Part -> hardware kind, or OTHERS -> snapshot."""
Derive = Callable[[int, Snapshot, Sequence[str]], Snapshot | None]
"""Returns what the step of an index derives from a part's snapshot, for these hardware kinds; none named: for all.

None if it keeps what it was given."""


def derive_branches(spec: ModelSpec, source: Callable[[str], Snapshot], derive: Derive) -> Ends:
    """Run the steps of a pipeline on each branch, and return where each ends. `source` returns a published snapshot.

    A step that no kind of the part takes is not run for kinds that may come later.
    """
    hardware = {part.name: spec.kinds_of(part) for part in spec.hosted_parts}
    engines = {part.name: part.engine for part in spec.hosted_parts}
    ends: dict[str, dict[str, Snapshot]] = {}
    for index, step in enumerate(spec.optimization):
        part = part_of(step, engines)
        if part not in ends:
            ends[part] = dict.fromkeys((OTHERS, *hardware[part]), source(part))
        held = ends[part]
        for kinds in tuple(_alike(step, held)):
            named = [kind for kind in kinds if kind != OTHERS]
            made = derive(index, held[kinds[0]], [] if len(kinds) == len(held) else named) if named else None
            if made is not None:
                held.update(dict.fromkeys(kinds, made))
    return ends


def _alike(step: OptimizationStep, held: Mapping[str, Snapshot]) -> Iterator[tuple[str, ...]]:
    """Yield the kinds that take a step, together if they hold the same snapshot."""
    taking = {kind: snapshot.number for kind, snapshot in held.items() if step.takes(kind)}
    for number in dict.fromkeys(taking.values()):
        yield tuple(kind for kind, other in taking.items() if other == number)


def read_ends(spec: ModelSpec, ends: Ends) -> Derivatives | None:
    """Return the ends in the form in which a generation keeps them; None without a pipeline."""
    steps = steps_digest(spec.optimization)
    if steps is None:
        return None
    others = {part: held[OTHERS] for part, held in ends.items()}
    by_hardware: dict[str, dict[str, int]] = {}
    for part, held in ends.items():
        for kind, snapshot in held.items():
            if snapshot.number != others[part].number:
                by_hardware.setdefault(kind, {})[part] = snapshot.number
    parts = {part: found.number for part, found in others.items() if found.derived_from is not None}
    return Derivatives(steps=steps, parts=parts, by_hardware=by_hardware)
