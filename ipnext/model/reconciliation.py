"""What travels when regions are compared with the store, and models whose users get another generation are repaired."""

from pydantic import Field

from ipnext.model.value import Name, Value


class ReconcileInput(Value):
    """Input of workflow `reconcile`."""

    every_seconds: float = Field(default=15.0, gt=0)
    """Between the end of a pass and the next one."""


class RegionAsked(Value):
    """Input of activity `reconcile_region`."""

    region: Name


class RegionReconciled(Value):
    """One region compared with what the store wants of it. Counts are of calls made because something differed."""

    region: Name
    reachable: bool = True
    skipped: str = ""
    """Why it was not compared: the region is lost, or on its way back by a drain's own run."""
    applied: int = Field(default=0, ge=0)
    """Replica sets told again."""
    deleted: int = Field(default=0, ge=0)
    """Replica sets that the store does not have."""
    routed: int = Field(default=0, ge=0)
    """Route tables told again."""
    unrouted: int = Field(default=0, ge=0)
    """Models that the store routes nowhere from this region."""

    @property
    def in_sync(self) -> bool:
        """True if nothing differed."""
        return self.reachable and not (self.applied or self.deleted or self.routed or self.unrouted)


class RepairsRecorded(Value):
    """Answer of activity `record_repairs`: what the run compares next."""

    regions: tuple[Name, ...] = ()
    """Every region that can be asked."""
    repairs: int = Field(default=0, ge=0)
    """Repairs recorded now."""
    models: tuple[Name, ...] = ()
    """The first of their models."""
