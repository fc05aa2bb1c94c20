"""What a forward pass of so many rows takes, learned from those that ran. Pure."""

from typing import Final

_NEW_SHARE: Final = 0.2
"""Weight of the newest measurement: about the last ten count."""
_SLOWEST: Final = 4.0
"""A measurement counts at most so many times what is known: one stall of the machine says little of the next pass."""


class Costs:
    """Seconds of passes by their rows, kept by powers of two."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """A pass of so many rows took so long."""
        step = rows.bit_length()
        known = self._seconds.get(step)
        if known is None:
            self._seconds[step] = seconds
        else:
            self._seconds[step] = known + _NEW_SHARE * (min(seconds, _SLOWEST * known) - known)

    def predict(self, rows: int) -> float | None:
        """Seconds that a pass of so many rows will take; None where nothing is known of that many or more.

        From the next larger step that is known, else from the largest known one in proportion to the rows.
        """
        step = rows.bit_length()
        known = self._seconds.get(step)
        if known is not None:
            return known
        larger = [at for at in self._seconds if at > step]
        if larger:
            return self._seconds[min(larger)]
        if not self._seconds:
            return None
        largest = max(self._seconds)
        return self._seconds[largest] * rows / (1 << (largest - 1))
