"""An address on this machine that no browser page finds: that of the UI of Temporal's development server."""

import secrets
import socket
from ipaddress import IPv4Address
from typing import NamedTuple


class HiddenAddress(NamedTuple):
    """A loopback address with a free port, one of some 2^38: a browser page finds it neither by chance nor by trying.

    It is not hidden from other users of the machine.
    """

    host: str
    port: int

    @classmethod
    def draw(cls) -> "HiddenAddress":
        """Draw an address outside 127.0.0.0/16, which other programs use."""
        host = str(IPv4Address(0x7F000000 + 0x10000 + secrets.randbelow(0xFFFFFF - 0x10000)))
        with socket.socket() as found:
            found.bind((host, 0))
            return cls(host, found.getsockname()[1])

    @property
    def url(self) -> str:
        """URL of the address."""
        return f"http://{self.host}:{self.port}"
