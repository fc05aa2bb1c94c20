"""The users whose programs listen on a TCP port of this machine, as Linux lists them.

The client of the API asks before it sends a token that only the receiver's address protects: any user may listen on a
port that a platform has left.
"""

import ipaddress
import sys
from pathlib import Path
from typing import Final

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTENS: Final = "0A"
_ORDER: Final = -1 if sys.byteorder == "little" else 1
"""Each 32-bit word of an address is printed as a number of this machine."""


def listening_users(address: str, port: int) -> frozenset[int] | None:
    """Return the ids of the users that listen where a connection to an IP address would go.

    None if the system has no such list. An empty set: no program listens there.
    """
    found: set[int] = set()
    wanted = ipaddress.ip_address(address)
    for table in _TABLES:
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            if table == _TABLES[0]:
                return None
            continue  # a machine without IPv6
        for fields in map(str.split, lines):
            local, state, user = fields[1], fields[3], int(fields[7])
            if state == _LISTENS and _takes(local, wanted, port):
                found.add(user)
    return frozenset(found)


def _takes(local: str, wanted: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
    """Whether a listener at `local`, as hexadecimal ADDRESS:PORT, takes a connection to this address."""
    digits, _, number = local.partition(":")
    if int(number, 16) != port:
        return False
    words = bytes.fromhex(digits)
    found = ipaddress.ip_address(b"".join(words[n : n + 4][::_ORDER] for n in range(0, len(words), 4)))
    if found.is_unspecified:
        return found.version == 6 or wanted.version == 4
    return wanted in {found, getattr(found, "ipv4_mapped", None)}
