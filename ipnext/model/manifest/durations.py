"""Durations as manifests write them, such as `90s` or `15m`."""

import re
from datetime import timedelta
from typing import Final

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])")


def parse_duration(text: str) -> timedelta:
    """Return a duration such as `90s`, `15m`, `2h` or `1d`. Raises ValueError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        msg = f"{text!r} is not a duration; allowed: a whole number and s, m, h or d, such as 90s, 15m or 2h"
        raise ValueError(msg)
    return timedelta(seconds=int(found[1]) * _UNITS[found[2]])
