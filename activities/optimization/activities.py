"""Optimization: derives the snapshots that serve from the published ones, and splits them, as the manifest requests.

The pipeline runs first (`activities.optimization.pipeline`). The segments of a split go to the artifact store as
separate snapshots, whose parent is the snapshot that was split, and the layout goes to the generation: later serving,
planning and status of the generation use its layout.
"""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from activities.optimization.memory import judge_derived
from activities.optimization.pipeline import EVENT, LimitBroken, Pipeline, Tools, tools_of_kind
from activities.optimization.split_process import CutRefused, Cutter, cut_in_process
from activities.optimization.splitter import Splitter
from activities.optimization.step_process import Deriver, derive_in_process
from activities.runtime.failed_attempts import of_a_step
from activities.runtime.owner_turns import OwnerShares
from activities.state.memory_fit import MEMORY
from ipnext.artifacts.native_code import LibrarySigner
from ipnext.artifacts.port import ArtifactStore
from ipnext.errors import SnapshotDenied, Unavailable
from ipnext.model.lifecycle.changes.change_stages import end_stage
from ipnext.model.lifecycle.changes.lifecycle_run import OptimizationResult, StageInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import Generation, SplitLayout
from ipnext.platform.publication import check_denial
from ipnext.store.repository import Repository
from ipnext.store.store import Store


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
        self._splitter = Splitter(store, artifacts, cutter)
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
        layout, is_new = self._splitter.split(stage, spec)
        return self._keep(stage, layout, again=not is_new)

    def _keep(self, stage: StageInput, layout: SplitLayout | None, *, again: bool) -> OptimizationResult:
        summary = "" if layout is None else _describe_layout(layout) + (" (cut before)" if again else "")
        with self._store.begin(stage.model) as repository:
            before = repository.generation(stage.model, stage.generation).layout
            if layout is not None and repository.collected_snapshots(stage.model) & layout.named:
                msg = "segments that were cut before were collected just now; they are cut again"
                raise Unavailable(msg)
            repository.set_layout(stage.model, stage.generation, layout)
            _check_denials(repository, repository.generation(stage.model, stage.generation))
            derived = repository.generation(stage.model, stage.generation).derived
            repository.note_stages(
                stage.model, stage.change_id, lambda stages, at: end_stage(stages, "optimization", at)
            )
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
    told = f"{layout.source} is cut into {parts}; equal in every bit at batch {batches}"
    for kind, cut in sorted(layout.by_hardware.items()):
        segments = ", ".join(f"{name} {number}" for name, number in sorted(cut.segments.items()))
        told += f"; on {kind}: {segments or 'the same segments'}"
    return told
