"""Embedding tables of a program: weights that are only looked up, row by row.

Works on `program.json`, as splitting does. Used by serving.optimizing.quantize.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from serving.splitting.ir.program import Operation, Program, ProgramWeight
from serving.splitting.ir.symbolic_shapes import dimension

LOOKUP: Final = "torch.ops.aten.embedding.default"
BAGS: Final = ("torch.ops.aten.embedding_bag.default", "torch.ops.aten.embedding_bag.padding_idx")
FLOAT32: Final = 7
"""Element types of torch's schema."""
_IDS: Final = (4, 5)
_DIMENSIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Table:
    """A stored matrix that operations look rows up in."""

    key: str
    """Its name among the stored tensors."""
    path: str
    rows: int
    width: int
    weights: tuple[ProgramWeight, ...]
    """Its names in the program; tied weights have several."""
    kept: str = ""
    """Why it stays as it is; empty if it may be replaced."""

    @property
    def size_bytes(self) -> int:
        """Stored bytes."""
        return self.weights[0].size_bytes

    @property
    def is_parameter(self) -> bool:
        """Whether all its names are those of parameters, not of buffers or constants."""
        return all(weight.kind == "parameter" for weight in self.weights)


def tables_of(program: Program, patterns: Sequence[str]) -> tuple[Table, ...]:
    """Return the matrices that any operation looks up in, by path, with the reason why one stays as it is."""
    by_key: dict[str, list[ProgramWeight]] = {}
    for weight in program.weights.values():
        by_key.setdefault(weight.key, []).append(weight)
    found = (_table(program, key, weights, patterns) for key, weights in by_key.items())
    return tuple(sorted((table for table in found if table is not None), key=lambda table: table.path))


def _table(program: Program, key: str, weights: list[ProgramWeight], patterns: Sequence[str]) -> Table | None:
    names = {weight.name for weight in weights}
    users = [operation for operation in program.operations if names.intersection(operation.inputs)]
    sizes = program.layout(weights[0].name).sizes
    if len(sizes) != _DIMENSIONS or not any(looks_up(user, names) for user in users):
        return None
    path = min(weight.path for weight in weights)
    chosen = any(fnmatchcase(path, each) for each in patterns)
    kept = next(_reasons(program, users, weights), "") if chosen else "no pattern of the step matches it"
    return Table(key, path, sizes[0].hint, sizes[1].hint, tuple(weights), kept)


def _reasons(program: Program, users: Sequence[Operation], weights: Sequence[ProgramWeight]) -> Iterator[str]:
    names = {weight.name for weight in weights}
    if any(program.layout(name).dtype != FLOAT32 for name in names):
        yield "its elements are not float32"
    if any(program.document["tensors"][weight.place]["strides"] is not None for weight in weights):
        yield "its rows do not follow each other in memory"
    if names.intersection(program.answers.values()):
        yield "the model answers with it"
    for user in users:
        if not looks_up(user, names):
            yield f"{user.target.removeprefix('torch.ops.')} uses it whole"
        elif user.target == LOOKUP:
            yield from _of_lookup(program, user)
        else:
            yield from _of_bag(program, user)


def looks_up(operation: Operation, names: set[str]) -> bool:
    """Return whether an operation only looks rows up in one of these weights."""
    if operation.target != LOOKUP and operation.target not in BAGS:
        return False
    given = arguments_of(operation)
    others = {name for key, arg in given.items() if key != "weight" and (name := _tensor(arg)) is not None}
    return _tensor(given.get("weight", {})) in names and not others & names


def arguments_of(operation: Operation) -> Mapping[str, Any]:
    """Return the arguments of an operation by their names."""
    return {item["name"]: item["arg"] for item in operation.raw["inputs"]}


def _of_lookup(program: Program, operation: Operation) -> Iterator[str]:
    (out,) = operation.outputs
    meta = program.graph["tensor_values"][out]
    if not all("as_int" in stride for stride in meta["strides"]) or not _is_contiguous(meta):
        yield "the rows that are looked up have no plain order in memory"


def _of_bag(program: Program, operation: Operation) -> Iterator[str]:
    given = arguments_of(operation)
    if given.get("padding_idx", {"as_none": True}) not in ({"as_none": True}, {"as_int": -1}):
        yield "an embedding bag with a padding index looks it up"
    ids = program.layout(str(_tensor(given["indices"])))
    if len(ids.sizes) != 1 or ids.dtype not in _IDS:
        yield "an embedding bag looks it up by ids that are no plain list"


def _is_contiguous(meta: Mapping[str, Any]) -> bool:
    expected = 1
    for size, stride in zip(reversed(meta["sizes"]), reversed(meta["strides"]), strict=True):
        length = dimension(size).hint
        if length != 1 and stride["as_int"] != expected:
            return False
        expected *= length
    return True


def _tensor(argument: Mapping[str, Any]) -> str | None:
    form = argument.get("as_tensor")
    return None if form is None else str(form["name"])
