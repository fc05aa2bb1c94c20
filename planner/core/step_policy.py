"""How fast one model's traffic may move, and what its owner wants where units are short. Read by planner and checker."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ipnext.model.rollout import Refresh
from ipnext.model.value import Value


class StepPolicy(Value):
    """How fast one model's traffic may move, in fractions of it.

    `refresh` says how a new generation comes to a placement: `in_place` loads it beside the old one in the same process
    (units count once, for the most replicas of any generation); `replace` starts processes of its own (units add up);
    `swap` lets a process of the old one go over to it (units add up, and their sum stays), and replaces only what has no
    process there yet. A wave that swaps moves at least what one replica serves, whatever the largest step.

    `when_short` is what to do where no order of the waves fits the supply: `surge` and `wait` refuse, and say what it
    would take or what must be freed; `dip` goes below the traffic of a generation by at most `max_dip` of it, for each
    part and region, at any moment.
    """

    canary: float = Field(default=0.1, gt=0, le=1)
    max_step: float = Field(default=0.5, gt=0, le=1)
    hold_seconds: float = Field(default=0.0, ge=0)
    refresh: Refresh = "in_place"
    when_short: Literal["surge", "dip", "wait"] = "surge"
    max_dip: float = Field(default=0.0, ge=0, le=1)
    calls: Mapping[int, tuple[str, ...]] = Field(default_factory=dict)
    """Generation -> the parts that its requests call; one that is not named calls all of the model's."""
