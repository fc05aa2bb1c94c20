"""How far a host process is on its way from one snapshot to another in its place: nothing of it outlives the agent."""

from collections.abc import Iterable

from ipnext.model.deployment import HostHolds


class GoingOver:
    """Three steps: `next` is fetched while the former snapshot answers; out of routing; the host is told and changes.

    What is wanted of the process stands in the deployment alone: a process that starts anew begins with that.
    """

    def __init__(self) -> None:
        self.next: HostHolds | None = None
        """What it shall hold, until the host has it at hand."""
        self.begun: object | None = None
        """A token of its own for each time, from when it is taken out of routing until it is ready again."""
        self.urls: frozenset[str] = frozenset()
        """Where its engines answered before."""

    def begin(self, urls: Iterable[str]) -> None:
        """It is at hand, and out of routing from now on."""
        self.next, self.begun, self.urls = None, object(), frozenset(urls)

    def end(self) -> None:
        """It is wanted to stay, or starts anew."""
        self.next = self.begun = None
