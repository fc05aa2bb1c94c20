"""Lookups in packed tables in one call: torch's kernel reads, unpacks and writes each row once.

A program looks packed rows up (`aten.embedding`) and unpacks them (`quantized.embedding_bag_*_unpack`). The bag kernel
does both, with the same bits, for bags of one row each; it checks ids, types and the order in memory itself.

Small tables are unpacked once, when a snapshot is loaded: a call to unpack takes longer than the memory that it saves.

Used by serving.engines.torch.program when it builds a program, and by serving.engines.torch.program_cache.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import torch
from torch import embedding, float32, fx

_BYTES: Final = torch.ops.quantized.embedding_bag_byte_rowwise_offsets.default
_NIBBLES: Final = torch.ops.quantized.embedding_bag_4bit_rowwise_offsets.default
_BYTE_QPARAMS: Final = 8
_NIBBLE_QPARAMS: Final = 4
"""Bytes of scale and offset at the end of each packed row."""
UNPACKED_TABLE_BYTES: Final = 4 << 20
"""A table is unpacked at loading if it then takes no more: one that caches hold. Lookups of some hundred rows in larger
ones are faster packed."""
UNPACKED_BYTES: Final = 32 << 20
"""Of all unpacked tables of a snapshot, the smallest first."""
_MOST_KEPT: Final = 4096
_BAGS: dict[tuple[int, torch.dtype], torch.Tensor] = {}
"""Beginnings of so many bags of one id. A race of two threads makes one twice."""


Unpack: TypeAlias = Any
"""An operator that unpacks rows."""


def look_up_bytes(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return rows [*index.shape, n] of a table [rows, n + 8] of 8 bits a figure, or of an unpacked one [rows, n].

    RuntimeError or IndexError if an index is not one of its rows; RuntimeError if the table has another form.
    """
    return embedding(table, index) if table.dtype is float32 else _look_up(_BYTES, _BYTE_QPARAMS, table, index)


def look_up_nibbles(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return rows [*index.shape, n] of a table [rows, n / 2 + 4] of 4 bits a figure. See the former."""
    return embedding(table, index) if table.dtype is float32 else _look_up(_NIBBLES, _NIBBLE_QPARAMS, table, index)


def _look_up(kernel: Any, qparams_bytes: int, table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    if table.dim() != 2 or table.shape[1] <= qparams_bytes:  # a table's dimensions
        msg = f"lookup: takes a table of rows of more than {qparams_bytes} bytes, got {list(table.shape)}"
        raise RuntimeError(msg)
    flat = index.reshape(-1).contiguous()
    rows: torch.Tensor = kernel(table, flat, _bags(flat), False, 0, False, None, None, True)
    return rows if index.dim() == 1 else rows.view(*index.shape, -1)


def _bags(ids: torch.Tensor) -> torch.Tensor:
    key = (len(ids), ids.dtype)
    found = _BAGS.get(key)
    if found is None:
        found = torch.arange(len(ids) + 1, dtype=ids.dtype)
        if len(_BAGS) < _MOST_KEPT and len(ids) <= _MOST_KEPT:
            _BAGS[key] = found
    return found


LOOKUPS: Final[Mapping[Any, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    torch.ops.quantized.embedding_bag_byte_unpack.default: look_up_bytes,
    torch.ops.quantized.embedding_bag_4bit_unpack.default: look_up_nibbles,
}
"""Operator that unpacks rows -> the lookup that does so itself."""


def join_lookups(module: fx.GraphModule) -> None:
    """Replace each lookup of packed rows that are only unpacked by one call."""
    changed = False
    for node in list(module.graph.nodes):
        look_up = LOOKUPS.get(node.target) if node.op == "call_function" else None
        rows: Any = node.args[0] if look_up is not None and node.args else None
        if look_up is None or not _is_lookup_of(rows, node):
            continue
        with module.graph.inserting_before(node):
            joined = module.graph.call_function(look_up, tuple(rows.args[:2]))
        joined.meta = dict(node.meta)
        node.replace_all_uses_with(joined)
        module.graph.erase_node(node)
        module.graph.erase_node(rows)
        changed = True
    if changed:
        module.recompile()


def packed_arguments(graph: fx.Graph) -> Mapping[int, Unpack]:
    """Return position of each argument that is only looked up as a packed table -> the operator that unpacks it."""
    unpack = {look_up: operator for operator, look_up in LOOKUPS.items()}
    found: dict[int, Unpack] = {}
    for position, place in enumerate(node for node in graph.nodes if node.op == "placeholder"):
        targets = {user.target for user in place.users}
        tables = all(user.target in unpack and user.args[0] is place is not user.args[1] for user in place.users)
        if tables and len(targets) == 1:
            found[position] = unpack[next(iter(targets))]
    return found


def unpack_small(tables: Mapping[int, tuple[Unpack, torch.Tensor]]) -> dict[int, torch.Tensor]:
    """Return the small ones of packed tables unpacked, by position. Those of one width lie in one piece of memory."""
    sizes = {position: _unpacked_columns(unpack, table) for position, (unpack, table) in tables.items()}
    fitting: dict[int, list[int]] = {}
    left = UNPACKED_BYTES
    for position in sorted(sizes, key=lambda each: (len(tables[each][1]) * sizes[each], each)):
        taken = len(tables[position][1]) * sizes[position] * float32.itemsize
        if 0 < taken <= min(left, UNPACKED_TABLE_BYTES):
            left -= taken
            fitting.setdefault(sizes[position], []).append(position)
    return {at: rows for columns, found in fitting.items() for at, rows in _unpacked(tables, found, columns)}


def _unpacked(
    tables: Mapping[int, tuple[Unpack, torch.Tensor]], positions: Sequence[int], columns: int
) -> Iterator[tuple[int, torch.Tensor]]:
    memory = torch.empty(sum(len(tables[position][1]) for position in positions), columns)
    begin = 0
    for position in positions:
        unpack, table = tables[position]
        rows = memory[begin : begin + len(table)]
        begin += len(table)
        yield position, rows.copy_(unpack(table))


def _unpacked_columns(unpack: Unpack, table: torch.Tensor) -> int:
    """Return the columns of an unpacked table; 0 if it has no form of a packed one."""
    if table.dtype is not torch.uint8 or table.dim() != 2 or not table.is_contiguous():  # a table's dimensions
        return 0
    if LOOKUPS[unpack] is look_up_bytes:
        return max(0, table.shape[1] - _BYTE_QPARAMS)
    return max(0, table.shape[1] - _NIBBLE_QPARAMS) * 2


def _is_lookup_of(rows: Any, user: fx.Node) -> bool:
    return (
        isinstance(rows, fx.Node)
        and rows.target is torch.ops.aten.embedding.default
        and len(rows.args) >= 2  # table and index
        and set(rows.users) == {user}
    )
