"""Work that searches may do, counted and not timed: the same input gives the same waves on every machine."""

import math


class Effort:
    """Work that is left to the searches that share it, in replica sets evaluated."""

    def __init__(self, left: float = math.inf) -> None:
        self.left = left

    @property
    def is_spent(self) -> bool:
        """True if no work is left."""
        return self.left <= 0

    def spend(self, work: float) -> None:
        """Take some of the work that is left; the last piece may be larger."""
        self.left -= work
