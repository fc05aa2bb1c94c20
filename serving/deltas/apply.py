"""A full snapshot from a delta and its parents, with all digests recomputed.

The files of the snapshot that a host serves.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.value import canonical_json
from serving.deltas.lineage import OpenSnapshot, apply_to_parent, open_snapshot
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE
from serving.snapshots.directory import artifact_file, check_directory, half_written, verify_manifest, write_last
from serving.weights.tensor_file import write_tensors


def apply_delta(parent: Path, delta: Path, directory: Path, *, bases: Sequence[Path] = ()) -> SnapshotManifest:
    """Write the full result of `delta` on `parent` into `directory`, which must not exist or be empty.

    Its files are those that `export_model` writes for the same module. The row digests of all changed tensors are
    recomputed over all their rows, before and after: LoadFailed if one differs from the delta's.
    """
    ground = open_snapshot(parent, bases)
    result = apply_to_parent(ground, delta, verify_manifest(delta))
    if result.delta is not None:
        ground.weights.check(result.delta.document, "before")
        result.weights.check(result.delta.document, "after")
    with half_written(check_directory(directory)) as draft:
        return _write(result, draft)


def _write(result: OpenSnapshot, draft: Path) -> SnapshotManifest:
    shutil.copyfile(result.program, draft / PROGRAM_FILE)
    write_tensors(result.weights.tensors, draft / WEIGHTS_FILE)
    manifest = result.manifest.model_copy(
        update={"files": tuple(artifact_file(draft / name) for name in (PROGRAM_FILE, WEIGHTS_FILE))}
    )
    write_last(draft / SNAPSHOT_FILE, canonical_json(manifest))
    return manifest
