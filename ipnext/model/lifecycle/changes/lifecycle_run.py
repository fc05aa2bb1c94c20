"""Messages of one change's lifecycle run: its input and result, and those of the activities of its stages."""

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.changes.stage_order import ComposedStage
from ipnext.model.lifecycle.failure_cause import Place
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value


class LifecycleInput(Value):
    """Input of workflow `lifecycle`: one change of one model."""

    model: Name
    change: QueuedChange
    held: ControlAsked | None = None
    """The pause of the model as the run begins."""


class LifecycleResult(Value):
    """The end of a lifecycle run."""

    state: ChangeState
    generation: int | None = None
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    unanswered: bool = False
    """Whether it waited longer for a person than `rollout.manualDeadlineSeconds`."""
    stopped_by: str | None = None
    """The change that preempted it; None if it is done, or ended otherwise."""
    retired: bool = False
    """Whether it did not begin since the model is retired."""


class ChangeBegun(Value):
    """Answer of `begin_change`: the data for the run."""

    generation: int | None = None
    """The generation to serve; none if the model has nothing to serve."""
    revision: int = 0
    """Revision of the manifest that the run works with."""
    supply_patience_seconds: float | None = None
    """Longest wait of the run for supply (the manifest's rollout); None: the platform's default."""
    urgent: bool = False
    """Whether the change moves a model away from a lost region: its steps have precedence over others."""
    owner: str = ""
    """The manifest's owner, for searches of runs."""
    regions: tuple[Name, ...] = ()
    """Regions whose users the model serves, for the same purpose."""
    stages: tuple[ComposedStage, ...] | None = None
    """Its stages in their order; None: the default order of its kind."""
    misfit: str = ""
    """Why the entries that change the order do not fit each other: the change is refused."""
    final: ChangeState | None = None
    """Set if the change has ended already: nothing is left to do."""
    retired: bool = False
    """Whether the model is retired, if the change has ended already."""


class StageInput(Value):
    """Input of the activities of a lifecycle run."""

    model: Name
    change_id: str
    kind: ChangeKind
    generation: int
    plan_id: str | None = None


class ResolutionResult(Value):
    """Answer of `resolve_snapshots`."""

    parts: int
    size_bytes: int
    summary: str
    cuts: bool = False
    """Whether the generation has to be cut or derived (or no longer has to be): then the run optimizes it."""
    places: bool = False
    """Whether the placement in force has other parts than the generation: then a rollback plans as well."""
    note: str = ""
    """A note for the run's final message."""


class OptimizationResult(Value):
    """Answer of `optimize_generation`."""

    parts: int = 0
    """Number of parts after the cut; 0 if it is not cut."""
    summary: str = ""
    refused: bool = False
    """A policy or step does not fit, or its result answers too differently; the reason says which."""
    reason: Reason = Reason.SUCCEEDED


class PlanningResult(Value):
    """Answer of `place_model` and `compute_plan`."""

    plan_id: str
    feasible: bool
    moves: int
    cost_per_hour: float
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    place: Place = Place()
    """The place of the most unserved demand, if nothing could be placed."""


class RecordInput(Value):
    """The record of a run's end in the store."""

    model: Name
    change_id: str
    kind: ChangeKind
    generation: int | None
    result: LifecycleResult
    run_id: str
    plan_id: str | None = None
    revision: int = 0
    """Revision of the manifest that the run worked with."""


class ProgressInput(Value):
    """The beginning of a stage: conditions, change state and the run's id are recorded."""

    model: Name
    change_id: str
    stage: str
    run_id: str
    generation: int | None = None


class Done(Value):
    """Answer of an activity without a result."""

    note: str = ""
