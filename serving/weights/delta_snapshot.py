"""The files of a delta snapshot in memory: read by hosts and `ipnext delta`, written by serving.deltas.export."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ipnext import __version__
from ipnext.errors import LoadFailed
from ipnext.model.registry.delta import ROWS, VALUES, WHOLE, ChangedTensor, DeltaDocument
from ipnext.model.registry.registry import DELTA_FILE, DELTA_WEIGHTS_FILE, SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.value import canonical_json
from serving.snapshots.directory import artifact_file, write_last
from serving.weights.row_changes import Rows
from serving.weights.tensor_file import write_tensors


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """The changes: some rows of a tensor, or the whole tensor. Keys are names in the parent's weights."""

    document: DeltaDocument
    rows: Mapping[str, Rows]
    whole: Mapping[str, torch.Tensor]

    @property
    def changed_rows(self) -> int:
        """Changed rows over all tensors."""
        return sum(tensor.rows for tensor in self.document.tensors.values())


def read_document(directory: Path) -> DeltaDocument:
    """Read a delta's document. LoadFailed."""
    try:
        return DeltaDocument.model_validate_json((directory / DELTA_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        msg = f"{DELTA_FILE} of {directory.name} cannot be read: {type(error).__name__}: {error}"
        raise LoadFailed(msg) from error


def read_delta(directory: Path) -> Delta:
    """Read the delta in a directory whose files are checked. LoadFailed if its two files do not match."""
    document = read_document(directory)
    try:
        tensors = load_file(directory / DELTA_WEIGHTS_FILE)
        whole = {key: tensors.pop(WHOLE + key) for key, each in document.tensors.items() if each.whole}
        partly = document.tensors.keys() - whole.keys()
        rows = {key: Rows(tensors.pop(ROWS + key), tensors.pop(VALUES + key)) for key in sorted(partly)}
    except (OSError, KeyError, SafetensorError) as error:
        msg = f"{directory.name} is no delta snapshot: {type(error).__name__}: {error}"
        raise LoadFailed(msg) from error
    if tensors:
        msg = f"{DELTA_WEIGHTS_FILE} holds {sorted(tensors)}, which {DELTA_FILE} does not name"
        raise LoadFailed(msg)
    for key, each in rows.items():
        _check_rows(key, each, document.tensors[key])
    return Delta(document, rows, whole)


def _check_rows(key: str, rows: Rows, told: ChangedTensor) -> None:
    indices = rows.indices
    fits = indices.dtype == torch.int64 and indices.shape == (told.rows,) and rows.values.shape[:1] == (told.rows,)
    if not fits or (told.rows and (indices[0] < 0 or not bool((indices[1:] > indices[:-1]).all()))):
        msg = f"tensor {key!r} of the delta: needs {told.rows} ascending int64 indices from 0 on, and a row for each"
        raise LoadFailed(msg)


def write_delta(delta: Delta, draft: Path, *, parent: SnapshotManifest) -> SnapshotManifest:
    """Write the three files of a delta snapshot; its program and signature are the parent's."""
    tensors = {WHOLE + key: tensor.contiguous() for key, tensor in delta.whole.items()}
    for key, rows in delta.rows.items():
        tensors |= {ROWS + key: rows.indices.contiguous(), VALUES + key: rows.values.contiguous()}
    write_tensors(tensors, draft / DELTA_WEIGHTS_FILE)
    (draft / DELTA_FILE).write_text(canonical_json(delta.document))
    manifest = SnapshotManifest(
        engine=parent.engine,
        signature=parent.signature,
        files=tuple(artifact_file(draft / name) for name in (DELTA_FILE, DELTA_WEIGHTS_FILE)),
        producer={"ipnext": __version__, "torch": str(torch.__version__)},
        parent=parent.digest,
    )
    write_last(draft / SNAPSHOT_FILE, canonical_json(manifest))
    return manifest
