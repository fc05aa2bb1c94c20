"""Progress of a host process in a hot swap from one snapshot to another. It is not stored: it ends with the agent."""

from collections.abc import Iterable

from ipnext.model.deployment.host_control import HostHolds


class SwapProgress:
    """The steps of a hot swap.

    Fetch `next` while the former snapshot answers; leave routing; send the host its new holds.

    No process leaves routing before all processes of its model in the swap have fetched. The desired state is in the
    deployment alone: a restarted process begins with that.
    """

    def __init__(self) -> None:
        self.next: HostHolds | None = None
        """The desired holds, until the host has fetched them."""
        self.fetched = False
        """Whether the host has fetched `next`, and waits for the other processes."""
        self.begun: object | None = None
        """A new token for each swap, from its removal from routing until it is ready again."""
        self.urls: frozenset[str] = frozenset()
        """URLs of its engines before the swap."""

    @property
    def fetching(self) -> bool:
        """Whether a swap is pending and its snapshots are not fetched yet."""
        return self.next is not None and not self.fetched

    def come(self, holds: HostHolds) -> None:
        """Set the next desired holds."""
        self.fetched = self.fetched and self.next == holds
        self.next = holds

    def stay(self) -> None:
        """Cancel the swap; a process that has left routing continues with it."""
        self.next, self.fetched = None, False

    def at_hand(self) -> bool:
        """Record that the host has fetched its next snapshots; return True."""
        self.fetched = True
        return True

    def begin(self, urls: Iterable[str]) -> None:
        """Begin the swap itself: the snapshots are fetched, and the process is out of routing."""
        self.next, self.fetched, self.begun, self.urls = None, False, object(), frozenset(urls)

    def end(self) -> None:
        """End the swap: it is cancelled, or the process restarts."""
        self.next = self.begun = None
        self.fetched = False
