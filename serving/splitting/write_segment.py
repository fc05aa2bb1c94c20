"""Writes one segment as a snapshot.

Its program, its own weights only, and a manifest that names the unsplit snapshot.
"""

from pathlib import Path

import torch
from safetensors import safe_open

from ipnext import __version__
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.value import canonical_json
from serving.engines.torch.engine import ENGINE
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE
from serving.snapshots.directory import artifact_file, write_last
from serving.splitting.emit.segment_program import SegmentDocument
from serving.splitting.split_plan import SplitPlan
from serving.weights.tensor_file import write_tensors


def write_segment(plan: SplitPlan, name: str, source: Path, target: Path, *, parent: SnapshotManifest) -> None:
    """Write the segment `name` of the snapshot in `source` into the new directory `target`."""
    segment = SegmentDocument(plan.whole, plan.whole.cuts[name])
    document = segment.document()
    target.mkdir()
    keys = sorted({place["key"] for place in document["tensors"].values()})
    with safe_open(source / WEIGHTS_FILE, framework="pt") as weights:
        write_tensors({key: weights.get_tensor(key) for key in keys}, target / WEIGHTS_FILE)
    (target / PROGRAM_FILE).write_text(canonical_json(document))
    manifest = SnapshotManifest(
        engine=ENGINE,
        signature=segment.signature(),
        files=tuple(artifact_file(target / file) for file in (PROGRAM_FILE, WEIGHTS_FILE)),
        producer={"ipnext": __version__, "torch": str(torch.__version__)},
        parent=parent.digest,
    )
    write_last(target / SNAPSHOT_FILE, canonical_json(manifest))
