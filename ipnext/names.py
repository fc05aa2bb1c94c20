"""Names that cross a process border: workflows, updates, queues, search attributes, headers.

Callers start workflows by these names and never import workflow code.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

NAMESPACE: Final = "default"

# task queues
LIFECYCLE_QUEUE: Final = "ipnext-lifecycle"
PLANNER_QUEUE: Final = "ipnext-planner"
URGENT_QUEUE: Final = "ipnext-urgent"

WORKER_DEPLOYMENT: Final = "ipnext"
"""The worker deployment of Temporal's worker versioning; each build of the code is a version of it."""

# workflow types
MODEL_WORKFLOW: Final = "model"
LIFECYCLE_WORKFLOW: Final = "lifecycle"
TRANSITION_WORKFLOW: Final = "transition"
REPLAN_WORKFLOW: Final = "replan"
SCHEDULED_REPLAN_WORKFLOW: Final = "scheduled_replan"
DRAIN_WORKFLOW: Final = "drain"
RECONCILE_WORKFLOW: Final = "reconcile"
COLLECT_WORKFLOW: Final = "collect"
WATCH_WORKFLOW: Final = "watch"
PICK_UP_WORKFLOW: Final = "pick_up"

# updates, signals and queries of the model entity
SUBMIT_CHANGE: Final = "submit_change"
MODEL_STATE: Final = "model_state"
PAUSE_CHANGES: Final = "pause_changes"
RESUME_CHANGES: Final = "resume_changes"
ABORT_RUN: Final = "abort_run"

# between an entity and a run that it did not start: the entity requests the report, the run sends it at its end
REPORT_END: Final = "report_end"
CHANGE_ENDED: Final = "change_ended"

# signal of the API to an entity
LOOK_AGAIN: Final = "look_again"
"""An open change has no run: read the open changes from the store again."""

# updates of a transition, and signals from the entity by way of the lifecycle run
APPROVE_WAVE: Final = "approve_wave"
PROMOTE_RUN: Final = "promote_run"
HOLD_CHANGES: Final = "hold_changes"
NEWER_WAITS: Final = "newer_waits"

ABORTED: Final = "aborted "
"""Prefix of the reason of a run's cancellation if a user aborted it."""

PREEMPTS: Final = " was asked"
"""End of the reason if a newer change stopped it; the change stands before it."""

# signal of a change's run
FREEZE_CHANGED: Final = "freeze_changed"
"""A freeze was lifted, changed or overridden: a waiting run checks again."""

# the one workflow that replans: its id, and the signal that a replan is requested
REPLAN_ID: Final = "replan"
REPLAN_ASKED: Final = "replan_asked"

# requests to a replan that moves models
MOVES_STEERED: Final = "moves_steered"
CANCEL_REPLAN: Final = "cancel_replan"
REPLAN_PROGRESS: Final = "replan_progress"

# a region's drain: the signal of a new request, and the query of its progress
DRAIN_CHANGED: Final = "drain_changed"
DRAIN_PROGRESS: Final = "drain_progress"

# signal of the watch of an upstream system: a source of it was applied, resumed, pushed to or asked to poll
SOURCE_WOKEN: Final = "source_woken"
WATCH_PROGRESS: Final = "watch_progress"

REPLAN_SCHEDULE: Final = "replan"
RECONCILE_SCHEDULE: Final = "reconcile"
COLLECT_SCHEDULE: Final = "collect"

LONGEST_UPSTREAM: Final = 200
"""Characters of an upstream system's name in the id of its run."""
UPSTREAM_DIGITS: Final = 16

# search attributes
MODEL_ATTRIBUTE: Final = "IPnextModel"
STAGE_ATTRIBUTE: Final = "IPnextStage"
GENERATION_ATTRIBUTE: Final = "IPnextGeneration"
OWNER_ATTRIBUTE: Final = "IPnextOwner"
REGIONS_ATTRIBUTE: Final = "IPnextRegions"
KIND_ATTRIBUTE: Final = "IPnextKind"

SEARCH_ATTRIBUTES: Final[Mapping[str, str]] = {
    MODEL_ATTRIBUTE: "Keyword",
    STAGE_ATTRIBUTE: "Keyword",
    GENERATION_ATTRIBUTE: "Int",
    OWNER_ATTRIBUTE: "Keyword",
    REGIONS_ATTRIBUTE: "KeywordList",
    KIND_ATTRIBUTE: "Keyword",
}
"""Every search attribute that workflows set, with its type: `ipnext platform setup` registers them."""

# HTTP headers on the data path
GENERATION_HEADER: Final = "x-ipnext-generation"
CHOSEN_HEADER: Final = "x-ipnext-chosen-by"
"""Set by a gateway on a request whose generation it chose by weight: the client did not pin it."""
FORWARDED_HEADER: Final = "x-ipnext-forwarded-by"
"""Set on a request that one region's gateway sends to another's, which must answer it: the region, and
CHOSEN_BY_WEIGHT if that applies."""
CHOSEN_BY_WEIGHT: Final = ";chosen-by=weight"
REFUSED_HEADER: Final = "x-ipnext-refused"
"""Set by a router that is about to end, for a request that it has not read: the seconds after which a gateway
retries. Clients never see it."""
NO_CAPACITY_HEADER: Final = "x-ipnext-no-capacity"
"""Set by a gateway on a request for a model that needs a credential and has no capacity: the router answers that, to
authorised callers."""
UPSTREAM_HEADER: Final = "x-ipnext-upstream"
"""Set by a router on a request that its gateway has to send to another region's: the gateway's name of that region."""
UPSTREAM_PREFIX: Final = "region-"
SNAPSHOTS_HEADER: Final = "x-ipnext-snapshots"
REGION_HEADER: Final = "x-ipnext-region"
DEADLINE_HEADER: Final = "x-ipnext-deadline-ms"
SESSION_HEADER: Final = "x-ipnext-session"
"""Names requests that belong together, so that one engine answers them if possible."""
ERROR_HEADER: Final = "x-ipnext-error"
"""Carries the code of `ipnext.errors` in addition to a protocol's error text."""

FRAMES: Final = "ipnext-frames"
"""Protocol that routers upgrade their connections to hosts to."""
PROOF_HEADER: Final = "x-ipnext-caller-proof"
"""Proves a component of a region to another one on a Unix socket (`ipnext.components.caller_proof`)."""

# HTTP headers of the API
IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
USER_HEADER: Final = "x-ipnext-user"
"""User for the audit: claimed by the caller, not authenticated."""

CLIENT_HEADERS: Final = (GENERATION_HEADER, DEADLINE_HEADER, SESSION_HEADER)
"""Headers that clients of a gateway may send."""
ANSWER_HEADERS: Final = (GENERATION_HEADER, SNAPSHOTS_HEADER, REGION_HEADER, ERROR_HEADER)
"""Headers of answers for clients: who answered, or why none did."""
INNER_HEADERS: Final = (
    CHOSEN_HEADER,
    FORWARDED_HEADER,
    REFUSED_HEADER,
    NO_CAPACITY_HEADER,
    UPSTREAM_HEADER,
    SNAPSHOTS_HEADER,
    REGION_HEADER,
    ERROR_HEADER,
    USER_HEADER,
    PROOF_HEADER,
)
"""Headers that a gateway removes from clients' requests: only components may send them, or they are only for
answers."""

# entry-point groups a platform engineer adds to
COMMAND_GROUP: Final = "ipnext.commands"
VALIDATOR_GROUP: Final = "ipnext.validators"
ENGINE_GROUP: Final = "ipnext.engines"
SNAPSHOT_FILES_GROUP: Final = "ipnext.snapshot_files"
SOURCE_GROUP: Final = "ipnext.sources"
OPTIMIZATION_GROUP: Final = "ipnext.optimizations"
STAGE_GROUP: Final = "ipnext.stages"
RENDER_GROUP: Final = "ipnext.render_targets"

# native code in a snapshot
LIBRARY_FILE: Final = "library.so"
"""The one file of a snapshot with native code: its program, compiled."""

COMPILE_SETTING: Final = "compile"
"""Engine setting of a part: hosts may run the library of a snapshot that has one."""


def upstream_name(region: str) -> str:
    """Return the name by which a gateway knows the gateway of another region."""
    return f"{UPSTREAM_PREFIX}{region}"


def model_workflow_id(model: str) -> str:
    """Return the id of the one long-lived entity workflow that orders this model's changes."""
    return f"model/{model}"


def lifecycle_workflow_id(model: str, change_id: str) -> str:
    """Return the id of the run of one change of one model."""
    return f"lifecycle/{model}/{change_id}"


def stage_workflow_id(model: str, change_id: str, stage: str) -> str:
    """Return the id of the run of a stage that is a workflow of another distribution."""
    return f"stage/{model}/{change_id}/{stage}"


def transition_workflow_id(transition_id: str) -> str:
    """Return the id of the run that executes one transition."""
    return f"transition/{transition_id}"


def watch_workflow_id(kind: str, upstream: str) -> str:
    """Return the id of the run that polls one upstream system; a long name is cut and told apart by its digest."""
    if len(upstream) > LONGEST_UPSTREAM:
        digest = hashlib.sha256(upstream.encode()).hexdigest()
        upstream = f"{upstream[:LONGEST_UPSTREAM]}~{digest[:UPSTREAM_DIGITS]}"
    return f"{WATCH_WORKFLOW}/{kind}/{upstream}"


def pick_up_workflow_id(model: str) -> str:
    """Return the id of the run that publishes the versions that a model's sources found."""
    return f"{PICK_UP_WORKFLOW}/{model}"


def drain_workflow_id(region: str) -> str:
    """Return the id of the run that drains a region or restores it."""
    return f"drain/{region}"


AGAIN_PREFIX: Final = "again-"
APPLY_PREFIX: Final = "apply-"
DRAIN_PREFIX: Final = "drain-"
REPAIR_PREFIX: Final = "repair-"
REPLAN_PREFIX: Final = "replan-"
SCHEDULE_PREFIX: Final = "schedule-"
SHORTAGE_PREFIX: Final = "shortage-"
SOURCE_PREFIX: Final = "source-"
DENIAL_PREFIX: Final = "denied-"
SUPPLY_PREFIX: Final = "supply-"

RESERVED_PREFIXES: Final = (
    AGAIN_PREFIX,
    APPLY_PREFIX,
    DRAIN_PREFIX,
    REPAIR_PREFIX,
    REPLAN_PREFIX,
    SCHEDULE_PREFIX,
    SHORTAGE_PREFIX,
    SOURCE_PREFIX,
    DENIAL_PREFIX,
    SUPPLY_PREFIX,
)
"""Prefixes of ids of changes, replans and drains that the platform makes. The API accepts none of them from a
client."""


def replan_plan_id(run_id: str) -> str:
    """Return the id of the plan of a run of the replan workflow: one for each run, however often it is retried."""
    return f"{REPLAN_PREFIX}{run_id}"


def move_id(plan_id: str, model: str) -> str:
    """Return the id of the change that moves a model to its placement in a plan: one for each plan and model."""
    return f"{plan_id}.{model}"


def apply_id(model: str, revision: int) -> str:
    """Return the id of the change that moves a model to a revision of its manifest."""
    return f"{APPLY_PREFIX}{model}-{revision}"


def marked_apply_id(model: str, revision: int, mark: str) -> str:
    """Return the id of such a change that one request recorded.

    `mark` tells the request from others for the same revision.
    """
    return f"{apply_id(model, revision)}.{mark}"


def repair_id(model: str, sequence: int) -> str:
    """Return the id of a repair that the platform records. `sequence` is the change's own."""
    return f"{REPAIR_PREFIX}{model}-{sequence}"


def again_id(model: str, sequence: int) -> str:
    """Return the id of the change that repeats change `sequence` of the model, which a loss or a check prevented."""
    return f"{AGAIN_PREFIX}{model}-{sequence}"


def denial_rollback_id(model: str, denial: int, attempt: int) -> str:
    """Return the id of a rollback that a denial started; `attempt` counts those of the model and denial from 1."""
    return f"{DENIAL_PREFIX}{denial}-{model}-{attempt}"


def drain_id(region: str, number: int) -> str:
    """Return the id of a region's drain; `number` counts the drains of the region from 1."""
    return f"{DRAIN_PREFIX}{region}-{number}"


def drain_replan_id(drain_id: str, number: int) -> str:
    """Return the id of a replan that a drain requests; `number` counts them from 1."""
    return f"{drain_id}-{number}"


def supply_replan_id(fleet_version: int) -> str:
    """Return the id of the replan for a changed fleet."""
    return f"{SUPPLY_PREFIX}{fleet_version}"


def shortage_replan_id(model: str, sequence: int) -> str:
    """Return the id of the replan for change `sequence` of a model, which ended with less capacity than traffic."""
    return f"{SHORTAGE_PREFIX}{model}-{sequence}"


def scheduled_replan_id(trigger: str, run_id: str) -> str:
    """Return the id of the replan of a run of the schedule. `trigger` is the schedule's."""
    return f"{trigger}-{run_id}"
