"""Messages of a transition's run: its waves, and its revert."""

from typing import Literal

from ipnext.model.gate.gate import GateWindow, RegionTraffic
from ipnext.model.gate.live import JudgedRound
from ipnext.model.lifecycle.changes.controls import ControlAsked
from ipnext.model.lifecycle.failure_cause import Place
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value


class TransitionPlanned(Value):
    """Answer of `plan_transition`: the waves are in the store."""

    transition_id: str
    waves: int
    refused: str | None = None
    deadline_seconds: float = 600.0
    """Longest wait of one wave for the infrastructure (the manifest's rollout)."""
    approval: Literal["none", "canary", "each"] = "none"
    manual_deadline_seconds: float = 86400.0
    """Longest wait for a person."""
    on_newer: Literal["finish", "turn"] = "finish"
    gates: tuple[str, ...] = ()
    """The gate of each wave."""
    price: str = ""
    """The surge of the waves beyond both states, or their shortfall against the traffic, in words."""
    back: Literal["at_once", "by_waves"] = "at_once"
    """The way of a revert: in one step, or wave by wave if the supply does not fit all of it at once."""
    fence: int = 0
    """The fencing token: the transition's run writes only while the store has no other."""
    times_replicas: bool = False
    """Whether live replicas are timed before the first traffic moves (`spec.validation.liveLatency`)."""


class Revert(Value):
    """For a transition without a run: the wave at which its revert begins, and the reason."""

    index: int
    reason: Reason
    message: str


class TransitionInput(Value):
    """Input of workflow `transition`."""

    transition_id: str
    model: Name
    generation: int
    waves: int
    deadline_seconds: float
    change_id: str
    approval: Literal["none", "canary", "each"] = "none"
    """The waves after which a person has to approve."""
    manual_deadline_seconds: float = 86400.0
    on_newer: Literal["finish", "turn"] = "finish"
    gates: tuple[str, ...] = ()
    back: Literal["at_once", "by_waves"] = "at_once"
    held: ControlAsked | None = None
    """The pause of the model as the transition begins."""
    fence: int = 0
    urgent: bool = False
    """Whether its steps have precedence: it brings back a generation that has served before."""
    times_replicas: bool = False
    """Whether live replicas are timed before the first traffic moves."""
    revert: Revert | None = None
    """Only revert, from here: the former run was ended from outside."""


class WaveInput(Value):
    """One wave of one transition."""

    transition_id: str
    model: Name
    generation: int
    index: int
    deadline_seconds: float
    """Longest wait of the wave for the infrastructure, at each of its steps."""
    waited_seconds: float = 0.0
    """Seconds that it has already waited at this step."""
    fence: int = 0
    """The fencing token of the run."""
    back: bool = False
    """True during the revert to the transition's beginning; `index` is the wave that failed."""
    by_waves: bool = False
    """For a revert: only the wave `index` is undone; those before it follow."""
    reason: Reason = Reason.SUCCEEDED
    """For a revert: the reason."""
    message: str = ""
    baseline: tuple[RegionTraffic, ...] = ()
    """For the gate: the target generation's counts just before the wave's traffic moved."""
    early: bool = False
    """For the gate: a check during the hold; only a violation that is already certain fails it."""
    watched_seconds: float = 0.0
    """For the gate: seconds that it has waited for more answers beyond the hold."""
    window: GateWindow | None = None
    """For the gate, with `baseline`: the `window` that `shift_traffic` answered; None: errors alone are judged."""
    rounds: tuple[JudgedRound, ...] = ()
    """For the timing of live replicas: the rounds so far."""
    waited_before: float = 0.0
    """For the timing of live replicas: seconds waited for them before the newest round."""


class WaveResult(Value):
    """The result of an activity of a wave."""

    ok: bool
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    place: Place = Place()
    """The failed place, if `ok` is false."""
    hold_seconds: float = 0.0
    baseline: tuple[RegionTraffic, ...] = ()
    """Answer of `shift_traffic`: the counts from before."""
    window: GateWindow | None = None
    """Answer of `shift_traffic`: further data for the gate."""
    again_seconds: float = 0.0
    """Answer of `check_gate`: too few answers to judge; call again after this time. Answer of `ensure_capacity`,
    and of `time_replicas`, with `ok` false: not ready yet."""
    waited_seconds: float = 0.0
    """Answer of `ensure_capacity` and `time_replicas`, with `again_seconds` and without `ok`: the duration of this
    check. Answer of `time_replicas` with `ok`: seconds waited so far."""
    unanswered: bool = False
    """Whether the wave waited longer for a person than `rollout.manualDeadlineSeconds`."""
    rounds: tuple[JudgedRound, ...] = ()
    """Answer of `time_replicas`, with `again_seconds`: the rounds so far; call again with them."""


class TransitionResult(Value):
    """The end of a transition."""

    done: bool
    waves_done: int
    reason: Reason = Reason.SUCCEEDED
    message: str = ""
    undone: str = ""
    """The part of its revert that is not done, in words; the message has it, too."""
    unanswered: bool = False
    """Whether it was reverted because a wave waited longer for a person than `rollout.manualDeadlineSeconds`."""
