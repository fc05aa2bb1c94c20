"""Packed rows of quantized tables: a lookup reads them, and the operation behind it unpacks them.

Both count as one lookup in the table as it was before, with the bag that adds unpacked rows up. So a quantized program
is cut as the one that it was made of. The forms are those of `serving.optimizing.quantize`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from serving.splitting.ir.program import Operation, Program

_UNPACKS: Final = tuple(f"torch.ops.quantized.embedding_bag_{form}_unpack." for form in ("byte", "4bit"))
_BAG: Final = "torch.ops.aten.embedding_bag."
_FLOAT32_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class PackedRows:
    """The quantized tables of a program, and the rows that are looked up in them."""

    tables: Mapping[str, str]
    """Packed rows, or unpacked ones that bags add up -> the weight that they were looked up in."""
    unpacked_bytes: Mapping[str, int]
    """Weight -> bytes of its float32 table."""


def packed_rows(program: Program) -> PackedRows:
    """Return the packed rows of a program, and their tables."""
    tables: dict[str, str] = {}
    sizes: dict[str, int] = {}
    in_bags = {one.inputs[0] for one in program.operations if one.target.startswith(_BAG) and one.inputs}
    for operation in filter(unpacks, program.operations):
        (rows,) = operation.inputs
        lookup = program.producer.get(rows)
        table = next((name for name in lookup.inputs if name in program.weights), None) if lookup else None
        if table is not None:
            (unpacked,) = operation.outputs
            width = program.layout(unpacked).sizes[-1].hint
            tables |= dict.fromkeys((rows, unpacked) if unpacked in in_bags else (rows,), table)
            sizes[table] = program.layout(table).sizes[0].hint * width * _FLOAT32_BYTES
    return PackedRows(tables, sizes)


def unpacks(operation: Operation) -> bool:
    """Whether an operation unpacks rows of a quantized table."""
    return operation.target.startswith(_UNPACKS)
