"""Messages for the comparison of regions with the store, and for repairs.

A model is repaired if its users have another generation.
"""

from collections.abc import Mapping

from pydantic import Field

from ipnext.model.value import Name, Value


class ReconcileInput(Value):
    """Input of workflow `reconcile`."""

    every_seconds: float = Field(default=15.0, gt=0)
    """Time from the end of a pass to the next one."""
    regions: tuple[Name, ...] = ()
    """Regions that a run before found: they are compared if a pass can't find them."""


class RegionAsked(Value):
    """Input of activity `reconcile_region`."""

    region: Name


class RegionReconciled(Value):
    """The comparison of one region with its desired state in the store.

    Counts are of calls made because something differed.
    """

    region: Name
    reachable: bool = True
    skipped: str = ""
    """Why it was not compared: the region is lost, or a drain's run is bringing it back."""
    applied: int = Field(default=0, ge=0)
    """Replica sets sent again."""
    deleted: int = Field(default=0, ge=0)
    """Replica sets that the store does not have."""
    routed: int = Field(default=0, ge=0)
    """Route tables sent again."""
    unrouted: int = Field(default=0, ge=0)
    """Models that the store does not route from this region."""
    failed: Mapping[str, str] = Field(default_factory=dict)
    """The first models whose call failed, with the error; the next pass tries them again."""

    @property
    def in_sync(self) -> bool:
        """True if nothing differed."""
        return self.reachable and not (self.applied or self.deleted or self.routed or self.unrouted)


class FreshnessJudged(Value):
    """Answer of activity `judge_freshness`."""

    parts: int = Field(default=0, ge=0)
    """Parts that ask for freshness, counted for each region of users."""
    breaches: int = Field(default=0, ge=0)
    """Those of them that breach it."""
    failed: Mapping[str, str] = Field(default_factory=dict)
    """The first models that could not be judged, with the error; the next pass tries them again."""


class RepairsRecorded(Value):
    """Answer of activity `record_repairs`: the regions that the run compares next."""

    regions: tuple[Name, ...] = ()
    """Every region that can be reached."""
    repairs: int = Field(default=0, ge=0)
    """Repairs recorded now."""
    models: tuple[Name, ...] = ()
    """The first of their models."""
    failed: Mapping[str, str] = Field(default_factory=dict)
    """The first models that could not be checked or withdrawn, with the error; the next pass tries them again."""
