"""Prefaulting of mapped weights: reads them into memory before the first request needs them."""

import ctypes
import mmap
from collections.abc import Iterable
from typing import Final

import torch

_STEP_BYTES: Final = 2**24
"""Bytes per call: during it no other thread of the process can map or allocate memory."""
_POPULATE_READ: Final = 22
"""MADV_POPULATE_READ of Linux 5.14 and later; Python's mmap does not name it."""


def make_resident(tensors: Iterable[torch.Tensor]) -> None:
    """Map every page of the tensors for reading; if the system cannot, the first requests do."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return
    for tensor in tensors:
        if tensor.nbytes:
            start = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE
            end = tensor.data_ptr() + tensor.nbytes
            for step in range(start, end, _STEP_BYTES):
                length = min(_STEP_BYTES, end - step)
                madvise(ctypes.c_void_p(step), ctypes.c_size_t(length), _POPULATE_READ)
