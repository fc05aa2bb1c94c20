"""Weights in memory that a delta turns into the next ones, copy on write.

Tensors that a delta does not change are shared with the parent. All changed tensors of a delta are mapped again, from
the file of the full snapshot at the root of the chain (all mappings share its pages in the page cache), and all rows
changed since then are written into the mapping, which costs memory for the touched pages of 4 KiB only. The parent's
memory is never written to.
"""

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import torch
from safetensors import safe_open

from ipnext.errors import LoadFailed
from ipnext.model.registry.delta import ChangedTensor, DeltaDocument
from serving.weights.delta_snapshot import Delta
from serving.weights.row_changes import Rows, by_rows, digest_after, write_rows
from serving.weights.row_digest import Digest, as_text, digest_of_rows, from_text
from serving.weights.tensor_file import TensorFile, align


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Tensors by their names in the weights file of the full snapshot, `file`."""

    tensors: Mapping[str, torch.Tensor]
    file: TensorFile
    since: Mapping[str, torch.Tensor | None]
    """Tensor -> indices of the rows that differ from `file`; None: it shares nothing with it."""
    digests: Mapping[str, Digest]
    """Row digests of the tensors that a delta has changed."""
    added_bytes: int
    """Memory in addition to the parent's: at most one page per changed row of a mapped tensor."""

    def changed_by(self, delta: Delta) -> "Weights":
        """Apply a delta. LoadFailed if it does not fit, or its result differs from its declaration."""
        tensors, since, digests = dict(self.tensors), dict(self.since), dict(self.digests)
        for key in delta.document.tensors:
            self._check_fits(key, delta)
        anew = self.file.map_tensors(filter(self.file.is_aligned, delta.document.tensors))
        for key, told in delta.document.tensors.items():
            known = digests.get(key, from_text(told.before))
            if as_text(known) != told.before:
                msg = f"tensor {key!r} has row digest {as_text(known)}, the delta was made for {told.before}"
                raise LoadFailed(msg)
            if key in delta.whole:
                tensors[key], since[key] = _whole(delta.whole[key], anew.get(key)), None
                digests[key] = digest_of_rows(by_rows(tensors[key]))
            else:
                rows = delta.rows[key]
                tensors[key], since[key] = self._with_rows(key, rows, anew.get(key))
                written = Rows(rows.indices, by_rows(tensors[key])[rows.indices])
                digests[key] = digest_after(known, self.tensors[key], written)
            _check_result(key, digests[key], told)
        added = sum(_added_bytes(tensors[key], since[key]) for key in delta.document.tensors)
        return Weights(tensors, self.file, since, digests, added)

    def check(self, document: DeltaDocument, when: Literal["before", "after"]) -> None:
        """Recompute the row digests of all tensors that a delta changes, over all rows.

        LoadFailed if one differs from the delta's.
        """
        for key, told in document.tensors.items():
            stated = told.before if when == "before" else told.after
            found = as_text(digest_of_rows(by_rows(self.tensors[key]))) if key in self.tensors else "none"
            if found != stated:
                msg = f"tensor {key!r} has row digest {found}, {when} the delta it must be {stated}"
                raise LoadFailed(msg)

    def _with_rows(self, key: str, rows: Rows, anew: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return a new tensor with the rows written, and all rows in which it differs from the file.

        `anew`: as in the file.
        """
        former = self.tensors[key]
        since = self.since.get(key, _NONE)
        if since is None or anew is None:
            tensor = _whole(former.clone() if anew is None else former, anew)
            write_rows(tensor, rows)
            return tensor, None
        write_rows(anew, Rows(since, by_rows(former)[since]))
        write_rows(anew, rows)
        return anew, torch.unique(torch.cat([since, rows.indices]))

    def _check_fits(self, key: str, delta: Delta) -> None:
        tensor = self.tensors.get(key)
        if tensor is None:
            msg = f"tensor {key!r} of the delta is not in its parent, which has {', '.join(sorted(self.tensors))}"
            raise LoadFailed(msg)
        given = delta.whole.get(key)
        form = tuple(tensor.shape)
        if given is None:
            rows = delta.rows[key]
            given, form = rows.values, (len(rows.indices), *by_rows(tensor).shape[1:])
            if len(rows.indices) and int(rows.indices[-1]) >= len(by_rows(tensor)):
                msg = f"tensor {key!r}: row {int(rows.indices[-1])} lies beyond its {len(by_rows(tensor))} rows"
                raise LoadFailed(msg)
        if (given.dtype, tuple(given.shape)) != (tensor.dtype, form):
            msg = (
                f"tensor {key!r} of the delta is {given.dtype} of shape {list(given.shape)}, "
                f"its parent needs {tensor.dtype} of shape {list(form)}"
            )
            raise LoadFailed(msg)


_NONE: Final = torch.empty(0, dtype=torch.int64)


def _whole(tensor: torch.Tensor, anew: torch.Tensor | None) -> torch.Tensor:
    """Return a tensor that shares nothing with the file, next to others of its delta if it fits there."""
    return align(tensor) if anew is None else anew.copy_(tensor)


def _added_bytes(tensor: torch.Tensor, since: torch.Tensor | None) -> int:
    return int(tensor.nbytes) if since is None else min(int(tensor.nbytes), len(since) * mmap.PAGESIZE)


def read_weights(path: Path, keys: Iterable[str]) -> Weights:
    """Map the named tensors of a full snapshot's file; misaligned ones are copied."""
    with safe_open(path, framework="pt"):  # refuses a file that does not match its header
        file = TensorFile(path)
    tensors = file.map_tensors(keys)
    return Weights(tensors, file, {}, {}, sum(tensor.nbytes for tensor in tensors.values()))


def _check_result(key: str, digest: Digest, told: ChangedTensor) -> None:
    if as_text(digest) != told.after:
        msg = f"tensor {key!r} has row digest {as_text(digest)} after the delta, which states {told.after}"
        raise LoadFailed(msg)
