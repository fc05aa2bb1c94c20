"""Addresses of pods: each has its own one of the loopback, so that all may listen on the same port."""

import itertools
import random

FIRST, LAST = 16, 254


class AddressPool:
    """Addresses of one node, 127.N.0.0/16, of which none is given twice."""

    def __init__(self, second: int | None = None) -> None:
        self._second = random.randint(FIRST, LAST) if second is None else second
        self._numbers = itertools.count(1)

    def take(self) -> str:
        """Return an address that no pod had."""
        high, low = divmod(next(self._numbers), 254)
        return f"127.{self._second}.{high}.{low + 1}"
