"""The parts of a region that each of its replicas depends on."""

from collections.abc import Callable
from typing import NamedTuple

from ipnext.infra.host.limit import HostRoom
from ipnext.infra.host.runtime import HostRuntime
from ipnext.infra.router.process import RouterProcess


class RegionParts(NamedTuple):
    """The parts of its region that a replica uses."""

    router: RouterProcess
    publish: Callable[[], int]
    """Puts its endpoint into the router table and returns the table's revision."""
    all_fetched: Callable[[str], bool]
    """Whether all replicas of a model that are to be hot swapped have fetched their desired snapshots."""
    changed: Callable[[], None]
    """Called when the replica's observed state may have changed."""
    room: HostRoom
    """Grants places for hosts, up to the region's limit."""
    hosts: HostRuntime
    """Starts its host."""
