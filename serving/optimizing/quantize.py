"""Step `quantize`: embedding tables as torch's row-wise quantized tables of 8 or 4 bits.

A stored row has its whole numbers, a scale and an offset, which reproduce the row's smallest and largest figures (8
bits: float32 scale and offset; 4 bits: float16). A lookup reads packed rows by `aten.embedding`, which checks each id,
and unpacks those rows only. So a table takes a quarter of the memory, and torch's own kernels do both.

The formats are torch's (`quantized::embedding_bag_byte_prepack` and `..._4bit_prepack`; Guan et al., 2019).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from ipnext.errors import InvalidInput
from ipnext.model.value import canonical_json
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE
from serving.optimizing.tables import LOOKUP, Table, arguments_of, tables_of
from serving.splitting.assign.op_assignment import SMALL_BYTES
from serving.splitting.ir.nodes import rename_values, tensor_argument
from serving.splitting.ir.program import Operation, Program
from serving.splitting.split import read_split_program
from serving.weights.tensor_file import write_tensors

_UINT8: Final = 1
"""Element type of torch's schema."""
SMALLEST_SHARE: Final = 0.01
_TABLE_DIMENSIONS: Final = 2
_POSITIONAL: Final = 1
_KEYWORD: Final = 2


@dataclass(frozen=True, slots=True)
class PackedForm:
    """A form of packed rows: bits of a figure, and bytes of scale and offset."""

    bits: int
    qparams_bytes: int
    unpack: str
    """The operator that returns float32 rows of packed ones."""
    takes_any_rank: bool
    """Whether it takes rows of more dimensions than a table."""

    def row_bytes(self, width: int) -> int:
        """Return the bytes of a packed row of `width` figures."""
        return width * self.bits // 8 + self.qparams_bytes


FORMS: Final[Mapping[str, PackedForm]] = {
    "int8": PackedForm(8, 8, "torch.ops.quantized.embedding_bag_byte_unpack.default", takes_any_rank=True),
    "int4": PackedForm(4, 4, "torch.ops.quantized.embedding_bag_4bit_unpack.default", takes_any_rank=False),
}


def quantize_snapshot(source: Path, form: str, patterns: tuple[str, ...], draft: Path) -> Any:
    """Write program and weights of the quantized snapshot; returns the tables, with bytes before and after.

    InvalidInput if the snapshot has no table to replace; the message says why each stays.
    """
    program = read_split_program(source)
    packed = FORMS[form]
    tables = _without_smallest([_fitting(table, packed) for table in tables_of(program, patterns)])
    chosen = {table.key: table for table in tables if not table.kept}
    if not chosen:
        told = "; ".join(f"{table.path}: {table.kept}" for table in tables) or "it looks up in none"
        msg = f"quantize: the snapshot has no embedding table to replace ({told})"
        raise InvalidInput(msg, field="quantize")
    _write_weights(source / WEIGHTS_FILE, draft / WEIGHTS_FILE, frozenset(chosen), form)
    document = _Rewriting(program, chosen, packed).document()
    (draft / PROGRAM_FILE).write_text(canonical_json(document))
    return {"form": form, "tables": [_described(table, packed) for table in tables]}


def _fitting(table: Table, packed: PackedForm) -> Table:
    after, kept = packed.row_bytes(table.width), table.kept
    if not kept and not table.is_parameter and table.size_bytes <= SMALL_BYTES:
        kept = f"it is a buffer of {SMALL_BYTES:,} bytes or less, which a split copies into each part that uses it"
    if not kept and table.width * packed.bits % 8:
        kept = f"its {table.width} columns do not fill whole bytes"
    if not kept and after >= table.width * 4:
        kept = f"a packed row would take {after} bytes, and takes {table.width * 4}"
    return replace(table, kept=kept)


def _without_smallest(tables: Sequence[Table]) -> tuple[Table, ...]:
    """Let the smallest tables stay that have together no more than a hundredth of all bytes.

    Each would cost a call to unpack, and save nothing.
    """
    left = sum(table.size_bytes for table in tables if not table.kept) * SMALLEST_SHARE
    small = set[str]()
    for table in sorted(
        (table for table in tables if not table.kept), key=lambda table: (table.size_bytes, table.path)
    ):
        left -= table.size_bytes
        if left < 0:
            break
        small.add(table.key)
    told = f"the smallest tables, with {SMALLEST_SHARE:.0%} of the bytes together, stay"
    return tuple(replace(table, kept=told) if table.key in small else table for table in tables)


def _described(table: Table, packed: PackedForm) -> dict[str, Any]:
    after = table.size_bytes if table.kept else table.rows * packed.row_bytes(table.width)
    plain = {"path": table.path, "rows": table.rows, "columns": table.width, "before": table.size_bytes, "after": after}
    return plain | ({"kept": table.kept} if table.kept else {})


def _write_weights(source: Path, target: Path, chosen: frozenset[str], form: str) -> None:
    with safe_open(source, framework="pt") as weights:
        keys = sorted(weights.keys())
        tensors = {
            key: _pack(weights.get_tensor(key), form) if key in chosen else weights.get_tensor(key) for key in keys
        }
    write_tensors(tensors, target)


def _pack(table: torch.Tensor, form: str) -> torch.Tensor:
    ops = torch.ops.quantized
    packed: torch.Tensor = (
        ops.embedding_bag_byte_prepack(table) if form == "int8" else ops.embedding_bag_4bit_prepack(table)
    )
    return packed


class _Rewriting:
    """A program whose lookups in the chosen tables read packed rows."""

    def __init__(self, program: Program, chosen: Mapping[str, Table], packed: PackedForm) -> None:
        self._program = program
        self._packed = packed
        self._tables = {weight.name: table for table in chosen.values() for weight in table.weights}
        self._values = dict(program.graph["tensor_values"])
        self._sizes = dict(program.graph["sym_int_values"])

    def document(self) -> dict[str, Any]:
        """Return the document in the form of `program.json`."""
        whole = self._program.document["program"]
        module = whole["graph_module"]
        nodes = [node for operation in self._program.operations for node in self._nodes(operation)]
        for name, table in self._tables.items():
            self._values[name] = self._meta(self._values[name], table, requires_grad=False)
        graph = {**module["graph"], "nodes": nodes, "tensor_values": self._values, "sym_int_values": self._sizes}
        specs = [self._spec(spec) for spec in module["signature"]["input_specs"]]
        signature = {**module["signature"], "input_specs": specs}
        program = {**whole, "graph_module": {**module, "graph": graph, "signature": signature}}
        return {**self._program.document, "program": program}

    def _spec(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the description of a weight: whole numbers are no parameter."""
        parameter = spec.get("parameter")
        if parameter is None or parameter["arg"]["name"] not in self._tables:
            return spec
        return {"buffer": {"arg": parameter["arg"], "buffer_name": parameter["parameter_name"], "persistent": True}}

    def _nodes(self, operation: Operation) -> Iterator[Mapping[str, Any]]:
        weight = arguments_of(operation).get("weight", {}).get("as_tensor", {}).get("name")
        table = self._tables.get(weight)
        if table is None:
            yield operation.raw
        elif operation.target == LOOKUP:
            yield from self._lookup(operation, table)
        else:
            yield from self._bag(operation, table)

    def _lookup(self, operation: Operation, table: Table) -> Iterator[Mapping[str, Any]]:
        """Look packed rows up, and unpack them under the name of the former result."""
        (out,) = operation.outputs
        meta = self._values[out]
        if self._packed.takes_any_rank or len(meta["sizes"]) == _TABLE_DIMENSIONS:
            rows = self._value(f"{out}_packed", self._meta(meta, table))
            yield rename_values({**operation.raw, "name": rows}, {out: rows})
            yield self._unpacked(rows, out, operation)
        else:
            yield from self._flat_lookup(operation, table, out)

    def _flat_lookup(self, operation: Operation, table: Table, out: str) -> Iterator[Mapping[str, Any]]:
        """Look up by a plain list of ids; only then the result gets its dimensions."""
        ids = arguments_of(operation)["indices"]["as_tensor"]["name"]
        meta, given = self._values[out], self._values[ids]
        plain = {
            **meta,
            "sizes": [_product(given["sizes"]), meta["sizes"][-1]],
            "strides": [{"as_int": table.width}, {"as_int": 1}],
        }
        flat = self._value(f"{out}_ids", {**given, "sizes": plain["sizes"][:1], "strides": [{"as_int": 1}]})
        rows, unpacked = self._value(f"{out}_packed", self._meta(plain, table)), self._value(f"{out}_rows", plain)
        shape = [size.get("as_int", -1) for size in meta["sizes"]]
        yield _reshape(ids, flat, [-1], operation)
        looked_up = {"weight": arguments_of(operation)["weight"], "indices": tensor_argument(flat)}
        yield _node(LOOKUP, looked_up, tensor_argument(rows), operation)
        yield self._unpacked(rows, unpacked, operation)
        yield _reshape(unpacked, out, shape, operation)

    def _bag(self, operation: Operation, table: Table) -> Iterator[Mapping[str, Any]]:
        """Look all rows of the bags up; they are the table of the former operation, in the order of its ids."""
        given = arguments_of(operation)
        out, weight, ids = (
            operation.outputs[0],
            given["weight"]["as_tensor"]["name"],
            given["indices"]["as_tensor"]["name"],
        )
        length = self._program.graph["tensor_values"][ids]["sizes"][0]
        plain = {**self._values[weight], "requires_grad": False, "sizes": [length, {"as_int": table.width}]}
        rows = self._value(f"{out}_packed", self._meta(plain, table))
        unpacked, order = self._value(f"{out}_rows", plain), self._value(f"{out}_order", self._values[ids])
        end = length if "as_int" in length else {"as_sym_int": {"as_name": self._size(f"{out}_length", length)}}
        if "as_sym_int" in end:
            name = end["as_sym_int"]["as_name"]
            size = {"self": tensor_argument(ids), "dim": {"as_int": 0}}
            yield _node("torch.ops.aten.sym_size.int", size, {"as_sym_int": {"as_name": name}}, operation)
        looked_up = {"weight": tensor_argument(weight), "indices": tensor_argument(ids)}
        yield _node(LOOKUP, looked_up, tensor_argument(rows), operation)
        yield self._unpacked(rows, unpacked, operation)
        options = {"dtype": {"as_scalar_type": self._values[ids]["dtype"]}}
        options |= {"device": {"as_device": {"index": None, "type": "cpu"}}, "pin_memory": {"as_bool": False}}
        yield _node("torch.ops.aten.arange.default", {"end": end}, tensor_argument(order), operation, options)
        swapped = {"weight": tensor_argument(unpacked), "indices": tensor_argument(order)}
        inputs = [{**item, "arg": swapped.get(item["name"], item["arg"])} for item in operation.raw["inputs"]]
        yield {**operation.raw, "inputs": inputs}

    def _unpacked(self, rows: str, out: str, operation: Operation) -> Mapping[str, Any]:
        return _node(self._packed.unpack, {"weight": tensor_argument(rows)}, tensor_argument(out), operation)

    def _meta(self, like: Mapping[str, Any], table: Table, **more: Any) -> dict[str, Any]:
        """Return the description of a tensor of rows, packed."""
        bytes_ = self._packed.row_bytes(table.width)
        strides = [{"as_int": item["as_int"] // table.width * bytes_} for item in like["strides"][:-1]]
        return {
            **like,
            **more,
            "dtype": _UINT8,
            "sizes": [*like["sizes"][:-1], {"as_int": bytes_}],
            "strides": [*strides, {"as_int": 1}],
        }

    def _value(self, name: str, meta: Mapping[str, Any]) -> str:
        fresh = self._fresh(name)
        self._values[fresh] = meta
        return fresh

    def _size(self, name: str, value: Mapping[str, Any]) -> str:
        fresh = self._fresh(name)
        self._sizes[fresh] = value
        return fresh

    def _fresh(self, name: str) -> str:
        taken = self._values.keys() | self._sizes.keys() | self._program.graph.get("sym_bool_values", {}).keys()
        while name in taken:
            name += "_"
        return name


def _reshape(source: str, result: str, shape: list[int], like: Operation) -> dict[str, Any]:
    given = {"self": tensor_argument(source), "shape": {"as_ints": shape}}
    return _node("torch.ops.aten.reshape.default", given, tensor_argument(result), like)


def _product(sizes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the number of elements of a tensor of at most one free size."""
    factor = prod(size["as_int"] for size in sizes if "as_int" in size)
    free = next((size["as_expr"] for size in sizes if "as_expr" in size), None)
    if free is None:
        return {"as_int": factor}
    hint = None if free.get("hint") is None else {"as_int": free["hint"]["as_int"] * factor}
    text = free["expr_str"] if factor == 1 else f"Mul(Integer({factor}), {free['expr_str']})"
    return {"as_expr": {"expr_str": text, "hint": hint}}


def _node(
    target: str,
    given: Mapping[str, Any],
    output: Mapping[str, Any],
    like: Operation,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a node of the module that has the operation `like`."""
    inputs = [{"name": key, "arg": value, "kind": _POSITIONAL} for key, value in given.items()]
    inputs += [{"name": key, "arg": value, "kind": _KEYWORD} for key, value in (options or {}).items()]
    name = next(item for form in output.values() for item in form.values())
    return {
        "target": target,
        "inputs": inputs,
        "outputs": [dict(output)],
        "metadata": like.raw["metadata"],
        "is_hop_single_tensor_return": None,
        "name": name,
    }
