"""One activity for all stages of a change before its transition, if they are short.

Each activity costs two round trips. A stage that would take long, has to wait, or fails is left to its separate
activity, with the time-outs and retries of that one.
"""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from activities.deployment.freeze_activities import FreezeActivities
from activities.metadata.activities import MetadataActivities
from activities.metadata.prefetch import SnapshotPrefetcher
from activities.planning.activities import PlanningActivities
from activities.runtime.deadline import beat
from activities.transition.activities import TransitionActivities
from activities.validation.activities import ValidationActivities
from ipnext.errors import Conflict, IPnextError
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.preparation import PreparationInput, PreparationResult

VALIDATED_BYTES = 64 * 2**20
"""Of snapshots that are validated here: larger ones take longer than the round trips that are saved."""

Stage = Callable[[StageInput, PreparationResult], PreparationResult | None]
"""Returns the answers so far and that of the stage; None if a separate activity has to run the stage."""


class PreparationActivities:
    """The stages' separate activities, called in a row."""

    def __init__(
        self,
        metadata: MetadataActivities,
        validation: ValidationActivities,
        freezes: FreezeActivities,
        planning: PlanningActivities,
        transition: TransitionActivities,
        prefetching: SnapshotPrefetcher,
    ) -> None:
        self._metadata = metadata
        self._validation = validation
        self._freezes = freezes
        self._planning = planning
        self._transition = transition
        self._prefetching = prefetching

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.prepare_change,)

    @activity.defn(name="prepare_change", no_thread_cancel_exception=True)
    def prepare_change(self, preparation: PreparationInput) -> PreparationResult:
        """Run the stages until one is refused, has to wait, or can't run here. Each may run any number of times.

        A permanent error is raised, as by the stage's separate activity.
        """
        of: dict[str, Stage] = {
            "metadata": self._resolve,
            "validation": self._validate,
            "optimization": self._optimize,
            "freeze": self._thaw,
            "planning": self._place,
            "transition": self._plan,
        }
        prepared = PreparationResult()
        for name in preparation.stages:
            beat(name)
            try:
                following = of[name](preparation.stage, prepared)
            except IPnextError as error:
                if not (error.retryable or isinstance(error, Conflict)):
                    raise  # permanent and recorded: the stage's separate activity would only repeat it
                return prepared  # the stage's separate activity is retried by its policy
            if following is None:
                return prepared
            prepared = following
        return prepared

    def _resolve(self, stage: StageInput, prepared: PreparationResult) -> PreparationResult:
        resolved = self._metadata.resolve_snapshots(stage)
        return prepared.model_copy(update={"resolved": resolved})

    def _validate(self, stage: StageInput, prepared: PreparationResult) -> PreparationResult | None:
        resolved = prepared.resolved
        if resolved is not None and stage.kind is ChangeKind.PUBLISH and not resolved.cuts:
            self._fetch_ahead(stage)
        if resolved is None or resolved.size_bytes > VALIDATED_BYTES or self._validation.may_take_long(stage):
            return None
        report = self._validation.validate_generation(stage)
        return prepared.model_copy(update={"validated": report})

    def _fetch_ahead(self, stage: StageInput) -> None:
        """Make the regions fetch the generation during its validation: its bytes, which no check has read yet."""
        if self._validation.is_fit_to_fetch(stage):
            self._prefetching.begin(stage.model, stage.generation)

    def _optimize(self, _: StageInput, prepared: PreparationResult) -> PreparationResult | None:
        if prepared.validated is None or prepared.validated.refusal is not None:
            return None
        return None if prepared.resolved is None or prepared.resolved.cuts else prepared

    def _thaw(self, stage: StageInput, prepared: PreparationResult) -> PreparationResult | None:
        if prepared.validated is not None and prepared.validated.refusal is not None:
            return None
        answer = self._freezes.freeze_of(stage)
        return None if answer.frozen is not None else prepared.model_copy(update={"thawed": answer})

    def _place(self, stage: StageInput, prepared: PreparationResult) -> PreparationResult | None:
        if stage.kind is ChangeKind.ROLLBACK and prepared.resolved is not None and not prepared.resolved.places:
            return prepared
        return prepared.model_copy(update={"planned": self._planning.place_model(stage)})

    def _plan(self, stage: StageInput, prepared: PreparationResult) -> PreparationResult | None:
        planned = prepared.planned
        if planned is not None:
            if not planned.feasible:
                return None
            stage = stage.model_copy(update={"plan_id": planned.plan_id})
        return prepared.model_copy(update={"transition": self._transition.plan_transition(stage)})
