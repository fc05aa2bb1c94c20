"""Stages of a change: the default order of each kind, and the values that plug-in stages take and give.

`StageRequest` and `StageAnswer` are public and versioned: a worker of another language reads and writes them as JSON.
Fields are added with defaults; none changes its type.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field

from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Sha256, Value

DEFAULT_STAGES: Final[Mapping[ChangeKind, tuple[str, ...]]] = {
    ChangeKind.PUBLISH: ("metadata", "validation", "optimization", "freeze", "planning", "transition"),
    ChangeKind.ROLLBACK: ("metadata", "planning", "transition"),
    ChangeKind.APPLY: ("metadata", "validation", "optimization", "freeze", "planning", "transition"),
    ChangeKind.MOVE: ("freeze", "transition"),
    ChangeKind.RETIRE: ("freeze", "withdrawal"),
    ChangeKind.REPAIR: ("transition",),
}
"""The order of built-in stages of each kind of change, unless `spec.lifecycle` or the platform changes it."""

SHADOW: Final = "shadow"
OPTIONAL_STAGES: Final = (SHADOW,)
"""Built-in stages that only an entry inserts. They need the plan of their change, so they come after `planning`."""

SAFETY_CRITICAL: Final = ("metadata", "validation", "freeze", "planning", "transition", "withdrawal")
"""Built-in stages that can be neither left out nor replaced. With `spec.split`, `optimization` is one more: it makes
the parts that are planned."""

STAGE_FORMAT: Final = "ipnext/stage/v1"
MOST_EVIDENCE_BYTES: Final = 16 << 10
"""Evidence of one stage, as JSON."""
LARGEST_ANSWER_BYTES: Final = 256 << 10
"""A whole answer, as JSON. It is stored twice in the history of its change, and Temporal takes 2 MiB of a value."""
PLACES_TAKEN: Final = "PlacesTaken"
"""Type of the error of a worker that runs as many stages as it may; it is no attempt at the stage."""
LONGEST_MESSAGE: Final = 2000
"""Characters of a stage's message; a longer one is cut."""


def activity_name(stage: str) -> str:
    """Return the name that the activity, or the workflow, of a stage has in Temporal."""
    return f"stage.{stage}"


class StageAsked(StageInput):
    """Input of `begin_stage`: a change has reached a stage of another distribution."""

    name: Name
    settings: Mapping[str, Any] = Field(default_factory=dict)


class StageSnapshot(Value):
    """The snapshot of one part, as it answers."""

    number: int
    digest: Sha256
    uri: str
    """Its location in the artifact store."""
    size_bytes: int
    published: int
    """Number of the published snapshot that it was derived from, or its own number."""
    by_hardware: Mapping[Name, "StageSnapshot"] = Field(default_factory=dict, exclude_if=lambda kinds: not kinds)
    """Hardware kind -> the snapshot with which its hosts answer in the place of this one."""


class StageRequest(Value):
    """What a stage is given: the one argument of its activity or workflow."""

    format: Annotated[str, Field(pattern=r"^ipnext/stage/v1$")] = STAGE_FORMAT
    stage: Name
    change_id: str
    kind: ChangeKind
    model: Name
    owner: str = ""
    labels: Mapping[str, str] = Field(default_factory=dict)
    revision: int = 0
    """Revision of the manifest."""
    generation: int | None = None
    """The generation that the change brings, or that stays; None if nothing is published."""
    snapshots: Mapping[str, StageSnapshot] = Field(default_factory=dict)
    """Part -> its snapshot in the generation. A split generation has its segments, a derived one what serves."""
    serving_generation: int | None = None
    serving: Mapping[str, StageSnapshot] = Field(default_factory=dict)
    """The same for the generation that serves now."""
    settings: Mapping[str, Any] = Field(default_factory=dict)
    """As the manifest, or the platform's setting, has them."""


def _check_boolean(value: object) -> object:
    """Refuse what stands for a boolean, such as 1 and "yes": messages of the wire are read leniently, this is not."""
    if not isinstance(value, bool):
        msg = "true or false is needed"
        raise ValueError(msg)  # noqa: TRY004 - pydantic expects it
    return value


TrueOrFalse = Annotated[bool, BeforeValidator(_check_boolean)]


class StageAnswer(Value):
    """The answer of a stage."""

    passed: TrueOrFalse
    message: str = ""
    """Why it refused, or what it found: shown to people."""
    evidence: Mapping[str, Any] = Field(default_factory=dict)
    """The figures that decided, as JSON of at most MOST_EVIDENCE_BYTES."""


class StageEnded(StageInput):
    """Input of `record_stage`: what a stage answered, or why it gave no answer."""

    name: Name
    source: str = "unknown"
    """The distribution, with its version and entry point."""
    answer: Any = None
    """Not decoded. None if the stage gave no answer."""
    failure: str = ""
    """Why it gave no answer."""
    duration_seconds: float = 0.0


class StageJudged(Value):
    """Answer of `record_stage`."""

    passed: bool
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
