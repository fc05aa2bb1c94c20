"""Derives a snapshot from a snapshot by one step, or by a pipeline, and judges each against what it was derived from.

Called by the command `ipnext optimize`, and by the process of a step that a worker starts.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from ipnext.errors import InvalidInput
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.registry.optimization import REPLAY_FILE, REPORT_FILE, AccuracyReport, Measured
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.registry.snapshot_files import ENGINE_FILES, check_files
from ipnext.model.value import Value, canonical_json
from ipnext.names import LIBRARY_FILE
from serving.engines.torch.engine import ENGINE
from serving.engines.torch.program import WEIGHTS_FILE
from serving.optimizing.judge import Judgement, broken_limits, judge
from serving.optimizing.kinds import find_kind, tools_of
from serving.snapshots.directory import artifact_file, check_directory, write_last
from serving.splitting.split import read_manifest

KEPT: Final = "keep"


class PipelineReport(Value):
    """Reports of a pipeline's steps, in their order."""

    steps: tuple[AccuracyReport, ...] = Field(min_length=1)
    snapshot: str | None = None
    """Digest of the derived snapshot; None if nothing was written."""
    refused: bool = False
    """Whether a step broke a limit and its `onRefusal` is `refuse`."""


@dataclass(frozen=True, slots=True)
class Derived:
    """Outcome of a step: its report, and the snapshot's manifest; None if a limit is broken."""

    report: AccuracyReport
    manifest: SnapshotManifest | None


def optimize_snapshot(
    directory: Path, steps: Sequence[OptimizationStep], out: Path | None = None, *, replay: Path | None = None
) -> PipelineReport:
    """Run a pipeline on the snapshot in `directory`, and write the last derived one to `out`.

    `out` must not exist or be empty. `replay` is a safetensors file; left out: the snapshot's own, else requests are
    drawn. A step that breaks a limit ends the pipeline, or keeps what it was given. InvalidInput if a step does not fit
    the snapshot.
    """
    if out is not None:
        check_directory(out)
        out.parent.mkdir(parents=True, exist_ok=True)
    given = replay if replay is not None else own_replay(directory)
    reports: list[AccuracyReport] = []
    with _scratch(out) as scratch:
        source, last = directory, None
        for number, step in enumerate(steps):
            target = scratch / str(number)
            found = derive_snapshot(source, step, target, replay=given)
            reports.append(found.report)
            if found.manifest is not None:
                source, last = target, found.manifest
            elif step.spec.on_refusal != KEPT:
                return PipelineReport(steps=tuple(reports), refused=True)
        if out is not None and last is not None:
            source.rename(check_directory(out))
    return PipelineReport(steps=tuple(reports), snapshot=last and last.digest)


def derive_snapshot(directory: Path, step: OptimizationStep, out: Path, *, replay: Path | None) -> Derived:
    """Run one step on the snapshot in `directory`, and write the derived one to `out` if it keeps every limit.

    `replay` is a safetensors file; None: requests are drawn. InvalidInput if the step does not fit the snapshot.
    """
    source = read_manifest(directory)
    kind = find_kind(step.kind)
    kind.check(step.settings)
    check_directory(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent, ignore_cleanup_errors=True) as place:
        draft = Path(place) / "derived"
        draft.mkdir()
        tools = tools_of(kind)
        details = kind.derive(directory, step.settings, draft)
        made = _manifest(source, draft, step, tools)
        figures = judge((directory, source), (draft, made), step.spec, replay)
        weights = Measured(before=_size(directory / WEIGHTS_FILE), after=_size(draft / WEIGHTS_FILE))
        report = _report(source, step, tools, details, weights, figures)
        report = report.model_copy(update={"broken": broken_limits(step.spec, report)})
        if report.broken:
            return Derived(report, None)
        (draft / REPORT_FILE).write_text(canonical_json(report))
        manifest = _manifest(source, draft, step, tools)
        write_last(draft / SNAPSHOT_FILE, canonical_json(manifest))
        draft.chmod(0o755)
        draft.rename(check_directory(out))
    return Derived(report, manifest)


def own_replay(directory: Path) -> Path | None:
    """Return the replay set of a snapshot; None if it has none."""
    return directory / REPLAY_FILE if (directory / REPLAY_FILE).is_file() else None


def _manifest(
    source: SnapshotManifest, draft: Path, step: OptimizationStep, tools: Mapping[str, str]
) -> SnapshotManifest:
    """Return the manifest of what a step wrote. InvalidInput for a file that such a snapshot may not have."""
    manifest = SnapshotManifest(
        engine=source.engine,
        signature=source.signature,
        files=tuple(artifact_file(file) for file in sorted(draft.iterdir()) if file.is_file()),
        producer={**tools, "step": step.kind},
        parent=source.digest,
    )
    if step.compile is None and any(file.path == LIBRARY_FILE for file in manifest.files):
        msg = (
            f"{step.kind}: it wrote {LIBRARY_FILE}; the platform runs native code only with a signature by a key of "
            "its operator: compile and sign the snapshot before it is published (`ipnext compile`, `ipnext sign`)"
        )
        raise InvalidInput(msg, field=step.kind)
    check_files(manifest, ENGINE_FILES[ENGINE])
    return manifest


def _report(
    source: SnapshotManifest,
    step: OptimizationStep,
    tools: Mapping[str, str],
    details: Any,
    weights: Measured,
    figures: Judgement,
) -> AccuracyReport:
    return AccuracyReport(
        kind=step.kind,
        settings=step.bare.spec.model_dump(mode="json", by_alias=True),
        parent=source.digest,
        tools=tools,
        details=details,
        weights_bytes=weights,
        replaced_bytes=_replaced(details) or weights,
        **{each.name: getattr(figures, each.name) for each in fields(figures)},
    )


def _replaced(details: Any) -> Measured | None:
    """Return the bytes of the tables that a step lists as replaced; None if it lists none."""
    tables = details.get("tables", ()) if isinstance(details, dict) else ()
    replaced = [table for table in tables if "kept" not in table]
    if not replaced:
        return None
    return Measured(before=sum(table["before"] for table in replaced), after=sum(table["after"] for table in replaced))


def _size(file: Path) -> int:
    return file.stat().st_size


@contextmanager
def _scratch(out: Path | None) -> Iterator[Path]:
    """Yield a directory next to `out`, so that what is in it can be renamed, or a temporary one."""
    where = None if out is None else out.parent
    with tempfile.TemporaryDirectory(prefix=".ipnext-optimize-", dir=where, ignore_cleanup_errors=True) as place:
        yield Path(place)
