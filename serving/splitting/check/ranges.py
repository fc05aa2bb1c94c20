"""Value ranges of whole-number inputs, from their use in a program: the limit of ids, and whether they are offsets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from serving.splitting.ir.program import Operation, Program, names_in
from serving.splitting.ir.views import operator_name

FREE_LIMIT: Final = 8
"""Limit for inputs that are not ids of a table: small counts, lengths, flags."""

_INDICES: Final[Mapping[str, str]] = {
    "embedding": "indices",
    "embedding_bag": "indices",
    "index_select": "index",
    "index": "indices",
    "gather": "index",
}


@dataclass(frozen=True, slots=True)
class Range:
    """Values from 0 to `limit` - 1. `offsets`: ascending from 0, about `each` apart."""

    limit: int
    offsets: bool = False
    each: int = 1


def ranges_of(program: Program) -> dict[str, Range]:
    """Return the range of each input.

    If the program adds to an id before the lookup, the range may still be too wide.
    """
    origins = _origins(program)
    limits: dict[str, int] = {}
    offsets: dict[str, int] = {}
    for operation in program.operations:
        arguments = {item["name"]: item["arg"] for item in operation.raw["inputs"]}
        looked_up = arguments.get(_INDICES.get(operator_name(operation), ""))
        for name in _from(origins, looked_up):
            rows = _rows(program, operation, arguments)
            limits[name] = min(limits.get(name, rows), rows)
        if operator_name(operation) == "embedding_bag":
            for name in _from(origins, arguments.get("offsets")):
                offsets[name] = _width(program, _from(origins, looked_up))
    return {name: Range(limits.get(name, FREE_LIMIT), name in offsets, offsets.get(name, 1)) for name in program.inputs}


def _origins(program: Program) -> dict[str, frozenset[str]]:
    """Return value -> the whole-number inputs that it is computed from."""
    found = {name: frozenset([name]) for name in program.inputs}
    for operation in program.operations:
        made_of = frozenset().union(*(found.get(name, frozenset()) for name in operation.inputs))
        for name in operation.outputs:
            if program.is_tensor(name) and program.layout(name).dtype in _WHOLE:
                found[name] = made_of
    return found


_WHOLE: Final = frozenset({1, 2, 3, 4, 5})
"""Element types of torch's schema for ids."""


def _from(origins: Mapping[str, frozenset[str]], argument: Any) -> frozenset[str]:
    return frozenset().union(*(origins.get(name, frozenset()) for name in names_in(argument)))


def _rows(program: Program, operation: Operation, arguments: Mapping[str, Any]) -> int:
    table = program.layout(operation.inputs[0]).sizes
    along = arguments.get("dim", {}).get("as_int", 0)
    return max(table[int(along)].hint, 1)


def _width(program: Program, inputs: frozenset[str]) -> int:
    """Return the number of ids per row of the request."""
    width = 1
    for name in inputs:
        for size in program.layout(name).sizes[1:]:
            width *= size.hint
    return width
