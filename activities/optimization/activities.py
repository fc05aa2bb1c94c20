"""Optimization: derives the snapshots that serve from the published ones, and splits them, as the manifest requests.

The pipeline runs first (`activities.optimization.pipeline`). The segments of a split go to the artifact store as
separate snapshots, whose parent is the snapshot that was split, and the layout goes to the generation: later serving,
planning and status of the generation use its layout.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from temporalio import activity

from activities.optimization.memory import judge_derived
from activities.optimization.pipeline import EVENT, LimitBroken, Pipeline, Tools, tools_of_kind
from activities.optimization.split_process import CutRefused, Cutter, cut_in_process
from activities.optimization.step_process import Deriver, derive_in_process
from activities.runtime.deadline import beat
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.owner_turns import OwnerShares
from activities.state.memory_fit import MEMORY
from ipnext.artifacts.native_code import LibrarySigner
from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import SnapshotDenied, Unavailable
from ipnext.model.fleet import HardwareOption
from ipnext.model.lifecycle.changes.lifecycle_run import OptimizationResult, StageInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.split import MOST_HOSTED_PARTS, SplitPolicy, options_of
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import (
    Generation,
    LayoutPart,
    Segment,
    Snapshot,
    SnapshotManifest,
    SnapshotSource,
    SplitLayout,
)
from ipnext.platform.publication import check_denial
from ipnext.store.registry.artifacts import sizes_of
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from serving.splitting.report import FORM, PartReport, SplitReport

LOOKED_AT = 50
"""Newest split generations that are searched for one of the same bytes."""


class OptimizationActivities:
    """Optimization activities, on the store and the artifact store.

    `cutter` replaces the process that splits, `deriver` that of a step; `tools` returns the versions of its tools.
    `signer` signs what the step `compile` derives. `shares`: of the slots that owners' work holds.
    """

    def __init__(  # noqa: PLR0913 - one for each port
        self,
        store: Store,
        artifacts: ArtifactStore,
        *,
        cutter: Cutter = cut_in_process,
        deriver: Deriver = derive_in_process,
        tools: Tools = tools_of_kind,
        signer: LibrarySigner | None = None,
        shares: OwnerShares | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._cutter = cutter
        self._pipeline = Pipeline(store, artifacts, deriver, tools, signer)
        self._shares = shares or OwnerShares()

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.optimize_generation,)

    @activity.defn(name="optimize_generation", no_thread_cancel_exception=True)
    @of_a_step
    def optimize_generation(self, stage: StageInput) -> OptimizationResult:
        """Give a generation the derived snapshots and the layout that the manifest requests.

        One that has served keeps both. What the same step or policy made of the same bytes before, for whatever
        generation, is used again.
        Raises ShareTaken if other work of the owner holds its share of the slots.
        """
        with self._store.read() as repository:
            record = repository.model(stage.model)
            generation = repository.generation(stage.model, stage.generation)
        if generation.serving_at:
            return self._keep(stage, generation.layout, again=True)
        manifest, revision = (
            record.judged_manifest,
            record.validated.revision if record.validated else record.generation,
        )
        try:
            with self._shares.hold(manifest.metadata.owner):
                self._pipeline.run(stage, manifest.spec, generation)
                if (oversized := judge_derived(self._store, stage, manifest.spec)) is not None:
                    told = f"{oversized.subject}: {oversized.message}"
                    return self._refuse(stage, MEMORY, oversized.reason, told, revision)
                return self._split(stage, manifest.spec)
        except LimitBroken as error:
            return self._refuse(stage, "optimization", error.reason, error.message, revision)
        except CutRefused as error:
            return self._refuse(stage, "split", error.reason, error.message, revision)
        except SnapshotDenied as error:
            return self._refuse(stage, "denied", Reason.SNAPSHOT_DENIED, error.message, revision)

    def _split(self, stage: StageInput, spec: ModelSpec) -> OptimizationResult:
        """Give a generation its layout."""
        with self._store.read() as repository:
            generation = repository.generation(stage.model, stage.generation)
            source = _source(repository, generation)
            known = _find_layout(repository, spec, generation, source)
        if known is not None or spec.split is None:
            return self._keep(stage, known, again=True)
        return self._split_snapshot(stage, spec, spec.split, source)

    def _split_snapshot(
        self, stage: StageInput, spec: ModelSpec, policy: SplitPolicy, source: Snapshot
    ) -> OptimizationResult:
        with tempfile.TemporaryDirectory(prefix="ipnext-cut-", ignore_cleanup_errors=True) as scratch:
            beat("fetching the snapshot")
            whole = self._artifacts.fetch(source.uri, Path(scratch) / "whole")
            out = Path(scratch) / "parts"
            report = self._cutter(whole, policy, out, beat)
            if len(report.parts) > MOST_HOSTED_PARTS:
                msg = f"it makes {len(report.parts)} parts; allowed: {MOST_HOSTED_PARTS}"
                raise CutRefused(Reason.SPLIT_REFUSED, msg)
            sources = {}
            for segment in report.segments:
                beat(f"storing {segment.name}")
                sources[segment.name] = ingest_directory(self._artifacts, out / segment.name, announce=self._touch)
        with self._store.begin(stage.model) as repository:
            layout = _layout(
                repository, source, report, sources, cut=policy.cut_digest, whole=_options(spec, source.part)
            )
        return self._keep(stage, layout, again=False)

    def _touch(self, manifest: SnapshotManifest) -> None:
        """Protect a segment's blobs that are already in the artifact store from garbage collection."""
        with self._store.begin_free(()) as repository:
            repository.touch_artifacts(sizes_of(manifest))

    def _keep(self, stage: StageInput, layout: SplitLayout | None, *, again: bool) -> OptimizationResult:
        summary = "" if layout is None else _describe_layout(layout) + (" (cut before)" if again else "")
        with self._store.begin(stage.model) as repository:
            before = repository.generation(stage.model, stage.generation).layout
            if layout is not None and repository.collected_snapshots(stage.model) & _segments(layout):
                msg = "segments that were cut before were collected just now; they are cut again"
                raise Unavailable(msg)
            repository.set_layout(stage.model, stage.generation, layout)
            _check_denials(repository, repository.generation(stage.model, stage.generation))
            derived = repository.generation(stage.model, stage.generation).derived
            if before != layout:
                repository.add_event(stage.model, "Split", f"generation {stage.generation}: {summary or 'not cut'}")
        told = "; ".join(text for text in (_describe_derived(derived), summary) if text)
        return OptimizationResult(parts=len(layout.parts) if layout else 0, summary=told or "not cut")

    def _refuse(
        self, stage: StageInput, subject: str, reason: Reason, message: str, revision: int
    ) -> OptimizationResult:
        told = f"generation {stage.generation}: {subject}: {message}"
        with self._store.begin(stage.model) as repository:
            repository.set_condition(stage.model, ConditionType.VALIDATED, "False", reason, told)
            repository.refuse_revision(stage.model, revision)
            repository.add_event(stage.model, "Split" if subject == "split" else EVENT, told)
        return OptimizationResult(refused=True, reason=reason, summary=f"{subject}: {message}")


def _check_denials(repository: Repository, generation: Generation) -> None:
    """Check what was made of a generation that has not served: the validation saw the published snapshots.

    Raises SnapshotDenied.
    """
    if generation.serving_at is not None:
        return
    for part, number in sorted(generation.named):
        snapshot = repository.snapshot(generation.model, part, number)
        check_denial(repository, snapshot.manifest, f"snapshot {number} of {generation.model}.{part}")


def _source(repository: Repository, generation: Generation) -> Snapshot:
    """Return the snapshot to split: a model that is split has one published part, which may be derived from."""
    return repository.snapshot(generation.model, *next(iter(generation.optimized.items())))


def _find_layout(
    repository: Repository, spec: ModelSpec, generation: Generation, source: Snapshot
) -> SplitLayout | None:
    """Return the layout of a generation of the same bytes, policy and layout format; None if there is none."""
    if spec.split is None:
        return None
    cut, gone = spec.split.cut_digest, repository.collected_snapshots(generation.model)
    for other in (generation, *repository.newest_cut(generation.model, limit=LOOKED_AT)):
        if other.layout is None or other.layout.cut != cut or other.layout.source != source.part:
            continue
        if gone & _segments(other.layout):
            continue
        if other.number != generation.number and other.layout.form != FORM:
            continue
        if _source(repository, other).digest == source.digest:
            return other.layout
    return None


def _segments(layout: SplitLayout) -> frozenset[tuple[str, int]]:
    """Return (name, snapshot) of all segments."""
    return frozenset((segment.name, segment.snapshot) for segment in layout.segments)


def _options(spec: ModelSpec, part: str) -> tuple[HardwareOption, ...]:
    """Return the hardware of the part that is split."""
    return next((own.hardware for own in spec.parts if own.name == part), spec.parts[0].hardware)


def _layout(
    repository: Repository,
    source: Snapshot,
    report: SplitReport,
    sources: Mapping[str, SnapshotSource],
    *,
    cut: str,
    whole: tuple[HardwareOption, ...],
) -> SplitLayout:
    """Convert the report to a layout, with the snapshot numbers that the store gives the segments."""
    numbers = {
        name: repository.add_segment(source.model, name, found).number for name, found in sorted(sources.items())
    }
    return SplitLayout(
        source=source.part,
        cut=cut,
        form=FORM,
        equal_at=tuple(sorted(int(batch) for batch in report.bit_equal)),
        parts=tuple(_part(part, report, numbers, options_of(part.hardware, whole)) for part in report.parts),
        graph=report.graph,
    )


def _part(
    part: PartReport, report: SplitReport, numbers: Mapping[str, int], hardware: tuple[HardwareOption, ...]
) -> LayoutPart:
    segments = (found for found in report.segments if found.part == part.name)
    return LayoutPart(
        name=part.name,
        modules=part.modules,
        size_bytes=part.bytes,
        hardware=hardware,
        segments=tuple(
            Segment(name=s.name, stage=s.stage, snapshot=numbers[s.name], size_bytes=s.bytes) for s in segments
        ),
    )


def _describe_derived(derived: Derivatives | None) -> str:
    if derived is None:
        return ""
    told = [f"{part} {number}" for part, number in sorted(derived.parts.items())]
    for kind, numbers in sorted(derived.by_hardware.items()):
        told += [f"{part} {number} on {kind}" for part, number in sorted(numbers.items())]
    return f"derived: {', '.join(told)}" if told else "nothing is derived: every step keeps what it was given"


def _describe_layout(layout: SplitLayout) -> str:
    parts = ", ".join(f"{part.name} {part.size_bytes} bytes" for part in layout.parts)
    batches = ", ".join(map(str, layout.equal_at))
    return f"{layout.source} is cut into {parts}; equal in every bit at batch {batches}"
