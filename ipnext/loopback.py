"""Which addresses no other machine can reach, and which a listener may not take."""

import ipaddress
from collections.abc import Sequence

from ipnext.errors import InvalidInput


def is_loopback(host: str) -> bool:
    """Whether a host is `localhost` or a loopback address (127.0.0.0/8, ::1), as text without brackets or port."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_bind(host: str, *, field: str, name: str, lacks: Sequence[str], insecure_bind: bool) -> None:
    """Check that a listener may listen on `host`. The one check of every setting that names an address.

    `lacks`: what keeps strangers out and is not there, such as TLS. `name`: the setting as messages name it.

    Raises:
        InvalidInput: other machines reach the address, something is lacking, and the operator does not insist.
    """
    if is_loopback(host) or not lacks or insecure_bind:
        return
    msg = (
        f"{name}: {host} can be reached from other machines, and the listener lacks {' and '.join(lacks)}. "
        "Listen on 127.0.0.1, or give it that; IPNEXT_INSECURE_BIND=true lets it listen anyway"
    )
    raise InvalidInput(msg, field=field, value=host, allowed=("127.0.0.1",))


def check_bind_with_port(address: str, *, field: str, name: str, lacks: Sequence[str], insecure_bind: bool) -> None:
    """As `check_bind`, for HOST:PORT. InvalidInput also for an address that is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or (":" in host and not host.startswith("[")):
        msg = f"{name}: {address!r} is no address; allowed: HOST:PORT, such as 127.0.0.1:9464"
        raise InvalidInput(msg, field=field, value=address)
    check_bind(host, field=field, name=name, lacks=lacks, insecure_bind=insecure_bind)
