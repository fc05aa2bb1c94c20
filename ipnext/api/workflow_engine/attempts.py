"""Attempts to submit changes: when each line is due again, and which changes raise an alarm.

Used only by the outbox, from its event loop.
"""

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime

from ipnext.errors import EngineRefused, IPnextError

STUCK_AFTER = 3
"""Attempts after which a change that is not accepted is stuck; one that Temporal refuses is stuck from the first."""

NOT_SUBMITTED = "not submitted yet: "
"""Begin of the message of a recorded change or drain while attempts to submit it fail."""

LONGEST_ERROR = 500
"""Characters of an error that are written on a change."""


@dataclass(frozen=True)
class FailedSubmission:
    """A failed submission of a change, a drain or replans."""

    change_id: str
    """Id of the change or drain, or of the oldest replan."""
    tries: int
    since: datetime
    error: str
    refused: bool
    """Temporal answered and refused, so that waiting alone may not help."""

    @property
    def stuck(self) -> bool:
        """Whether an operator should look at it."""
        return self.refused or self.tries >= STUCK_AFTER

    @property
    def message(self) -> str:
        """Text such as `not submitted yet: ..., tried 4 times since 2026-01-01 10:00 UTC`."""
        times = "once" if self.tries == 1 else f"{self.tries} times"
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC"
        return f"{NOT_SUBMITTED}{self.error[:LONGEST_ERROR]}, tried {times} since {since}"


class Attempts:
    """One line for each model, or for each region with a drain.

    Only the first change of a line is ever tried, so a line has at most one failed attempt.
    """

    def __init__(
        self, *, first_seconds: float, most_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first = first_seconds
        self._most = most_seconds
        self._clock = clock
        self._failed: dict[str, FailedSubmission] = {}
        self._due: dict[str, float] = {}
        self._written: dict[str, tuple[str, str]] = {}
        self.refused = 0
        """Submissions that Temporal refused although the change may be valid, since this process began."""

    def due(self, line: str) -> bool:
        """Return whether a line may be tried now."""
        return self._due.get(line, 0.0) <= self._clock()

    @property
    def lines(self) -> AbstractSet[str]:
        """Lines whose last attempt failed."""
        return self._failed.keys()

    def note_failure(self, line: str, change_id: str, error: IPnextError | None) -> FailedSubmission:
        """Record a failed attempt (`error` None: it timed out); the line is due again after a wait that doubles."""
        before = self._failed.get(line)
        tries = before.tries + 1 if before is not None and before.change_id == change_id else 1
        refused = isinstance(error, EngineRefused)
        self.refused += refused
        attempt = FailedSubmission(
            change_id=change_id,
            tries=tries,
            since=before.since if before is not None and tries > 1 else datetime.now(UTC),
            error="timed out" if error is None else error.message,
            refused=refused,
        )
        self._failed[line] = attempt
        self._due[line] = self._clock() + min(self._first * 2 ** min(tries - 1, 16), self._most)
        return attempt

    def worth_writing(self, line: str) -> bool:
        """Return whether to write the failure to the store.

        The error changed, or the number of tries is a power of two. An outage of hours is then some ten writes for each
        change.
        """
        attempt = self._failed[line]
        doubled = attempt.tries & (attempt.tries - 1) == 0
        told = self._written.get(line) == (attempt.change_id, attempt.error)
        if not attempt.stuck or (told and not doubled):
            return False
        self._written[line] = (attempt.change_id, attempt.error)
        return True

    def done(self, line: str) -> None:
        """Forget a line whose change was accepted or refused for good."""
        self._failed.pop(line, None)
        self._due.pop(line, None)
        self._written.pop(line, None)

    def keep(self, lines: AbstractSet[str]) -> None:
        """Forget every line that has nothing to submit any more, because another process submitted it."""
        for gone in self._failed.keys() - lines:
            self.done(gone)

    def stuck(self) -> tuple[FailedSubmission, ...]:
        """Return the changes that an operator should look at, those waiting longest first."""
        return tuple(sorted((a for a in self._failed.values() if a.stuck), key=lambda a: a.since))
