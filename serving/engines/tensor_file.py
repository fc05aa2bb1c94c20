"""Weights as a safetensors file whose tensors lie where torch itself would put them, so that a host maps and never copies.

Tensors are written largest first, those that fill whole lines of 64 bytes before all others: every large table then begins
at a multiple of 64 bytes, and a private mapping of the file (`man 2 mmap`, MAP_PRIVATE) shares its pages with the page
cache until somebody writes to them. The format is plain safetensors (github.com/huggingface/safetensors, "Format").
Written by serving.export and serving.splitting, mapped by serving.deltas.
"""

import json
import mmap
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import _TYPES  # the names of element types; the package has no public table

ALIGNMENT_BYTES: Final = 64
_DTYPES: Final[Mapping[str, torch.dtype]] = {name: dtype for name, dtype in _TYPES.items() if dtype is not None}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write contiguous CPU tensors. The same tensors give the same bytes, in whichever order they come."""
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT_BYTES > 0, -tensors[name].nbytes, name))
    with path.open("wb") as stream:
        stream.write(_header({name: tensors[name] for name in order}))
        for name in order:
            stream.write(as_bytes(tensors[name]))


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """In memory as torch itself would give it: where a tensor begins decides the last bits of some kernels' sums."""
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT_BYTES else tensor


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
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
    """A safetensors file, kept open: what it holds stays readable after its name is gone."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._places = dict(_places(self._descriptor))

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def offset(self, name: str) -> int:
        """Where a tensor begins, in bytes from the start of the file."""
        return self._places[name][0]

    def is_aligned(self, name: str) -> bool:
        """Whether a mapped tensor begins where torch's own allocator would have it."""
        return self._places[name][0] % ALIGNMENT_BYTES == 0

    def private(self, name: str) -> torch.Tensor:
        """A tensor mapped for itself: what is written to it takes memory by touched page and is seen by nobody else."""
        offset, size, dtype, shape = self._places[name]
        before = offset % mmap.ALLOCATIONGRANULARITY
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        pages = mmap.mmap(self._descriptor, before + size, mmap.MAP_PRIVATE, protection, offset=offset - before)
        return torch.frombuffer(pages, dtype=dtype, count=size // dtype.itemsize, offset=before).reshape(shape)


def _places(descriptor: int) -> Iterator[tuple[str, tuple[int, int, torch.dtype, tuple[int, ...]]]]:
    """Name -> offset in the file, size in bytes, element type, shape. Files are checked by their digest before."""
    (length,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
    for name, entry in json.loads(os.pread(descriptor, length, 8)).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            yield name, (8 + length + begin, end - begin, _DTYPES[entry["dtype"]], tuple(entry["shape"]))
