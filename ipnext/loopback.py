"""Which addresses no other machine can reach."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host is `localhost` or a loopback address (127.0.0.0/8, ::1), as text without brackets or port."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
