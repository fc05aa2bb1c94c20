"""Names that cross a process border: workflows, updates, queues, search attributes, headers.

Callers start workflows by these names and never import workflow code.
"""

from typing import Final

NAMESPACE: Final = "default"

# task queues
LIFECYCLE_QUEUE: Final = "ipnext-lifecycle"
PLANNER_QUEUE: Final = "ipnext-planner"

# workflow types
MODEL_WORKFLOW: Final = "model"
LIFECYCLE_WORKFLOW: Final = "lifecycle"
TRANSITION_WORKFLOW: Final = "transition"
REPLAN_WORKFLOW: Final = "replan"
SCHEDULED_REPLAN_WORKFLOW: Final = "scheduled_replan"
RETIRE_WORKFLOW: Final = "retire"

# updates, signals and queries of the model entity
SUBMIT_CHANGE: Final = "submit_change"
MODEL_STATE: Final = "model_state"
CHANGE_RESULT: Final = "change_result"

# the one workflow that replans: its id, and the signal that says that something is asked for
REPLAN_ID: Final = "replan"
REPLAN_ASKED: Final = "replan_asked"

REPLAN_SCHEDULE: Final = "replan"

# search attributes
MODEL_ATTRIBUTE: Final = "IPnextModel"
STAGE_ATTRIBUTE: Final = "IPnextStage"
GENERATION_ATTRIBUTE: Final = "IPnextGeneration"

# HTTP headers on the data path
GENERATION_HEADER: Final = "x-ipnext-generation"
SNAPSHOTS_HEADER: Final = "x-ipnext-snapshots"
REGION_HEADER: Final = "x-ipnext-region"
DEADLINE_HEADER: Final = "x-ipnext-deadline-ms"

# entry-point groups a platform engineer adds to
COMMAND_GROUP: Final = "ipnext.commands"
VALIDATOR_GROUP: Final = "ipnext.validators"
ENGINE_GROUP: Final = "ipnext.engines"

# native code in a snapshot
LIBRARY_FILE: Final = "library.so"
"""The one file of a snapshot that holds native code: its program, compiled."""

COMPILE_SETTING: Final = "compile"
"""Engine setting of a part: hosts may run the library of a snapshot that has one."""


def model_workflow_id(model: str) -> str:
    """Id of the one long-lived entity workflow that orders this model's changes."""
    return f"model/{model}"


def lifecycle_workflow_id(model: str, change_id: str) -> str:
    """Id of the run that carries one change of one model."""
    return f"lifecycle/{model}/{change_id}"


def transition_workflow_id(transition_id: str) -> str:
    """Id of the run that walks one transition."""
    return f"transition/{transition_id}"


def replan_plan_id(run_id: str) -> str:
    """Id of the plan that a run of the replan workflow computes: once for each run, however often it is tried."""
    return f"replan-{run_id}"


def move_id(plan_id: str, model: str) -> str:
    """Id of the change that brings a model to what a plan gives it: one for each plan and model."""
    return f"{plan_id}.{model}"
