"""Assignment of glue operations: those between modules, which a parent's forward calls itself, without weights.

They belong to no module that a pattern could name. If they all ran in the default part, an addition between two layers
of one part would send both tensors out and one back. So glue runs in the part that its inputs come from and its result
returns to. If the default part is not involved, it runs in the only part that uses or produces its values. All other
glue runs in the default part.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from serving.splitting.assign.op_assignment import PartAssignment
from serving.splitting.ir.program import Operation, Program
from serving.splitting.ir.views import operator_name

_JOINS: Final = frozenset({"add", "cat", "concat", "stack"})
"""They merge several tensors into one, so they run in the part that makes all of those."""

_Parts = frozenset[str]
_NONE: _Parts = frozenset()


def place_operations(
    program: Program, placement: PartAssignment, live: Sequence[Operation], default: str
) -> dict[int, str]:
    """Return the part of each live operation but the floating ones."""
    placed = [operation for operation in live if operation.index not in placement.floating]
    fixed = {o.index: placement.part_of(o) for o in placed if not placement.is_between(o)}
    before, after = _before(live, fixed), _after(live, fixed)
    found: dict[int, str] = {}
    givers: dict[str, _Parts] = {}
    for operation in live:
        near = _parts(givers, operation.inputs)
        if operation.index not in placement.floating:
            part = fixed.get(operation.index) or _find_join_part(program, operation, found)
            if part is None:
                sources, targets = _parts(before, operation.inputs), _parts(after, operation.outputs)
                part = _choice(sources, targets, near, default)
            found[operation.index] = part
            near = frozenset([part])
        givers |= dict.fromkeys(operation.outputs, near)
    return found


def _parts(known: Mapping[str, _Parts], values: Sequence[str]) -> _Parts:
    return _NONE.union(*(known.get(value, _NONE) for value in values))


def _find_join_part(program: Program, operation: Operation, found: Mapping[int, str]) -> str | None:
    """Return the one part that computes all inputs of an operation that merges several tensors.

    None if there is none.
    """
    if operator_name(operation) not in _JOINS or len(operation.inputs) < 2:
        return None
    producers = [program.producer.get(name) for name in operation.inputs]
    givers = {None if p is None else found.get(p.index) for p in producers}
    return givers.pop() if len(givers) == 1 else None


def _choice(sources: _Parts, targets: _Parts, near: _Parts, default: str) -> str:
    both = sources & targets
    if both:
        return default if default in both else min(both)
    if default in sources | targets | near:
        return default
    return next((min(parts) for parts in (targets, sources) if len(parts) == 1), default)


def _before(live: Sequence[Operation], fixed: Mapping[int, str]) -> dict[str, _Parts]:
    """Return value -> parts of the modules that it comes from, through glue only."""
    found: dict[str, _Parts] = {}
    for operation in live:
        part = fixed.get(operation.index)
        parts = _parts(found, operation.inputs) if part is None else frozenset([part])
        found |= dict.fromkeys(operation.outputs, parts)
    return found


def _after(live: Sequence[Operation], fixed: Mapping[int, str]) -> dict[str, _Parts]:
    """Return value -> parts of the modules that it goes to, through glue only."""
    found: dict[str, _Parts] = {}
    for operation in reversed(live):
        part = fixed.get(operation.index)
        parts = _parts(found, operation.outputs) if part is None else frozenset([part])
        for name in operation.inputs:
            found[name] = found.get(name, _NONE) | parts
    return found
