"""Slots of a process that all clients share.

A limit of all, and of each principal, so that none occupies those of others.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ipnext.errors import RateLimited, Unavailable
from ipnext.model.access.rights import Principal

SHARE = 4
"""One principal has at most the SHARE-th part of the slots."""


def holder_of(principal: Principal) -> str | None:
    """Return the holder by which slots are counted: the key behind a session, or the user.

    None without authentication.
    """
    return None if principal.kind == "local" else principal.account


class Slots:
    """Slots of one kind. Use it in one event loop."""

    def __init__(self, most: int, noun: str) -> None:
        """`noun` names the users of slots in messages, such as `streams`."""
        self.most = most
        self.per_holder = max(1, most // SHARE)
        self._noun = noun
        self._held: Counter[str | None] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    def check(self, holder: str | None, *, hint: str = "try again later") -> None:
        """Check that there is a slot for a holder; None: no separate count.

        Raises:
            Unavailable: all are occupied.
            RateLimited: the holder has its share.
        """
        if len(self) >= self.most:
            msg = f"{self.most} {self._noun} are open, as many as this server takes at once; {hint}"
            raise Unavailable(msg)
        if holder is not None and self._held[holder] >= self.per_holder:
            msg = f"{self.per_holder} {self._noun} of yours are open, the most of one key or person; {hint}"
            raise RateLimited(msg)

    @contextmanager
    def occupy(self, holder: str | None, *, hint: str = "try again later") -> Iterator[None]:
        """Occupy a slot. Raises as `check`."""
        self.check(holder, hint=hint)
        self._held[holder] += 1
        try:
            yield
        finally:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
