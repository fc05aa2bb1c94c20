"""How far a host process is on its way from one snapshot to another in its place: nothing of it outlives the agent."""

from collections.abc import Iterable

from ipnext.model.deployment import HostHolds


class GoingOver:
    """Three steps: `next` is fetched while the former snapshot answers; out of routing; the host is told and changes.

    No process leaves routing before all of its model that go over have fetched.
    What is wanted of the process stands in the deployment alone: a process that starts anew begins with that.
    """

    def __init__(self) -> None:
        self.next: HostHolds | None = None
        """What it shall hold, until the host has it at hand."""
        self.fetched = False
        """Whether the host has `next` at hand, and waits for others."""
        self.begun: object | None = None
        """A token of its own for each time, from when it is taken out of routing until it is ready again."""
        self.urls: frozenset[str] = frozenset()
        """Where its engines answered before."""

    @property
    def fetching(self) -> bool:
        """Whether it is to go over, and has not at hand yet what it shall hold."""
        return self.next is not None and not self.fetched

    def come(self, holds: HostHolds) -> None:
        """What it shall hold next."""
        self.fetched = self.fetched and self.next == holds
        self.next = holds

    def stay(self) -> None:
        """It is wanted to hold what it holds; one that has left routing goes on to that."""
        self.next, self.fetched = None, False

    def at_hand(self) -> bool:
        """The host has fetched it; True."""
        self.fetched = True
        return True

    def begin(self, urls: Iterable[str]) -> None:
        """It is at hand, and out of routing from now on."""
        self.next, self.fetched, self.begun, self.urls = None, False, object(), frozenset(urls)

    def end(self) -> None:
        """It is wanted to stay, or starts anew."""
        self.next = self.begun = None
        self.fetched = False
