"""Runs the pipeline of a manifest on a generation: each step derives a snapshot in a process of its own.

A finished step is stored with what it derived, by the digest of its source and its recipe: the same step on the same
bytes is not repeated, neither by another attempt at the activity nor for another generation.

Called by the optimization activities.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from activities.optimization.branches import Ends, derive_branches, read_ends
from activities.optimization.step_process import Deriver, StepRefused, StepSource
from activities.runtime.deadline import beat
from activities.runtime.scratch import scratch_directory
from ipnext import __version__
from ipnext.artifacts.native_code import SIGNING_SETTING, LibrarySigner
from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import InvalidInput, Unavailable
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.registry.optimization import FORM_OF_QUANTIZED, REPLAY_FILE, AccuracyReport, Derivatives
from ipnext.model.registry.registry import Generation, Snapshot, SnapshotManifest
from ipnext.model.value import digest_of
from ipnext.optimization_kinds import OptimizationKinds
from ipnext.store.registry.artifacts import sizes_of
from ipnext.store.store import Store
from serving.compiling.compiler import compiler_version

EVENT = "Optimized"
"""Kind of the event of a finished step."""
KEPT = "keep"
BY_CHANCE = "maxLatencyRatio"
"""The limit that the machine decides, too: such a refusal is judged again."""

Tools = Callable[[str], Mapping[str, str]]
"""Returns the tools of a kind of step, with their versions. Raises InvalidInput for an unknown kind."""


class LimitBroken(Exception):
    """A step broke a limit, and its manifest refuses that."""

    reason = Reason.ACCURACY_LOST

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class NotDerivable(LimitBroken):
    """A step does not fit its snapshot."""

    reason = Reason.OPTIMIZATION_REFUSED


@dataclass(frozen=True, slots=True)
class StepPlace:
    """A step in its pipeline."""

    step: OptimizationStep
    number: int
    of: int
    hardware: Sequence[str] = ()
    """Kinds that it derives for; empty: all of the part."""

    @property
    def name(self) -> str:
        """For a person."""
        return f"step {self.number} of {self.of}, {self.step.kind}"

    def subject(self, part: str) -> str:
        """Return the part that it derives from, with its kinds, for a person."""
        return f"{part} on {', '.join(self.hardware)}" if self.hardware else part


class Pipeline:
    """Derives the snapshots of generations."""

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        deriver: Deriver,
        tools: Tools,
        signer: LibrarySigner | None = None,
    ) -> None:
        self._store = store
        self._artifacts = artifacts
        self._deriver = deriver
        self._tools = tools
        self._signer = signer

    def run(self, stage: StageInput, spec: ModelSpec, generation: Generation) -> Derivatives | None:
        """Run all steps, and store the derived snapshots with the generation. None without a pipeline.

        Raises LimitBroken; ToolEnded if a process was killed; Unavailable if a derived snapshot was collected just now.
        """
        found = read_ends(spec, self._derive_all(stage, spec, generation))
        with self._store.begin(stage.model) as repository:
            gone = repository.collected_snapshots(stage.model)
            if found is not None and gone & found.named:
                msg = "snapshots that were derived before were collected just now; they are derived again"
                raise Unavailable(msg)
            repository.set_derived(stage.model, stage.generation, found)
        return found

    def _derive_all(self, stage: StageInput, spec: ModelSpec, generation: Generation) -> Ends:
        def derive(index: int, source: Snapshot, hardware: Sequence[str]) -> Snapshot | None:
            place = StepPlace(spec.optimization[index], index + 1, len(spec.optimization), hardware)
            return self._derive(stage, place, source)

        return derive_branches(spec, lambda part: self._snapshot(stage.model, part, generation.snapshots[part]), derive)

    def _derive(self, stage: StageInput, place: StepPlace, source: Snapshot) -> Snapshot | None:
        """Return the snapshot that a step derives; None if it broke a limit and keeps what it was given."""
        recipe = self._recipe(place.step)
        with self._store.read() as repository:
            known = repository.derivation(source.model, source.part, source.digest, recipe)
        if known is None:
            report, made = self._perform(stage, place, source, recipe)
        else:
            report, made = known.report, known.snapshot
        figures = _describe(report, again=known is not None)
        told = f"generation {stage.generation}: {place.name} of {place.subject(source.part)}: {figures}"
        with self._store.begin(stage.model) as repository:
            if known is not None and made is not None:
                repository.add_hardware(made, place.hardware)
            if all(event.message != told for event in repository.events(stage.model, limit=50)):
                repository.add_event(stage.model, EVENT, told)
        if report.broken and place.step.spec.on_refusal != KEPT:
            msg = f"{place.step.kind} of {place.subject(source.part)}: {'; '.join(report.broken)}"
            raise LimitBroken(msg)
        return made

    def _recipe(self, step: OptimizationStep) -> str:
        """Return the digest of all that determines what a step derives.

        NotDerivable if no key signs a library, or if this worker lacks the kind's package.
        """
        try:
            tools = self._tools(step.kind)
        except InvalidInput as error:
            msg = f"{step.kind}: {error.message}"
            raise NotDerivable(msg) from error
        parts: dict[str, Any] = {"step": step.bare.model_dump(mode="json", by_alias=True), "tools": tools}
        if step.compile is not None:
            if self._signer is None:
                msg = f"compile: hosts run signed libraries only, and workers have no key: {SIGNING_SETTING} is not set"
                raise NotDerivable(msg)
            parts["signer"] = self._signer.key_id
        return digest_of(parts)

    def _perform(
        self, stage: StageInput, place: StepPlace, source: Snapshot, recipe: str
    ) -> tuple[AccuracyReport, Snapshot | None]:
        with self._fetched(place, source) as (given, scratch):
            out = scratch / "derived"
            try:
                report = self._deriver(given, place.step.bare, out, lambda text: beat(f"{place.name}: {text}"))
            except StepRefused as error:
                subject = place.subject(source.part)
                msg = f"{place.step.kind} of {subject}: {error.message.removeprefix(f'{place.step.kind}: ')}"
                raise NotDerivable(msg) from error
            beat(f"{place.name}: storing")
            made = None if report.broken else ingest_directory(self._artifacts, out, announce=self._touch)
            if made is not None and place.step.compile is not None and self._signer is not None:
                self._artifacts.put_signature(made.manifest.digest, self._signer.sign(made.manifest.digest))
        by_chance = any(line.startswith(BY_CHANCE) for line in report.broken)
        with self._store.begin(stage.model) as repository:
            return report, repository.add_derivation(
                source, recipe, report, made, hardware=place.hardware, is_repeated=by_chance
            )

    @contextmanager
    def _fetched(self, place: StepPlace, source: Snapshot) -> Iterator[tuple[StepSource, Path]]:
        """Fetch a step's source, and the published snapshot if its replay set is not there."""
        with scratch_directory("step") as scratch:
            beat(f"{place.name}: fetching the snapshot")
            snapshot = self._artifacts.fetch(source.uri, scratch / "source")
            whole = snapshot
            if source.derived_from is not None:
                published = self._snapshot(source.model, source.part, source.derived_from)
                whole = self._artifacts.fetch(published.uri, scratch / "published")
            replay = whole / REPLAY_FILE
            yield StepSource(snapshot, replay if replay.is_file() else None), scratch

    def _snapshot(self, model: str, part: str, number: int) -> Snapshot:
        with self._store.read() as repository:
            return repository.snapshot(model, part, number)

    def _touch(self, manifest: SnapshotManifest) -> None:
        """Protect a snapshot's blobs that are already in the artifact store from garbage collection."""
        with self._store.begin_free(()) as repository:
            repository.touch_artifacts(sizes_of(manifest))


def _describe(report: AccuracyReport, *, again: bool) -> str:
    broken = f"; broken: {'; '.join(report.broken)}" if report.broken else ""
    return report.summary + broken + (" (derived before)" if again else "")


def tools_of_kind(name: str) -> Mapping[str, str]:
    """Return the tools of a kind of step, with their versions, without importing any."""
    torch = {"torch": version("torch")}
    if name == "quantize":
        return {"ipnext": __version__, "quantize": str(FORM_OF_QUANTIZED), **torch}
    if name == "compile":
        return {"ipnext": __version__, "compiler": compiler_version(), **torch}
    return {"ipnext": __version__, **torch, **OptimizationKinds().versions_of(name)}
