"""Weights as a safetensors file whose tensors are aligned as torch would align them.

A host maps them and never copies.

Tensors that fill whole lines of 64 bytes are written first: every large table then begins at a multiple of 64 bytes.
Tensors with the same row length are adjacent, so that they lie whole rows apart. A private mapping of the file (`man 2
mmap`, MAP_PRIVATE) shares its pages with the page cache until they are written to. The format is plain safetensors
(github.com/huggingface/safetensors, "Format").

Written by serving.engines.torch.program (for exports), serving.splitting and deltas; mapped by serving.weights.weights.
"""

import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import _TYPES  # the names of element types; the package has no public table

ALIGNMENT_BYTES: Final = 64
_DTYPES: Final[Mapping[str, torch.dtype]] = {name: dtype for name, dtype in _TYPES.items() if dtype is not None}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write contiguous CPU tensors. The same tensors give the same bytes, regardless of their order."""
    order = sorted(tensors, key=lambda name: (*_place(tensors[name]), name))
    with path.open("wb") as stream:
        stream.write(_header({name: tensors[name] for name in order}))
        for name in order:
            stream.write(as_bytes(tensors[name]))


def _place(tensor: torch.Tensor) -> tuple[bool, int, int]:
    """Return the sort key.

    Tensors that fill no whole lines come last, with tables of bytes; longest rows first, of equal ones the largest.
    """
    row = tensor.nbytes // max(1, len(tensor)) if tensor.dim() else tensor.nbytes
    last = tensor.nbytes % ALIGNMENT_BYTES > 0 or _is_packed(tensor.dtype, tensor.shape)
    return last, -row, -tensor.nbytes


def _is_packed(dtype: torch.dtype, shape: Sequence[int]) -> bool:
    """Whether it may be a table of packed rows, which kernels read byte by byte wherever it begins."""
    return dtype is torch.uint8 and len(shape) == 2  # a table's dimensions


def align(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor aligned as torch would allocate it.

    Its alignment decides the last bits of some kernels' sums.
    """
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT_BYTES else tensor


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    memory: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(memory)


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    entries: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


class TensorFile:
    """A safetensors file, kept open: its contents stay readable after the file is deleted."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._places = dict(_places(self._descriptor))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def offset(self, name: str) -> int:
        """Return the start of a tensor, in bytes from the start of the file."""
        return self._places[name][0]

    def is_aligned(self, name: str) -> bool:
        """Whether a mapped tensor is aligned as torch's own allocator would align it, or is a table of bytes."""
        offset, _, dtype, shape = self._places[name]
        return offset % ALIGNMENT_BYTES == 0 or _is_packed(dtype, shape)

    def map_tensors(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Map tensors in one private mapping, from the first to the last of them.

        A view may then span several tables.

        Writes to them take memory per touched page and are invisible to other processes. Misaligned tensors are copied,
        tables with rows of one length next to each other.
        """
        wanted = sorted(set(names), key=self.offset)
        memory, begin = self._memory(wanted)
        parts = {name: memory[self.offset(name) - begin :][: self._places[name][1]] for name in wanted}
        parts |= _copy_aligned(
            {name: (parts[name], self._row_bytes(name)) for name in wanted if not self.is_aligned(name)}
        )
        return {name: parts[name].view(self._places[name][2]).reshape(self._places[name][3]) for name in wanted}

    def _memory(self, wanted: Sequence[str]) -> tuple[torch.Tensor, int]:
        """Return the bytes of the file from the first of the tensors on, and their offset in the file."""
        begin = self.offset(wanted[0]) if wanted else 0
        end = max((sum(self._places[name][:2]) for name in wanted), default=0)
        if begin == end:
            return torch.empty(0, dtype=torch.uint8), begin
        before = begin % mmap.ALLOCATIONGRANULARITY
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        size = before + end - begin
        pages = mmap.mmap(self._descriptor, size, mmap.MAP_PRIVATE, protection, offset=begin - before)
        return torch.frombuffer(pages, dtype=torch.uint8, offset=before), begin

    def _row_bytes(self, name: str) -> int:
        """Return the row bytes of a table; of any other tensor all its bytes, so that it is not grouped."""
        _, size, dtype, shape = self._places[name]
        return shape[1] * dtype.itemsize if len(shape) == 2 and size else size  # a table's dimensions


def _copy_aligned(tensors: Mapping[str, tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    """Copy tensors, each with its row length, to whole lines; those of one row length lie whole rows apart."""
    by_rows: dict[int, list[str]] = {}
    for name, (_, row) in tensors.items():
        by_rows.setdefault(row, []).append(name)
    found: dict[str, torch.Tensor] = {}
    for row, names in by_rows.items():
        step = math.lcm(ALIGNMENT_BYTES, row) or ALIGNMENT_BYTES
        begins = [0, *accumulate(-(-len(tensors[name][0]) // step) * step for name in names)]
        memory = torch.empty(begins[-1], dtype=torch.uint8)
        for name, begin in zip(names, begins, strict=False):
            part = memory[begin : begin + len(tensors[name][0])]
            found[name] = part.copy_(tensors[name][0])
    return found


def _places(descriptor: int) -> Iterator[tuple[str, tuple[int, int, torch.dtype, tuple[int, ...]]]]:
    """Yield name -> offset in the file, size in bytes, element type, shape.

    The file's digest has been checked before.
    """
    (length,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
    for name, entry in json.loads(os.pread(descriptor, length, 8)).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, (8 + length + begin, end - begin, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
