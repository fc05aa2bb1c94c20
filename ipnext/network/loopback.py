"""Addresses that no other machine can reach, and the check of a listener's address."""

import ipaddress
from collections.abc import Sequence

from ipnext.errors import InvalidInput


def is_loopback(host: str) -> bool:
    """Return whether a host is `localhost` or a loopback address (127.0.0.0/8, ::1).

    The host is text without brackets or port.
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_bind(host: str, *, field: str, name: str, lacks: Sequence[str], insecure_bind: bool) -> None:
    """Check that a listener may listen on `host`. Every setting that names an address uses this check.

    `lacks` are the missing protections, such as TLS. `name` is the setting's name in messages.

    Raises:
        InvalidInput: other machines reach the address, a protection is missing, and the operator does not insist.
    """
    if is_loopback(host) or not lacks or insecure_bind:
        return
    msg = (
        f"{name}: {host} can be reached from other machines, and the listener lacks {' and '.join(lacks)}. "
        "Listen on 127.0.0.1, or give it that; IPNEXT_INSECURE_BIND=true lets it listen anyway"
    )
    raise InvalidInput(msg, field=field, value=host, allowed=("127.0.0.1",))


def check_bind_with_port(address: str, *, field: str, name: str, lacks: Sequence[str], insecure_bind: bool) -> None:
    """Check as `check_bind`, for HOST:PORT. InvalidInput also if the address is invalid."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or (":" in host and not host.startswith("[")):
        msg = f"{name}: {address!r} is no address; allowed: HOST:PORT, such as 127.0.0.1:9464"
        raise InvalidInput(msg, field=field, value=address)
    check_bind(host, field=field, name=name, lacks=lacks, insecure_bind=insecure_bind)
