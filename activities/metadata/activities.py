"""Metadata: the generation of a change, whether its snapshots are all stored, and changes that were superseded."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from temporalio import activity

from activities.planning.drift import record_repair
from activities.runtime.failed_attempts import of_a_step
from activities.state.drained_fleet import leaves_loss
from ipnext.artifacts.port import ArtifactStore
from ipnext.errors import ArtifactDigestMismatch, ArtifactError, InvalidInput, Unavailable
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.change_stages import begin_stages, end_stage
from ipnext.model.lifecycle.changes.entity import SupersededInput
from ipnext.model.lifecycle.changes.lifecycle_run import ChangeBegun, Done, ProgressInput, ResolutionResult, StageInput
from ipnext.model.lifecycle.changes.stage_order import ComposedStage
from ipnext.model.lifecycle.failure_cause import STEPS, Cause, Place
from ipnext.model.lifecycle.stages import DEFAULT_STAGES
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.manifest.optimization import steps_digest
from ipnext.model.registry.registry import Generation, GenerationState, Snapshot
from ipnext.stages.kinds import StageKinds
from ipnext.store.operations.change_end import BRINGS_NEW, ROLLS_OUT, judge_again
from ipnext.store.records import ModelPlacement, ModelRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store

LACKING_ATTEMPTS = 5
"""Attempts to begin a change until a worker that has all of its stages takes it: some three seconds."""

NAMED = 10
"""Generations that an error names at most: the ones that served last."""


class MetadataActivities:
    """Metadata activities, on the store and the artifact store."""

    def __init__(self, store: Store, artifacts: ArtifactStore, stages: StageKinds | None = None) -> None:
        self._store = store
        self._artifacts = artifacts
        self._stages = stages or StageKinds()

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.begin_change, self.resolve_snapshots, self.mark_superseded)

    @activity.defn(name="begin_change", no_thread_cancel_exception=True)
    def begin_change(self, progress: ProgressInput) -> ChangeBegun:
        """Mark the change as running, and return its generation and manifest revision.

        A change that has ended is not begun again. A move to a placement that a newer plan has changed is superseded,
        and so is any change of a model that is retired, or was after the change had been requested.
        """
        with self._store.begin(progress.model) as repository:
            change, record = repository.change(progress.change_id), repository.model(progress.model)
            if change.state.final:
                return ChangeBegun(
                    generation=change.generation,
                    revision=record.generation,
                    final=change.state,
                    retired=record.retired,
                )
            if (why := _explain_retired(repository, change, record)) is not None:
                _supersede(repository, change, why)
                return ChangeBegun(revision=record.generation, final=ChangeState.SUPERSEDED, retired=record.retired)
            placed = repository.placement(progress.model)
            if change.kind is ChangeKind.MOVE and (placed is None or placed.plan_id != change.plan_id):
                message = "a newer plan places it otherwise"
                state = ChangeState.SUPERSEDED
                repository.update_change(change.id, state=state, reason=Reason.SUPERSEDED, message=message)
                record_repair(repository, progress.model)
                return ChangeBegun(generation=record.serving_generation, revision=record.generation, final=state)
            generation = _generation_of(repository, change, record)
            repository.update_change(change.id, state=ChangeState.RUNNING, run_id=progress.run_id)
            _write_beginning(repository, change, record, generation, progress.run_id)
            urgent = leaves_loss(repository, change)
            manifest = record.manifest if change.kind in ROLLS_OUT else record.in_force
            stages, misfit = (None, "") if urgent else self._order(change.kind, manifest.spec)
            order = stages or tuple(ComposedStage(name=name) for name in DEFAULT_STAGES[change.kind])
            repository.begin_stages(progress.model, change.id, begin_stages(order, repository.now()))
        return ChangeBegun(
            stages=stages,
            misfit=misfit,
            generation=generation,
            revision=record.generation,
            supply_patience_seconds=manifest.spec.rollout.wait_seconds,
            urgent=urgent,
            owner=manifest.metadata.owner or "",
            regions=tuple(sorted({item.region for item in manifest.spec.demand})),
        )

    def _order(self, kind: ChangeKind, spec: ModelSpec) -> tuple[tuple[ComposedStage, ...] | None, str]:
        """Return the stages of a change, and why they can't be composed.

        Raises Unavailable if this worker lacks a stage, for the first attempts: another worker may have it.
        """
        try:
            stages = self._stages.composed(kind, spec)
        except InvalidInput as error:
            return None, error.message
        lacking = [stage.lacking for stage in stages or () if stage.lacking]
        if lacking and activity.in_activity() and activity.info().attempt < LACKING_ATTEMPTS:
            msg = "; ".join(lacking)
            raise Unavailable(msg)
        return stages, ""

    @activity.defn(name="resolve_snapshots", no_thread_cancel_exception=True)
    @of_a_step
    def resolve_snapshots(self, stage: StageInput) -> ResolutionResult:
        """Check that every part's snapshot is in the artifact store, with the published manifest there."""
        with self._store.read() as repository:
            generation = repository.generation(stage.model, stage.generation)
            spec = repository.model(stage.model).manifest.spec
            placed = repository.placement(stage.model)
            parts = sorted(generation.named)
            snapshots = [repository.snapshot(stage.model, part, number) for part, number in parts]
        for snapshot in snapshots:
            try:
                self._check_stored(snapshot)
            except ArtifactError as error:
                self._note(stage, "False", Reason(error.code), error.message, part=snapshot.part)
                raise
        size = sum(snapshot.manifest.size_bytes for snapshot in snapshots)
        summary = ", ".join(f"{snapshot.part} {snapshot.number}" for snapshot in snapshots)
        optimizes = bool(
            spec.split is not None or generation.layout is not None or spec.optimization or generation.derived
        )
        cuts = generation.serving_at is None and optimizes
        places = needs_placement(placed, generation)
        skips = {*(() if cuts else ("optimization",)), *(() if places else _skipped_by(stage.kind))}
        self._note(stage, "True", Reason.SUCCEEDED, f"{summary}: {size} bytes", skips=skips)
        note = "" if cuts or stage.kind is not ChangeKind.APPLY else untaken(generation, spec)
        return ResolutionResult(
            parts=len(snapshots), size_bytes=size, summary=summary, cuts=cuts, places=places, note=note
        )

    @activity.defn(name="mark_superseded", no_thread_cancel_exception=True)
    def mark_superseded(self, superseded: SupersededInput) -> Done:
        """Record changes that will not run because newer ones superseded them."""
        with self._store.begin(superseded.model) as repository:
            for found in superseded.superseded:
                change = repository.change(found.change_id)
                if change.state.final:
                    continue
                _supersede(repository, change, f"change {found.by} is newer")
            judge_again(repository, superseded.model)
        return Done(note=f"{len(superseded.superseded)} superseded")

    def _check_stored(self, snapshot: Snapshot) -> None:
        stored = self._artifacts.manifest(snapshot.uri)
        if stored.digest != snapshot.digest:
            msg = f"{snapshot.part} snapshot {snapshot.number}: the store has {stored.digest}, not {snapshot.digest}"
            raise ArtifactDigestMismatch(msg)

    def _note(
        self,
        stage: StageInput,
        status: str,
        reason: Reason,
        message: str,
        *,
        part: str | None = None,
        skips: Collection[str] = (),
    ) -> None:
        text = f"generation {stage.generation}: {message}"
        with self._store.begin(stage.model) as repository:
            repository.set_condition(
                stage.model, ConditionType.RESOLVED, "True" if status == "True" else "False", reason, text
            )
            if status == "True":
                repository.note_stages(
                    stage.model, stage.change_id, lambda stages, at: end_stage(stages, "metadata", at, skips=skips)
                )
            place = Place(step=STEPS[ConditionType.RESOLVED], part=part)
            cause = Cause(change=stage.change_id, reason=reason, message=message, place=place) if part else None
            detail = cause.detail if cause is not None else None
            repository.add_event(stage.model, ConditionType.RESOLVED.value, text, detail=detail)


def _explain_retired(repository: Repository, change: Change, record: ModelRecord) -> str | None:
    """Explain which retirement a change would undo, if any."""
    if record.retired and change.kind is not ChangeKind.RETIRE:
        return "the model is retired"
    later = repository.retirement_since(change)
    return None if later is None else f"change {later} is newer"


def _supersede(repository: Repository, change: Change, message: str) -> None:
    """End a change that moves nothing, and the generation that it would bring."""
    repository.update_change(change.id, state=ChangeState.SUPERSEDED, reason=Reason.SUPERSEDED, message=message)
    if change.kind is ChangeKind.PUBLISH and change.generation is not None:
        repository.set_generation_state(change.model, change.generation, GenerationState.SUPERSEDED, message=message)
    repository.add_event(change.model, "Superseded", f"{change.kind} {change.id}: {message}")


def _skipped_by(kind: ChangeKind) -> tuple[str, ...]:
    """Return the stage that a change with parts in place leaves out: a rollback is not planned."""
    return ("planning",) if kind is ChangeKind.ROLLBACK else ()


def needs_placement(placed: ModelPlacement | None, generation: Generation) -> bool:
    """Check whether a rollback to a generation is planned first: nothing, or other parts, are placed."""
    return placed is None or placed.parts != set(generation.parts)


def untaken(generation: Generation, spec: ModelSpec) -> str:
    """Describe the parts of a new manifest that wait for a new generation.

    Another split or pipeline than the serving one's, a removed part or adapter.
    """
    now, wanted = generation.layout.cut if generation.layout else None, spec.split.cut_digest if spec.split else None
    told = [] if now == wanted else ["the changed spec.split is followed from the next publish on"]
    steps = generation.derived.steps if generation.derived else None
    if steps != steps_digest(spec.optimization):
        told.append("the changed spec.optimization is followed from the next publish on")
    if gone := sorted(set(generation.adapters) - set(spec.adapters)):
        told.append(
            f"generation {generation.number} keeps its adapter {', '.join(gone)}: it leaves with the next publish"
        )
    hosted = {part.name for part in spec.hosted_parts}
    if generation.layout is None and (lost := [part for part in generation.parts if part not in hosted]):
        told.append(
            f"generation {generation.number} keeps its part{'s' if len(lost) > 1 else ''} {', '.join(lost)}: "
            f"{'they leave' if len(lost) > 1 else 'it leaves'} with the next publish"
        )
    return "; ".join(told)


def _generation_of(repository: Repository, change: Change, record: ModelRecord) -> int | None:
    """Return the generation to serve: for an apply the serving one, else the newest published.

    Raises InvalidInput or NotFound.
    """
    if change.kind is ChangeKind.APPLY:
        newest = record.serving_generation or record.target_generation
        return newest or repository.newest_generation(record.name)
    if change.kind in {ChangeKind.MOVE, ChangeKind.RETIRE, ChangeKind.REPAIR}:
        return record.serving_generation
    if change.generation is None:
        msg = f"change {change.id}: a {change.kind} names its generation"
        raise InvalidInput(msg, field="generation")
    generation = repository.generation(record.name, change.generation)
    if change.kind is ChangeKind.ROLLBACK and generation.serving_at is None:
        served = [str(number) for number in repository.served_generations(record.name, limit=NAMED)]
        msg = f"generation {generation.number} has never served; a rollback may go to: {', '.join(served) or 'none'}"
        raise InvalidInput(msg, field="generation", value=generation.number, allowed=served)
    return generation.number


def _write_beginning(
    repository: Repository, change: Change, record: ModelRecord, generation: int | None, run_id: str
) -> None:
    """Record the state that users see while the change runs: no condition claims yet to hold for the new spec."""
    subject = f"{change.kind}" + (f" of generation {generation}" if generation else "")
    repository.add_event(record.name, "Started", f"{subject} began", run_id=run_id)
    if change.kind not in BRINGS_NEW or generation is None:
        return
    if change.kind is not ChangeKind.APPLY or record.serving_generation is None:
        repository.update_model(record.name, target_generation=generation)
    serving = f"; generation {record.serving_generation} serves" if record.serving_generation else ""
    repository.set_condition(
        record.name, ConditionType.UP_TO_DATE, "False", Reason.PROGRESSING, f"{subject} is under way{serving}"
    )
    if record.serving_generation is None:
        message = f"nothing serves: {subject} is under way"
        repository.set_condition(record.name, ConditionType.SERVING, "False", Reason.PROGRESSING, message)
    for condition in (ConditionType.RESOLVED, ConditionType.VALIDATED, ConditionType.PLANNED):
        repository.set_condition(record.name, condition, "Unknown", Reason.PENDING, f"generation {generation}")
    if change.kind is ChangeKind.ROLLBACK:
        for condition in (ConditionType.VALIDATED, ConditionType.PLANNED):
            message = f"generation {generation} has served before"
            repository.set_condition(record.name, condition, "True", Reason.SUCCEEDED, message)
