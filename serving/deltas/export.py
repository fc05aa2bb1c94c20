"""Makes delta snapshots, which a training system publishes between two full ones.

export_delta("out/parent", module, "out/delta")
export_delta("out/parent", {"table.weight": Rows(indices, values), "top.bias": bias}, "out/delta")
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

from ipnext.errors import InvalidInput
from ipnext.model.registry.delta import ChangedTensor, DeltaDocument
from ipnext.model.registry.registry import SnapshotManifest
from serving.deltas.lineage import OpenSnapshot, open_snapshot, parameter_names, tensor_of
from serving.snapshots.directory import check_directory, half_written
from serving.weights.delta_snapshot import Delta, write_delta
from serving.weights.row_changes import Rows, by_rows, changed_rows, digest_after, write_rows
from serving.weights.row_digest import as_text, digest_of_rows
from serving.weights.weights import Weights

AnyPath: TypeAlias = str | os.PathLike[str]
NewWeights: TypeAlias = nn.Module | Mapping[str, torch.Tensor | Rows]
"""A module, or its parameters and buffers by name: whole tensors, or the changed rows. Omitted ones stay unchanged."""


def export_delta(
    parent: AnyPath,
    weights: NewWeights,
    directory: AnyPath,
    *,
    bases: Sequence[AnyPath] = (),
    full: str | None = None,
) -> SnapshotManifest:
    """Write the changes of `weights` relative to the snapshot in `parent` as a delta snapshot into `directory`.

    `directory` must not exist or be empty. If `parent` is a delta itself, `bases` are the directories of its ancestors.
    `full` is the digest of a snapshot with the whole result, which a host loads if the parent is unavailable. Shapes,
    types and program stay the parent's. InvalidInput names the tensor that does not fit, or reports that nothing
    changed.
    """
    ground = open_snapshot(Path(parent), tuple(map(Path, bases)))
    changes: dict[str, Rows] = {}
    for name, value in _name_tensors(weights, ground):
        key = tensor_of(name, ground.places)
        if key is None:
            raise _unknown(name, ground)
        rows = _rows(name, value, ground.weights.tensors[key])
        _check_tied(name, rows, changes.get(key))
        changes[key] = rows
    return _written(ground, changes, Path(directory), full=full)


def delta_between(
    parent: AnyPath, new: AnyPath, directory: AnyPath, *, bases: Sequence[AnyPath] = ()
) -> SnapshotManifest:
    """Write the difference of two snapshots of one program; the delta names `new` as its full result.

    `new` is a full snapshot. InvalidInput if the programs differ, or nothing does.
    """
    return write_difference(open_snapshot(Path(parent), tuple(map(Path, bases))), Path(new), Path(directory))


def write_difference(ground: OpenSnapshot, new: Path, directory: Path) -> SnapshotManifest:
    """Write the difference; as `delta_between`, from a parent that is open already."""
    target = open_snapshot(new)
    if ground.program.read_bytes() != target.program.read_bytes():
        msg = f"new: {str(new)!r} has another program than its parent; publish it as a full snapshot"
        raise InvalidInput(msg, field="new", value=str(new))
    after = target.weights.tensors
    changes = {key: _rows(key, after[key], before) for key, before in ground.weights.tensors.items()}
    return _written(ground, changes, directory, full=target.manifest.digest)


def _name_tensors(weights: NewWeights, ground: OpenSnapshot) -> Iterator[tuple[str, torch.Tensor | Rows]]:
    """Yield name and value; of a module only the tensors that the program uses."""
    if not isinstance(weights, nn.Module):
        yield from weights.items()
        return
    named = {**weights.state_dict(), **dict(weights.named_parameters()), **dict(weights.named_buffers())}
    for name, tensor in sorted(named.items()):
        if tensor_of(name, ground.places) is not None:
            yield name, tensor


def _rows(name: str, value: torch.Tensor | Rows, before: torch.Tensor) -> Rows:
    """Return the rows that actually differ."""
    if isinstance(value, Rows):
        return _given_rows(name, value, by_rows(before))
    if value.shape != before.shape or value.dtype != before.dtype or value.device.type != "cpu":
        raise _misfit(name, value, before, tuple(before.shape))
    return changed_rows(before, value.detach().contiguous())


def _given_rows(name: str, rows: Rows, before: torch.Tensor) -> Rows:
    indices = rows.indices
    shape = (len(indices), *before.shape[1:])
    if tuple(rows.values.shape) != shape or rows.values.dtype != before.dtype:
        raise _misfit(name, rows.values, before, shape)
    ascending, order = indices.sort()
    doubled = bool((ascending[1:] == ascending[:-1]).any())
    if len(indices) and (doubled or indices.dtype != torch.int64 or ascending[0] < 0 or ascending[-1] >= len(before)):
        msg = f"weights.{name}.indices: must be int64, each once, from 0 to {len(before) - 1}"
        raise InvalidInput(msg, field=f"weights.{name}.indices")
    values = rows.values.detach()[order]
    kept = changed_rows(before[ascending], values)
    return Rows(ascending[kept.indices], kept.values)


def _check_tied(name: str, rows: Rows, other: Rows | None) -> None:
    if other is None:
        return
    same = torch.equal(rows.indices, other.indices) and not len(changed_rows(rows.values, other.values).indices)
    if not same:
        msg = f"weights.{name}: it is tied to another of the weights, which has other values; give the same to both"
        raise InvalidInput(msg, field=f"weights.{name}")


def _written(
    ground: OpenSnapshot, changes: Mapping[str, Rows], directory: Path, *, full: str | None
) -> SnapshotManifest:
    delta = _delta(ground.weights, {key: rows for key, rows in changes.items() if len(rows.indices)}, full)
    if not delta.document.tensors:
        msg = "weights: not a bit differs from the parent; there is nothing to publish"
        raise InvalidInput(msg, field="weights")
    with half_written(check_directory(directory)) as draft:
        return write_delta(delta, draft, parent=ground.manifest)


def _delta(weights: Weights, changes: Mapping[str, Rows], full: str | None) -> Delta:
    told: dict[str, ChangedTensor] = {}
    rows: dict[str, Rows] = {}
    whole: dict[str, torch.Tensor] = {}
    for key, change in sorted(changes.items()):
        before = weights.tensors[key]
        digest = weights.digests[key] if key in weights.digests else digest_of_rows(before)
        if change.nbytes < before.nbytes:
            rows[key] = change
        else:
            whole[key] = _whole(before, change)
        told[key] = ChangedTensor(
            rows=len(by_rows(before)) if key in whole else len(change.indices),
            whole=key in whole,
            before=as_text(digest),
            after=as_text(digest_after(digest, before, change)),
        )
    return Delta(DeltaDocument(full=full, tensors=told), rows, whole)


def _whole(before: torch.Tensor, change: Rows) -> torch.Tensor:
    tensor = before.clone()
    write_rows(tensor, change)
    return tensor


def _misfit(name: str, value: torch.Tensor, before: torch.Tensor, shape: tuple[int, ...]) -> InvalidInput:
    msg = (
        f"weights.{name}: must be {before.dtype} of shape {list(shape)} on the CPU, as its parent has it, "
        f"got {value.dtype} "
        f"of shape {list(value.shape)} on {value.device}; a model of other shapes is published as a full snapshot"
    )
    return InvalidInput(msg, field=f"weights.{name}", value=list(value.shape))


def _unknown(name: str, ground: OpenSnapshot) -> InvalidInput:
    names = parameter_names(ground.places)
    near = difflib.get_close_matches(name, names, n=5) or names[:5]
    msg = f"weights.{name}: the parent has no such parameter or buffer; near: {', '.join(near)}"
    return InvalidInput(msg, field=f"weights.{name}", value=name, allowed=names)
