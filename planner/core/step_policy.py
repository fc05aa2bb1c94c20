"""Pace of one model's traffic, and its owner's choice if units are short. Read by planner and checker."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ipnext.model.planning.transition import Refresh
from ipnext.model.value import Value


class StepPolicy(Value):
    """Pace of one model's traffic, in fractions of it.

    `refresh` is how a placement receives a new generation: `in_place` loads it beside the old one in the same process
    (units count once, for the most replicas of any generation); `replace` starts separate processes (units add up);
    `swap` hot swaps a process of the old one (units add up, and their sum stays), and replaces only if there is no
    process yet. A wave that swaps moves at least the throughput of one replica, whatever the largest step.

    `when_short` is the behaviour if no order of the waves fits the supply: `surge` and `wait` refuse, and report the
    surge or the units to be freed; `dip` goes below the traffic of a generation by at most `max_dip` of it, for each
    part and region, at any moment.
    """

    canary: float = Field(default=0.1, gt=0, le=1)
    max_step: float = Field(default=0.5, gt=0, le=1)
    hold_seconds: float = Field(default=0.0, ge=0)
    refresh: Refresh = "in_place"
    when_short: Literal["surge", "dip", "wait"] = "surge"
    max_dip: float = Field(default=0.0, ge=0, le=1)
    calls: Mapping[int, tuple[str, ...]] = Field(default_factory=dict)
    """Generation -> the parts that its requests call; a missing one calls all of the model's."""
