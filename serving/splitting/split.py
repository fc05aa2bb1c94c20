"""Splits a snapshot by a policy. Called by the command `ipnext split` and by the optimization of a publish."""

import json
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from ipnext.errors import InvalidInput, IPnextError
from ipnext.model.manifest.split import SplitPolicy
from ipnext.model.registry.registry import SnapshotManifest
from serving.engines.base import LoadedPart
from serving.engines.torch.engine import ENGINE
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE, read_document
from serving.snapshots.directory import check_directory, verify_manifest, write_last
from serving.splitting.check.comparison import Drawn, SplitModel, compare, load
from serving.splitting.check.ranges import ranges_of
from serving.splitting.check.sample_requests import Examples, Request, RequestSampler
from serving.splitting.ir.program import Program
from serving.splitting.report import SplitReport
from serving.splitting.split_plan import plan_split
from serving.splitting.write_segment import write_segment

GRAPH_FILE: Final = "graph.json"
REPORT_FILE: Final = "split.json"


def split_snapshot(
    directory: Path,
    policy: SplitPolicy,
    *,
    out: Path | None = None,
    verify: bool = False,
    examples: Path | None = None,
) -> SplitReport:
    """Split the snapshot in `directory`; with `verify`, run both and compare every bit at batch 1, 2, 64 and 257.

    `out`, which must not exist or be empty, gets a snapshot per segment, the graph and this report, but only if they
    were compared and are equal. `examples` is a safetensors file of named inputs to draw the requests from.
    InvalidInput if the policy does not fit the model.
    """
    manifest = read_manifest(directory)
    program = read_split_program(directory)
    plan = plan_split(program, policy)
    report = plan.report(manifest)
    if out is None and not verify:
        return report
    with _place(out) as draft:
        for name in plan.segments:
            write_segment(plan, name, directory, draft / name, parent=manifest)
        report = verify_split(report, program, directory, draft, examples=examples)
        if out is not None and report.is_equal:
            (draft / REPORT_FILE).write_text(report.model_dump_json(by_alias=True))
            write_last(draft / GRAPH_FILE, report.graph.model_dump_json())
            draft.rename(check_directory(out))
    return report


def verify_split(
    report: SplitReport, program: Program, directory: Path, split: Path, *, examples: Path | None = None
) -> SplitReport:
    """Return the report with the comparison of `directory` with the segments in `split`."""
    unsplit = load(directory)
    drawn: Drawn = (
        Examples(unsplit.signature, examples)
        if examples is not None
        else RequestSampler(unsplit.signature, ranges_of(program), partial(_answers, unsplit))
    )
    found = compare(unsplit, SplitModel(report.graph, split), drawn)
    equal = {str(batch): same for batch, same in found.equal.items()}
    return report.model_copy(update={"bit_equal": equal, "differences": found.differences})


def _answers(part: LoadedPart, request: Request) -> bool:
    """Whether the snapshot accepts a request; it refuses indices out of range."""
    try:
        part.infer({name: tensor.data for name, tensor in request.items()})
    except IPnextError:
        return False
    return True


def read_manifest(directory: Path) -> SnapshotManifest:
    """Return the manifest of a complete, undamaged snapshot of the torch engine. InvalidInput or an ArtifactError."""
    manifest = verify_manifest(directory)
    if manifest.is_delta:
        msg = (
            f"directory: {str(directory)!r} is a delta; `ipnext delta --apply` writes the full snapshot, "
            "which can be split"
        )
        raise InvalidInput(msg, field="directory", value=str(directory))
    if manifest.engine != ENGINE:
        msg = f"directory: the snapshot is for engine {manifest.engine!r}; only those of engine {ENGINE!r} can be split"
        raise InvalidInput(msg, field="directory", value=manifest.engine, allowed=(ENGINE,))
    return manifest


def read_split_program(directory: Path) -> Program:
    """Read the program of a snapshot."""
    return Program(read_document(directory / PROGRAM_FILE), _key_bytes(directory / WEIGHTS_FILE))


def _key_bytes(path: Path) -> dict[str, int]:
    """Return the bytes of each tensor, from the header of a safetensors file."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    ends = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: end - start for name, (start, end) in ends.items()}


@contextmanager
def _place(out: Path | None) -> Iterator[Path]:
    """Yield a directory next to `out`, so that it can be renamed, or a temporary one.

    It is removed at the end unless renamed.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="ipnext-split-") as place:
            yield Path(place)
        return
    check_directory(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as place:
        draft = Path(place) / "split"
        draft.mkdir()
        yield draft
