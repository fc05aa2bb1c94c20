"""The rows in which two tensors differ, bit by bit."""

from dataclasses import dataclass
from typing import Final

import torch

from serving.weights.row_digest import Digest, add_digests, as_rows, digest_of_rows, subtract_digests

_CHUNK_BYTES: Final = 1 << 22
_WIDTHS: Final = ((8, torch.int64), (4, torch.int32), (2, torch.int16))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """New values of some rows of a tensor: `indices` int64 ascending, (k,).

    `values` (k, ...) like the tensor's own rows.
    """

    indices: torch.Tensor
    values: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of indices and values."""
        return int(self.indices.nbytes + self.values.nbytes)


def changed_rows(before: torch.Tensor, after: torch.Tensor) -> Rows:
    """Return the rows of `after` that differ from `before` in any bit; both of one shape and type.

    A scalar is one row.
    """
    if not before.numel():
        return Rows(torch.empty(0, dtype=torch.int64), by_rows(after)[:0])
    left, right = _words(before), _words(after)
    step = max(1, _CHUNK_BYTES // max(left.shape[1] * left.element_size(), 1))
    found = [
        (left[start : start + step] != right[start : start + step]).any(1).nonzero().squeeze(1) + start
        for start in range(0, len(left), step)
    ]
    indices = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
    return Rows(indices, by_rows(after)[indices])


def by_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself, or a scalar as one row."""
    return tensor.detach() if tensor.dim() else tensor.detach().reshape(1)


def write_rows(tensor: torch.Tensor, rows: Rows) -> None:
    """Write rows into a contiguous tensor, in place."""
    if len(rows.indices) and tensor.numel():
        values = rows.values.contiguous()
        _words(tensor).index_copy_(0, rows.indices, _words(values).view(_words(tensor).dtype))


def digest_after(digest: Digest, before: torch.Tensor, rows: Rows) -> Digest:
    """Compute the digest of `before` with `rows` replaced, from its current `digest`."""
    old = digest_of_rows(by_rows(before)[rows.indices], rows.indices)
    return add_digests(subtract_digests(digest, old), digest_of_rows(rows.values, rows.indices))


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Return the rows as the widest integers that fit, so that NaN and -0.0 are compared as bits."""
    rows = as_rows(tensor)
    for size, dtype in _WIDTHS:
        if rows.shape[1] % size == 0 and rows.data_ptr() % size == 0:
            return rows.view(dtype)
    return rows
