"""Who asks, as the audit of the API will have it."""

import getpass
from urllib.parse import quote

UNKNOWN = "unknown"
LONGEST = 100


def system_user() -> str:
    """The user of the operating system; `unknown` where it has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return UNKNOWN


def header_of(user: str) -> str:
    """A name as a header carries it: what is not printable ASCII is percent-encoded."""
    return quote(user.strip()[:LONGEST], safe=" !#$&'()*+,/:;=?@[]|<>^`{}~") or UNKNOWN
