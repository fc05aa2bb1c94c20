"""Cuts the snapshots of a generation as the manifest's split says, into the layout of the generation.

First that which the steps without hardware kinds led to. Its parts decide where the modules of the derivatives for
single hardware kinds go: each of these is cut into the same parts, segments and tensors, or it is refused.

Called by the optimization activities.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from activities.optimization.kind_cuts import CutSources, KnownCuts, check_parts, find_others
from activities.optimization.split_process import CutRefused, Cutter
from activities.runtime.deadline import beat
from activities.runtime.scratch import scratch_directory
from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.model.fleet import HardwareOption
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.split import MOST_HOSTED_PARTS, SplitPolicy, options_of
from ipnext.model.registry.registry import (
    KindCut,
    LayoutPart,
    Segment,
    Snapshot,
    SnapshotManifest,
    SnapshotSource,
    SplitLayout,
)
from ipnext.store.registry.artifacts import sizes_of
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from serving.splitting.report import FORM, PartReport, SplitReport


class Splitter:
    """Makes the layouts of generations. `cutter` splits a snapshot in a process of its own."""

    def __init__(self, store: Store, artifacts: ArtifactStore, cutter: Cutter) -> None:
        self._store = store
        self._artifacts = artifacts
        self._cutter = cutter

    def split(self, stage: StageInput, spec: ModelSpec) -> tuple[SplitLayout | None, bool]:
        """Return the layout of a generation, and whether any of it is cut now. None without a split.

        What was cut before of the same bytes by the same policy is used again. Raises CutRefused.
        """
        if spec.split is None:
            return None, False
        with self._store.read() as repository:
            generation = repository.generation(stage.model, stage.generation)
            sources = CutSources.of(repository, generation)
            known = KnownCuts.of(repository, generation, sources, cut=spec.split.cut_digest, form=FORM)
        layout = known.layout or self._cut_default(stage, spec, spec.split, sources.default)
        cuts = dict(known.kinds)
        for snapshot, kinds in sources.grouped():
            if snapshot.digest in cuts:
                self._use_again(stage, cuts[snapshot.digest], kinds)
            else:
                cuts[snapshot.digest] = self._cut_derivative(stage, spec.split, layout, snapshot, kinds)
        by_hardware = {kind: cuts[snapshot.digest] for kind, snapshot in sources.by_kind.items()}
        is_new = known.layout is None or len(cuts) > len(known.kinds)
        return layout.model_copy(update={"by_hardware": by_hardware}), is_new

    def _cut_default(self, stage: StageInput, spec: ModelSpec, policy: SplitPolicy, source: Snapshot) -> SplitLayout:
        with self._cut(source, policy) as (report, out):
            if len(report.parts) > MOST_HOSTED_PARTS:
                msg = f"it makes {len(report.parts)} parts; allowed: {MOST_HOSTED_PARTS}"
                raise CutRefused(Reason.SPLIT_REFUSED, msg)
            sources = {segment.name: self._ingest(out / segment.name) for segment in report.segments}
        with self._store.begin(stage.model) as repository:
            return _layout(
                repository, source, report, sources, cut=policy.cut_digest, whole=_options(spec, source.part)
            )

    def _cut_derivative(
        self, stage: StageInput, policy: SplitPolicy, layout: SplitLayout, source: Snapshot, kinds: Sequence[str]
    ) -> KindCut:
        """Cut a derivative into the parts of a layout. Segments with the contents of the layout's get no number."""
        with self._store.read() as repository:
            known = {name: repository.snapshot(stage.model, name, number) for name, number in layout.numbers.items()}
        subject = f"snapshot {source.number} of {source.part}, derived for {', '.join(kinds)}"
        with self._cut(source, policy.assigning({part.name: part.modules for part in layout.parts})) as (report, out):
            check_parts(subject, layout, report)
            sources = {segment.name: self._ingest(out / segment.name) for segment in report.segments}
        others = find_others(subject, {name: one.manifest for name, one in known.items()}, sources)
        with self._store.begin(stage.model) as repository:
            numbers = {
                name: repository.add_segment(stage.model, name, found, hardware=kinds).number
                for name, found in sorted(others.items())
            }
        return KindCut(digest=source.digest, segments=numbers)

    def _use_again(self, stage: StageInput, cut: KindCut, kinds: Sequence[str]) -> None:
        with self._store.begin(stage.model) as repository:
            for name, number in cut.segments.items():
                repository.add_hardware(repository.snapshot(stage.model, name, number), kinds)

    @contextmanager
    def _cut(self, source: Snapshot, policy: SplitPolicy) -> Iterator[tuple[SplitReport, Path]]:
        """Yield the report of a cut, and the directory with its segments, until the context ends."""
        with scratch_directory("cut") as scratch:
            beat("fetching the snapshot")
            whole = self._artifacts.fetch(source.uri, scratch / "whole")
            out = scratch / "parts"
            yield self._cutter(whole, policy, out, beat), out

    def _ingest(self, directory: Path) -> SnapshotSource:
        beat(f"storing {directory.name}")
        return ingest_directory(self._artifacts, directory, announce=self._touch)

    def _touch(self, manifest: SnapshotManifest) -> None:
        """Protect a segment's blobs that are already in the artifact store from garbage collection."""
        with self._store.begin_free(()) as repository:
            repository.touch_artifacts(sizes_of(manifest))


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
        digest=source.digest,
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
