"""Rollouts in the manifest of a model: waves, gate, capacity, approvals and deadlines."""

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from ipnext.model.gate.gate import GateSpec
from ipnext.model.value import LONGEST_SECONDS, WrittenValue

MOST_KEPT_WARM: Final = 100
"""Former generations."""


class RolloutSpec(WrittenValue):
    """How traffic moves to a new generation. Shares are fractions of a region's traffic."""

    canary: float = Field(default=0.1, gt=0, le=1)
    max_step: float = Field(default=0.5, gt=0, le=1)
    hold_seconds: float = Field(default=0.0, ge=0, le=LONGEST_SECONDS)
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    gate: GateSpec = GateSpec()
    """What else the new generation's answers must keep."""
    deadline_seconds: float = Field(default=600.0, gt=0, le=LONGEST_SECONDS)
    refresh: Literal["auto", "in_place", "replace", "swap"] = "auto"
    """How a new snapshot comes to a part: `in_place` into the running processes, beside the former one; `replace` into
    new processes, and the former ones end; `swap` into the running processes, in the former one's place (engines that
    serve by themselves only); `auto`: in place if `memory_bytes` of every part has room for both."""
    drain_seconds: float | None = Field(default=None, ge=0, le=LONGEST_SECONDS)
    """How long requests under way may take before a replica ends; left out: the region's default, for vLLM parts
    300."""
    swap_wait_seconds: float | None = Field(default=None, ge=0, le=LONGEST_SECONDS)
    """With `refresh: swap`: longest wait of a request for an engine that is being swapped; left out: `drain_seconds`,
    so that open streams end first."""
    keep_warm: int = Field(default=1, ge=0, le=MOST_KEPT_WARM)
    """Former generations that stay loaded, without traffic, so that a rollback needs no load."""
    approval: Literal["none", "canary", "each"] = "none"
    """Behind which waves a person has to approve before the run goes on: the canary, or each but the last."""
    manual_deadline_seconds: float = Field(default=86400.0, gt=0, le=LONGEST_SECONDS)
    """The longest wait of a run for a user (an approval, the end of a pause); then it is reverted."""
    on_newer: Literal["finish", "turn"] = "finish"
    """When a newer publish comes while a generation rolls out: finish, or go back first and begin with the newer
    one."""
    when_short: Literal["surge", "dip", "wait"] = "surge"
    """Where the supply has no room for a safe way: refuse and name the surge; dip by `max_dip` at most; wait for
    supply."""
    max_dip: float = Field(default=0.0, ge=0, lt=1)
    """With `dip`: how much of the throughput that a part needs may be missing for a while."""
    wait_seconds: float = Field(default=600.0, gt=0, le=LONGEST_SECONDS)
    """How long a run waits for supply: with `wait` for any, else for what another transition is about to free."""

    @model_validator(mode="after")
    def _waits_for_swaps(self) -> Self:
        if self.swap_wait_seconds is not None and self.refresh != "swap":
            msg = (
                "swapWaitSeconds: goes with refresh: swap, in which requests wait for engines that go over; "
                f"got refresh {self.refresh!r}"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _dips_by_something(self) -> Self:
        if (self.when_short == "dip") != (self.max_dip > 0):
            msg = (
                f"maxDip: goes with whenShort: dip and is above 0 then; got whenShort {self.when_short!r}, "
                f"maxDip {self.max_dip:g}"
            )
            raise ValueError(msg)
        return self
