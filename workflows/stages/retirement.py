"""The second half of a retirement, after no gateway knows the model any more: it only goes forward.

Called by the lifecycle of the retirement, and by the entity that takes it over.
"""

from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
    from workflows import policies
    from workflows.errors import explain_error, fence_lost
    from workflows.policies import perform


RELEASE_AGAIN = timedelta(minutes=1)
"""Until the replicas of a withdrawn model are ended again, after an error that no retry heals."""


async def release(stage: StageInput) -> None:
    """End the replicas of a withdrawn model. If the step fails, it is tried again until it succeeds.

    Raises ActivityError if the change has ended, or the run is cancelled.
    """
    while True:
        try:
            await perform(policies.RELEASE_MODEL, stage, f"end the replicas of {stage.model}")
        except ActivityError as error:
            if is_cancelled_exception(error) or fence_lost(error):
                raise
            workflow.logger.warning("replicas of %s could not be ended: %s", stage.model, explain_error(error).message)
        else:
            return
        await workflow.sleep(RELEASE_AGAIN, summary=f"end the replicas of {stage.model} again")
