"""The answer of `ipnext delta`."""

from collections.abc import Mapping
from pathlib import Path

from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.value import Sha256, WrittenValue
from serving.deltas.lineage import OpenSnapshot
from serving.weights.delta_snapshot import read_delta


class TensorChange(WrittenValue):
    """One tensor that a delta changes. `rows`: those in the delta, out of `of`."""

    tensor: str
    rows: int
    of: int
    row_digest: str
    """Row digest of the result."""


class DeltaReport(WrittenValue):
    """Figures of a delta."""

    directory: str
    digest: Sha256
    parent: Sha256
    rows: int
    tensors: tuple[TensorChange, ...]
    bytes: int
    """Bytes of the delta's files."""
    full_bytes: int
    """Bytes of a full snapshot's files."""

    @property
    def ratio(self) -> float:
        """The delta's bytes divided by a full snapshot's."""
        return self.bytes / self.full_bytes


def report_of(directory: Path, manifest: SnapshotManifest, parent: OpenSnapshot) -> DeltaReport:
    """Compute the figures of a delta that was just written against `parent`."""
    delta = read_delta(directory)
    counts: Mapping[str, int] = {
        key: len(tensor) if tensor.dim() else 1 for key, tensor in parent.weights.tensors.items()
    }
    changes = tuple(
        TensorChange(tensor=key, rows=told.rows, of=counts[key], row_digest=told.after)
        for key, told in sorted(delta.document.tensors.items())
    )
    weights = sum(tensor.nbytes for tensor in parent.weights.tensors.values())
    return DeltaReport(
        directory=str(directory),
        digest=manifest.digest,
        parent=parent.manifest.digest,
        rows=delta.changed_rows,
        tensors=changes,
        bytes=manifest.size_bytes,
        full_bytes=weights + parent.program.stat().st_size,
    )
