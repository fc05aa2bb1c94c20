"""Budget of audit entries: entries are kept for ever, so each key and user may cause so many in a time.

Limits of an action, such as quotas of bytes, do not cover entries of uploads that are refused, or of pauses.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from ipnext.errors import RateLimited
from ipnext.model.access.rights import Principal

SETTING: Final = "IPNEXT_AUDIT_ENTRIES_PER_HOUR"

ENTRY_BYTES: Final = 4096
"""Documents and reason of an entry up to this size count as one entry; larger ones as several."""

ACCOUNTS: Final = 4096
"""Accounts whose entries are counted: those that wrote last."""

_HOUR_SECONDS: Final = 3600.0


class EntryBudget:
    """Entries that each account may write: those of an hour at once, then as many as an hour brings.

    Any thread may use it.
    """

    def __init__(self, per_hour: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_hour, self._clock, self._lock = per_hour, clock, threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Account -> entries left, and when that was."""

    def take(self, principal: Principal, size_bytes: int) -> None:
        """Count an entry with documents and a reason of this size.

        RateLimited if the account has used up its budget.
        """
        entries = max(1, -(-size_bytes // ENTRY_BYTES))
        rate = self._per_hour / _HOUR_SECONDS
        with self._lock:
            now = self._clock()
            left, at = self._left.pop(principal.account, (float(self._per_hour), now))
            left = min(float(self._per_hour), left + (now - at) * rate)
            wanted = min(entries, self._per_hour)
            taken = left >= wanted
            self._left[principal.account] = (left - wanted if taken else left, now)
            while len(self._left) > ACCOUNTS:
                self._left.popitem(last=False)
        if not taken:
            msg = (
                f"{principal.text} has caused {self._per_hour} entries of the audit in an hour, "
                f"the most of one key or user ({SETTING}); try again later"
            )
            raise RateLimited(msg, seconds=(wanted - left) / rate)
