"""The stage `shadow` of a change: what its manifest asks for, the record that the store has of it, and its messages.

The comparison and its limits are in `ipnext.model.gate.shadow`.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import Field

from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import SHADOW_IN_FLIGHT, SHADOW_SECONDS, RouteTable, Shadow
from ipnext.model.gate.shadow import ShadowLimits
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.value import Name, Value

DEFAULT_SHARE: Final = 0.1
LONGEST_SHADOW_SECONDS: Final = 7 * 86400.0
FIRST_LOOK_SECONDS: Final = 1.0
"""Shortest time between two looks at a comparison."""
LAST_LOOK_SECONDS: Final = 60.0
"""Longest one, unless the stage lasts longer than a day."""

ShadowState = Literal["planned", "waiting", "starting", "comparing", "passed", "refused", "skipped"]
"""`planned`: its replicas are known, and none is started; `waiting`: for supply, or for another change that moves the
model; `starting`: replicas load; `skipped`: there is nothing to compare with, so the change continues."""


class ShadowSettings(ShadowLimits):
    """Settings of the stage `shadow` in a manifest."""

    share: float = Field(default=DEFAULT_SHARE, gt=0, le=1)
    """Fraction of successful predictions that are mirrored."""
    seconds: float = Field(default=3600.0, gt=0, le=LONGEST_SHADOW_SECONDS)
    """Longest time until a verdict, since the replicas are ready."""
    on_too_few: Literal["pass", "fail"] = "fail"
    """What becomes of the change if there are too few requests even then."""
    max_in_flight: int = Field(default=SHADOW_IN_FLIGHT, ge=1, le=64)
    """As of the shadow in a route table."""
    request_seconds: float = Field(default=SHADOW_SECONDS, gt=0, le=60)
    """Longest time of a mirrored request."""

    @property
    def look_seconds(self) -> float:
        """Time between two looks at the comparison: few enough of them for the history of a run."""
        usual = min(max(FIRST_LOOK_SECONDS, self.seconds / 600), LAST_LOOK_SECONDS)
        return max(usual, self.seconds / 1500)


class ShadowAsked(StageInput):
    """Input of `keep_shadow` and `end_shadow`."""

    settings: Mapping[str, Any] = Field(default_factory=dict)


class ShadowSeen(Value):
    """Answer of `keep_shadow`: how far the shadow is, and when to call again."""

    state: ShadowState
    message: str = ""
    again_seconds: float = 0.0
    limit_seconds: float | None = None
    """The longest time in this state; None: that for supply, which the run knows."""
    passes: bool = False
    """What becomes of the change at that limit."""
    evidence: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """True if the stage ends."""
        return self.state in {"passed", "refused", "skipped"}


class ModelShadow(Value):
    """The shadow of a model while a change keeps it: part of what the store wants, apart from all waves."""

    model: Name
    change_id: str
    shadow: Shadow
    regions: tuple[Name, ...]
    """Regions whose routers mirror, and that have replicas for it."""
    sets: tuple[Deployment, ...]
    """Replicas that hold its generation alone, besides those of all other generations."""
    takes: str = ""
    """Its units and their cost, in words."""
    settings: ShadowSettings
    is_routed: bool = False
    """Whether route tables name it: its replicas were ready once."""

    @property
    def generation(self) -> int:
        """The number of its generation."""
        return self.shadow.generation

    def outside(self, regions: Collection[str]) -> "ModelShadow":
        """Return the shadow without some regions: those that are drained or lost keep none."""
        if not any(region in regions for region in self.regions):
            return self
        left = tuple(region for region in self.regions if region not in regions)
        sets = tuple(found for found in self.sets if found.key.region not in regions)
        return self.model_copy(update={"regions": left, "sets": sets})

    def put_into(self, table: RouteTable) -> RouteTable:
        """Return a route table that names the shadow, if it is the table of one of its regions and allows one."""
        named = self.shadow if self.is_routed and table.region in self.regions and self._fits(table) else None
        return table if table.shadow == named else table.model_copy(update={"shadow": named})

    def _fits(self, table: RouteTable) -> bool:
        numbers = {one.generation for one in table.served} | {share.generation for share in table.shares}
        return bool(table.served) and self.generation not in numbers and not any(one.engines for one in table.served)


class ShadowView(Value):
    """The shadow of a change that runs, as users see it."""

    generation: int
    share: float
    regions: tuple[Name, ...]
    takes: str
    state: ShadowState
    message: str = ""
    """The verdict so far, with its figures."""
    evidence: Mapping[str, Any] = Field(default_factory=dict)
    since: datetime
