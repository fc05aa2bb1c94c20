"""The parts of a region that each of its replicas depends on."""

from collections.abc import Callable
from typing import NamedTuple

from ipnext.infra.host_room import HostRoom
from ipnext.infra.router_process import RouterProcess


class Around(NamedTuple):
    """What a replica asks of its region."""

    router: RouterProcess
    publish: Callable[[], int]
    """Puts its endpoint into the router table and returns the table's revision."""
    all_fetched: Callable[[str], bool]
    """Whether all replicas of a model that are to go over have at hand what they shall hold."""
    changed: Callable[[], None]
    """Called when what is observed of it may have changed."""
    room: HostRoom
    """Has a place for its host, or not."""
