"""Where the operations between modules run: those that a parent's forward calls itself, on no weights.

They belong to no module that a pattern could name. Left to the default part, an addition between two layers of one
part would send both tensors out and one back. So glue runs where its inputs come from and its result returns to, or, where the
default part has no share in it, in the one part that takes it or gives it; all other glue runs in the default part.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from serving.splitting.assign.op_assignment import Placement
from serving.splitting.ir.program import Operation, Program
from serving.splitting.ir.views import operator_name

_JOINS: Final = frozenset({"add", "cat", "concat", "stack"})
"""They give one tensor for several, so they run where all of those are made."""

_Parts = frozenset[str]
_NONE: _Parts = frozenset()


def settled(program: Program, placement: Placement, live: Sequence[Operation], default: str) -> dict[int, str]:
    """Part of each live operation that has one: all but the floating."""
    placed = [operation for operation in live if operation.index not in placement.floating]
    fixed = {o.index: placement.part_of(o) for o in placed if not placement.is_between(o)}
    before, after = _before(live, fixed), _after(live, fixed)
    found: dict[int, str] = {}
    givers: dict[str, _Parts] = {}
    for operation in live:
        near = _parts(givers, operation.inputs)
        if operation.index not in placement.floating:
            part = fixed.get(operation.index) or _joined_at(program, operation, found)
            if part is None:
                sources, targets = _parts(before, operation.inputs), _parts(after, operation.outputs)
                part = _choice(sources, targets, near, default)
            found[operation.index] = part
            near = frozenset([part])
        givers |= dict.fromkeys(operation.outputs, near)
    return found


def _parts(known: Mapping[str, _Parts], values: Sequence[str]) -> _Parts:
    return _NONE.union(*(known.get(value, _NONE) for value in values))


def _joined_at(program: Program, operation: Operation, found: Mapping[int, str]) -> str | None:
    """The one part that computes all inputs of an operation that gives one tensor for several."""
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
    """Value -> parts of the modules that it comes from, with nothing but glue between."""
    found: dict[str, _Parts] = {}
    for operation in live:
        part = fixed.get(operation.index)
        parts = _parts(found, operation.inputs) if part is None else frozenset([part])
        found |= dict.fromkeys(operation.outputs, parts)
    return found


def _after(live: Sequence[Operation], fixed: Mapping[int, str]) -> dict[str, _Parts]:
    """Value -> parts of the modules that it goes to, with nothing but glue between."""
    found: dict[str, _Parts] = {}
    for operation in reversed(live):
        part = fixed.get(operation.index)
        parts = _parts(found, operation.outputs) if part is None else frozenset([part])
        for name in operation.inputs:
            found[name] = found.get(name, _NONE) | parts
    return found
