"""Drains: a region is taken out of service, either planned or after its loss, and brought back."""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import Field

from ipnext.model.echoes import cut_text
from ipnext.model.lifecycle.status import Reason
from ipnext.model.value import Name, Value, WrittenValue


class DrainState(StrEnum):
    """Where a drain stands. RECORDED is acknowledged: it is never lost from there on."""

    RECORDED = "recorded"
    CHECKING = "checking"
    """Planned: the planner looks whether the other regions can carry everything."""
    DRAINING = "draining"
    """The region's supply counts as nothing; its models move away."""
    DRAINED = "drained"
    """Nothing runs there, nothing is sent there, nothing is planned there."""
    REFUSED = "refused"
    """The others can't carry it; nothing has moved."""
    RETURNING = "returning"
    """Asked back: the region is told what is wanted of it."""
    RETURNED = "returned"
    """Its supply counts again; the next plan uses it."""

    @property
    def over(self) -> bool:
        """True if the region is in service."""
        return self in {DrainState.REFUSED, DrainState.RETURNED}


class Drain(Value):
    """One drain of one region, and what came of it."""

    id: str
    region: Name
    disaster: bool = False
    """The region is gone: its traffic goes elsewhere at once, and nothing waits for its agent or its gateway."""
    force: bool = False
    """Go on although demand stays unserved."""
    reason: str = ""
    """Why, in the words of who asked."""
    state: DrainState = DrainState.RECORDED
    cause: Reason = Reason.PENDING
    message: str = ""
    models_left: int = 0
    """Models that still hold replicas there, are planned there or send traffic there."""
    replicas_left: int = 0
    traffic_left_qps: float = 0.0
    """Requests a second, by the manifests' demand, that the route tables still send there."""
    replan_id: str | None = None
    """The newest replan that it asked for."""
    replans: int = Field(default=0, ge=0)
    """How many it has asked for."""
    created_at: datetime
    """Since when."""
    updated_at: datetime
    finished_at: datetime | None = None

    @property
    def holds(self) -> bool:
        """True while the region's supply counts as nothing.

        A lost region is out of service once its drain is recorded.
        """
        if self.disaster:
            return not self.state.over
        return self.state in {DrainState.DRAINING, DrainState.DRAINED, DrainState.RETURNING}

    @property
    def lost(self) -> bool:
        """True while the platform sends no calls to the region's agent and gateway."""
        return self.disaster and self.holds


class DrainInput(Value):
    """Input of workflow `drain` and of its activities: the request itself is in the store."""

    region: Name


class DrainSeen(Value):
    """Answer of the activities of a drain: its present state."""

    state: DrainState
    disaster: bool = False
    message: str = ""
    models_left: int = 0
    replicas_left: int = 0
    traffic_left_qps: float = 0.0
    misrouted: int = 0
    """Route tables that send traffic to a lost region: they have to be sent around it (again)."""
    known: bool = True
    """False if the region was never drained."""


class DrainRequest(WrittenValue):
    """Body of a drain. `disaster`: the region is gone. `force`: go on although demand stays unserved."""

    disaster: bool = False
    force: bool = False
    reason: str = Field(default="", max_length=500)


class ReturnRequest(WrittenValue):
    """Body of a return."""

    reason: str = Field(default="", max_length=500)


class HeldModel(Value):
    """A model whose changes are blocked, so that it does not leave a region."""

    model: Name
    reason: Reason
    message: str
    change_id: str = ""
    """The change that waits for a freeze."""

    @property
    def remedy(self) -> str:
        """The command that unblocks it."""
        if self.reason is Reason.FROZEN:
            return f"`ipnext override {self.change_id} --reason TEXT`"
        verb = "approve" if self.reason is Reason.AWAITING_APPROVAL else "resume"
        return f"`ipnext {verb} {self.model}`"


HELD_NAMED = 3
"""Most blocked models that a message names."""

HELD_CHARACTERS = 200
"""Most characters of the reason of one of them."""


def describe_held(held: Sequence[HeldModel]) -> str:
    """Return a text such as `2 models are held up: a: paused by ann (`ipnext resume a`); ...`; empty without one."""
    if not held:
        return ""
    named = [f"{each.model}: {cut_text(each.message, HELD_CHARACTERS)} ({each.remedy})" for each in held[:HELD_NAMED]]
    named += [f"and {len(held) - HELD_NAMED} more"] if len(held) > HELD_NAMED else []
    return f"{len(held)} {'model is' if len(held) == 1 else 'models are'} held up: {'; '.join(named)}"


class DrainView(Drain):
    """A drain with the link to its runs in the Temporal UI, and what the region itself reports now."""

    run_url: str | None = None
    replicas_running: int | None = None
    """Replicas that the region reports now; null: it does not answer, or was not asked (only a lost region is)."""
    status: str = ""
    """`status_of`, for tables and pages."""
    summary: str = ""
    """`sentence_of`."""

    @classmethod
    def of(cls, drain: Drain, *, run_url: str, replicas_running: int | None) -> "DrainView":
        """Return the view of a drain. `replicas_running`: as the region reports; None without an answer or a call."""
        view = cls(**drain.model_dump(), run_url=run_url, replicas_running=replicas_running)
        status = status_of(drain.state, lost=drain.lost, answers=replicas_running is not None)
        return view.model_copy(update={"status": status, "summary": sentence_of(view)})


def status_of(state: DrainState, *, lost: bool, answers: bool = False) -> str:
    """Return a drain's state in a few words.

    A lost region is never called drained: it may still serve, as nobody calls it. `lost`: it is declared lost and not
    back. `answers`: its agent reports nevertheless.
    """
    if not lost:
        return "back" if state is DrainState.RETURNED else state.value
    asked = ", asked back" if state is DrainState.RETURNING else ""
    return f"declared lost{asked}, answers still" if answers else f"declared lost{asked}"


def sentence_of(view: "DrainView") -> str:
    """Return a drain as one sentence, the same in every view: `region eu-west is declared lost, answers still: ...`."""
    told = [view.message or _describe_rest(view)] if view.message or view.models_left else []
    if view.lost and view.replicas_running is not None:
        told.append(_answering(view, view.replicas_running))
    status = status_of(view.state, lost=view.lost, answers=view.replicas_running is not None)
    return f"region {view.region} is {status}" + (f": {'; '.join(told)}" if told else "")


def _answering(drain: Drain, running: int) -> str:
    """Return the report of a lost region's agent, in words."""
    if not running:
        return "its agent answers and reports no replicas"
    serving = (
        "" if drain.state is DrainState.RETURNING else f", serving its own users until `ipnext undrain {drain.region}`"
    )
    return f"its agent reports {running} {'replica' if running == 1 else 'replicas'}{serving}"


def _describe_rest(drain: Drain) -> str:
    return (
        f"{drain.models_left} models, {drain.replicas_left} replicas, "
        f"{drain.traffic_left_qps:g} requests or tokens/s left"
    )
