"""Errors of activities as a workflow gets them."""

from temporalio.exceptions import ActivityError


def failed_activity(cause: BaseException | None = None) -> ActivityError:
    """Return the error of an activity that failed for this cause."""
    error = ActivityError(
        "failed",
        scheduled_event_id=1,
        started_event_id=2,
        identity="",
        activity_type="",
        activity_id="",
        retry_state=None,
    )
    error.__cause__ = cause
    return error
