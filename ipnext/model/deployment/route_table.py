"""Route tables: the desired traffic of one model in one region, and its shadow."""

from collections.abc import Collection
from typing import Final

from pydantic import Field, model_validator

from ipnext.model.access.predictions import PredictionAccess
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.value import Name, Value


class RouteShare(Value):
    """Fraction of a region's requests that go to a generation in a serving region."""

    to: Name
    generation: int
    fraction: float = Field(ge=0, le=1.000001)


SHADOW_IN_FLIGHT: Final = 8
"""Default for the mirrored requests of a model that a router has under way at once."""
SHADOW_SECONDS: Final = 10.0
"""Default for the longest time of a mirrored request."""


class Shadow(Value):
    """A generation that answers no client: a router sends it a share of the requests that others have answered."""

    served: ServedGeneration
    """The generation, whose own snapshots alone answer, whatever its sync policy."""
    share: float = Field(gt=0, le=1)
    """Fraction of successful predictions that are mirrored."""
    max_in_flight: int = Field(default=SHADOW_IN_FLIGHT, ge=1, le=64)
    """Most mirrored requests under way in a router. Some more wait, and further ones are dropped."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Which requests are chosen follows from it. Another seed also begins another comparison."""
    deadline_seconds: float = Field(default=SHADOW_SECONDS, gt=0, le=60)
    """Longest time of a mirrored request."""

    @property
    def generation(self) -> int:
        """The number of its generation."""
        return self.served.generation

    @model_validator(mode="after")
    def _answers_predictions(self) -> "Shadow":
        _refuse_engines(self.served)
        return self


def _refuse_engines(served: ServedGeneration) -> None:
    if served.engines:
        names = ", ".join(sorted(served.engines))
        msg = (
            f"generation {served.generation} has parts with an engine of their own ({names}); generated answers and "
            "streams are not compared, so such a model has no shadow"
        )
        raise ValueError(msg)


def refuse_served(shadow: Shadow, numbers: Collection[int], places: str) -> None:
    """Raise ValueError if a shadow's generation is one of these, which answer clients."""
    if shadow.generation in numbers:
        msg = f"shadow: generation {shadow.generation} is in {places}; a shadow answers no client"
        raise ValueError(msg)


class RouteTable(Value):
    """The rules by which the gateway of `region` answers requests for `model`.

    A later revision replaces an earlier one. `shares` choose region and generation by weight; `served` lists every
    generation that the region's router may answer with, including those without traffic (a client may pin them by
    header).
    """

    model: Name
    region: Name
    revision: int = Field(ge=1)
    shares: tuple[RouteShare, ...]
    served: tuple[ServedGeneration, ...]
    access: PredictionAccess = "open"
    """The manifest's access at the time of the table. The region's access list is newer and wins if it has the
    model."""
    unmet_rules: tuple[str, ...] = ()
    """Rules of the plan that leave the region's users without a serving region; read only if `shares` is empty. For
    a model that has never served: the reason."""

    pending: bool = False
    """Whether only a manifest that does not serve yet names these users. No transition has written the table, and none
    counts on its region."""

    shadow: Shadow | None = None
    """The generation to which the region's router mirrors requests; it is neither in `served` nor in `shares`."""

    @model_validator(mode="after")
    def _shadow_is_apart(self) -> "RouteTable":
        if self.shadow is not None:
            refuse_served(self.shadow, {one.generation for one in self.served}, "`served`")
            refuse_served(self.shadow, {share.generation for share in self.shares}, "`shares`")
            if not self.served:
                msg = "shadow: `served` has no generation whose answers it could be compared with"
                raise ValueError(msg)
            for one in self.served:
                _refuse_engines(one)
        return self

    @property
    def answering(self) -> frozenset[int]:
        """The generations that answer the region's users."""
        return frozenset(share.generation for share in self.shares if share.fraction > 0)

    @property
    def refuses(self) -> bool:
        """Whether the table has no shares and lists no generation: it only states the reason."""
        return not self.shares and not self.served
