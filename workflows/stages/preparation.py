"""Runs the stages before a transition in one activity, as far as they are short (`activities.preparation`)."""

from collections.abc import Sequence

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext.errors import IPnextError
    from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
    from ipnext.model.lifecycle.preparation import PreparationInput, PreparationResult
    from workflows import policies
    from workflows.policies import perform

FEWEST = 2
"""Least number of stages that make the activity worthwhile."""


async def prepare(stage: StageInput, stages: Sequence[str], *, urgent: bool) -> PreparationResult:
    """Return the answers of the completed stages.

    None if the activity fails by a bug or a time-out: each stage then runs alone. Raises ActivityError if a stage is
    refused by an error.
    """
    if len(stages) < FEWEST:
        return PreparationResult()
    step = policies.PREPARE_CHANGE.passing(urgent=urgent)
    try:
        return await perform(step, PreparationInput(stage=stage, stages=tuple(stages)), f"prepare {stage.kind}")
    except ActivityError as error:
        if is_cancelled_exception(error) or is_refused(error):
            raise
        workflow.logger.warning("the stages are gone through one by one: %s", error.cause)
        return PreparationResult()


def is_refused(error: ActivityError) -> bool:
    """Check whether a stage was refused, so that a retry is useless.

    A bug is no refusal: the stages then run one by one.
    """
    cause = error.cause
    return isinstance(cause, ApplicationError) and cause.non_retryable and cause.type != IPnextError.code


def is_done(prepared: PreparationResult, stage: str) -> bool:
    """Check whether a stage has its answer."""
    answers = {
        "metadata": prepared.resolved,
        "validation": prepared.validated,
        "freeze": prepared.thawed,
        "planning": prepared.planned,
    }
    return answers.get(stage) is not None
