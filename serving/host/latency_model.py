"""Prediction of a forward pass's duration by its rows, learned from earlier passes. Pure."""

from typing import Final

_NEW_SHARE: Final = 0.2
"""Weight of the newest measurement: about the last ten matter."""
_SLOWEST: Final = 4.0
"""Cap on a measurement, as a multiple of the current estimate: one stall of the machine says little about the next
pass."""


class Costs:
    """Estimated seconds of a pass, by powers of two of its rows."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """Record the duration of a pass."""
        step = rows.bit_length()
        known = self._seconds.get(step)
        if known is None:
            self._seconds[step] = seconds
        else:
            self._seconds[step] = known + _NEW_SHARE * (min(seconds, _SLOWEST * known) - known)

    def predict(self, rows: int) -> float | None:
        """Predict the seconds of a pass. None if no pass was measured.

        Without an estimate for this number of rows, the next larger one is used, else the largest in proportion to the
        rows.
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
