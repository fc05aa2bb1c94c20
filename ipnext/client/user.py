"""User name of the client, for the audit of the API."""

import getpass
from urllib.parse import quote

UNKNOWN = "unknown"
LONGEST = 100


def system_user() -> str:
    """Return the user of the operating system; `unknown` if it has no name."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return UNKNOWN


def header_of(user: str) -> str:
    """Encode a name for a header: characters that are not printable ASCII are percent-encoded."""
    return quote(user.strip()[:LONGEST], safe=" !#$&'()*+,/:;=?@[]|<>^`{}~") or UNKNOWN
