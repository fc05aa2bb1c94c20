"""An address on this machine that no page in a browser finds: that of the UI of Temporal's development server."""

import secrets
import socket
from ipaddress import IPv4Address
from typing import NamedTuple


class HiddenAddress(NamedTuple):
    """A loopback address and a free port there, one of some 2^38: a page in a browser finds it neither by chance nor by trying.

    It hides nothing from other users of the machine.
    """

    host: str
    port: int

    @classmethod
    def draw(cls) -> "HiddenAddress":
        """Draw one, not of 127.0.0.0/16, which people use."""
        host = str(IPv4Address(0x7F000000 + 0x10000 + secrets.randbelow(0xFFFFFF - 0x10000)))
        with socket.socket() as found:
            found.bind((host, 0))
            return cls(host, found.getsockname()[1])

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.host}:{self.port}"
