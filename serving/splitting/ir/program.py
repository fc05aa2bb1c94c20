"""The program of a snapshot as values and operations: producers, sizes, and modules.

Reads torch's JSON schema from `program.json`; nothing here needs torch.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from serving.splitting.ir.symbolic_shapes import Dimension, dimension

_SYMBOLS: Final = ("as_sym_int", "as_sym_bool", "as_sym_float")
_NO_MODULE: Final = "_empty_nn_module_stack_from_metadata_hook"
_CALL_NUMBER = re.compile(r"@\d+$")
_WEIGHTS: Final[Mapping[str, tuple[str, str]]] = {
    "parameter": ("parameter_name", "state"),
    "buffer": ("buffer_name", "state"),
    "tensor_constant": ("tensor_constant_name", "constant"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One node of the graph."""

    index: int
    raw: Mapping[str, Any]
    target: str
    path: str
    """Path of the module whose forward called it; empty for the model's own forward."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    symbolic: bool
    """Whether its results are sizes, not tensors."""


@dataclass(frozen=True, slots=True)
class ProgramWeight:
    """A parameter, buffer or constant: its name in the graph, in the module, and among the stored tensors."""

    name: str
    path: str
    place: str
    key: str
    size_bytes: int
    kind: str


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """Size, strides and element type of a tensor value."""

    sizes: tuple[Dimension, ...]
    strides: tuple[int, ...]
    dtype: int

    @property
    def order(self) -> tuple[int, ...] | None:
        """Dimensions from the slowest to the fastest in memory; None if the tensor is not dense."""
        order = sorted(range(len(self.sizes)), key=lambda d: (-self.strides[d], d))
        expected = 1
        for d in reversed(order):
            if self.sizes[d].hint != 1:
                if self.strides[d] != expected:
                    return None
                expected *= self.sizes[d].hint
        return tuple(range(len(self.sizes))) if self._is_plain() else tuple(order)

    def _is_plain(self) -> bool:
        expected = 1
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            if size.hint != 1 and stride != expected:
                return False
            expected *= size.hint
        return True


class Program:
    """A parsed program document. `key_bytes`: bytes of each stored tensor."""

    def __init__(self, document: Mapping[str, Any], key_bytes: Mapping[str, int]) -> None:
        self.document = document
        module = document["program"]["graph_module"]
        self.graph: Mapping[str, Any] = module["graph"]
        self.signature: Mapping[str, Any] = module["signature"]
        self.operations = tuple(_operation(index, raw) for index, raw in enumerate(self.graph["nodes"]))
        self.inputs: tuple[str, ...] = tuple(document["inputs"])
        self.weights = {weight.name: weight for weight in _weights(document, key_bytes)}
        answers = [_name_of(argument) for argument in self.graph["outputs"]]
        self.answers: Mapping[str, str] = dict(zip(document["outputs"], answers, strict=True))
        self.producer = {name: operation for operation in self.operations for name in operation.outputs}

    @cached_property
    def batch(self) -> str | None:
        """Text of the batch's symbol; None if no input has a free dimension."""
        dimensions = (self.layout(name).sizes[0] for name in self.inputs)
        return next((d.text for d in dimensions if d.text is not None), None)

    def layout(self, name: str) -> TensorLayout:
        """Return the layout of a tensor value."""
        meta = self.graph["tensor_values"][name]
        sizes = tuple(dimension(item) for item in meta["sizes"])
        strides = tuple(dimension(item).hint for item in meta["strides"])
        return TensorLayout(sizes, strides, meta["dtype"])

    def is_tensor(self, name: str) -> bool:
        """Whether a value is a tensor; otherwise it is a size."""
        return name in self.graph["tensor_values"]

    def size(self, name: str) -> Dimension | None:
        """Return the size of a symbolic integer; None if it is not an expression."""
        value = self.graph["sym_int_values"].get(name)
        return None if value is None or "as_expr" not in value else dimension(value)


def names_in(argument: Any) -> Iterator[str]:
    """Yield the names of all values in an argument."""
    if isinstance(argument, dict):
        for key, item in argument.items():
            if key in {"name", "as_name"} and isinstance(item, str):
                yield item
            else:
                yield from names_in(item)
    elif isinstance(argument, list):
        for item in argument:
            yield from names_in(item)


def _name_of(argument: Mapping[str, Any]) -> str:
    return next(names_in(argument))


def _operation(index: int, raw: Mapping[str, Any]) -> Operation:
    inputs = tuple(dict.fromkeys(name for item in raw["inputs"] for name in names_in(item["arg"])))
    outputs = tuple(name for item in raw["outputs"] for name in names_in(item))
    symbolic = bool(outputs) and all(kind in _SYMBOLS for item in raw["outputs"] for kind in item)
    return Operation(index, raw, str(raw["target"]), _path(raw["metadata"]), inputs, outputs, symbolic)


def _path(metadata: Mapping[str, str]) -> str:
    """Return the innermost module's path from `KEY,PATH,CLASS;...`, which is ordered from the outermost."""
    entries = [entry.split(",") for entry in metadata.get("nn_module_stack", "").split(";")]
    paths = [entry[1] for entry in entries if len(entry) == 3 and entry[1] != _NO_MODULE]
    return _CALL_NUMBER.sub("", paths[-1]) if paths else ""


def _weights(document: Mapping[str, Any], key_bytes: Mapping[str, int]) -> Iterator[ProgramWeight]:
    for spec in document["program"]["graph_module"]["signature"]["input_specs"]:
        kind = next(iter(spec))
        if kind in _WEIGHTS:
            field, store = _WEIGHTS[kind]
            path = str(spec[kind][field])
            place = f"{store}:{path}"
            if place not in document["tensors"]:
                place = f"constant:{path}"
            key = str(document["tensors"][place]["key"])
            yield ProgramWeight(spec[kind]["arg"]["name"], path, place, key, key_bytes[key], kind)
