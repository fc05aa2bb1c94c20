"""Whose program listens on a port, by the system's own list."""

import os
import socket
import sys

import pytest

from ipnext.network import port_owner
from ipnext.network.port_owner import listening_users

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists listeners by user")

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@pytest.mark.usefixtures("listeners")
@pytest.mark.parametrize(
    ("family", "address", "asked", "found"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1", True),
        (socket.AF_INET, "127.0.0.1", "127.0.0.2", False),
        (socket.AF_INET6, "::1", "::1", True),
        (socket.AF_INET6, "::1", "127.0.0.1", False),
        (socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1", True),
    ],
)
def test_a_listener_is_found_at_the_addresses_that_lead_to_it(family, address, asked, found):
    with socket.socket(family) as one:
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            one.bind((address, 0))
        except OSError:
            pytest.skip(f"this machine has no {address}")
        port = one.getsockname()[1]
        assert listening_users(asked, port) == frozenset(), "it is bound, and does not listen yet"
        one.listen()
        assert listening_users(asked, port) == (frozenset({os.getuid()}) if found else frozenset())


def test_users_of_all_listeners_of_the_port_are_found(monkeypatch, tmp_path):
    loopback = "0100007F" if sys.byteorder == "little" else "7F000001"
    lines = [
        f"   {n}: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {user}        0 1 1\n"
        for n, (local, state, user) in enumerate(
            [
                (f"{loopback}:21FC", "0A", 1000),
                ("00000000:21FC", "0A", 1001),
                (f"{loopback}:21FC", "01", 1002),
                (f"{loopback}:21FD", "0A", 1003),
            ]
        )
    ]
    (tmp_path / "tcp").write_text(HEAD + "".join(lines))
    monkeypatch.setattr(port_owner, "_TABLES", (str(tmp_path / "tcp"), str(tmp_path / "tcp6")))
    assert listening_users("127.0.0.1", 0x21FC) == {1000, 1001}
    assert listening_users("127.0.0.2", 0x21FC) == {1001}
    assert listening_users("::1", 0x21FC) == frozenset()
    unspecified = f"   0: {'0' * 32}:21FC {'0' * 32}:0000 0A 00000000:00000000 00:00000000 00000000 1004        0 1 1\n"
    (tmp_path / "tcp6").write_text(HEAD + unspecified)
    assert listening_users("127.0.0.1", 0x21FC) == {1000, 1001, 1004}, "it may take IPv4, too"
    assert listening_users("::1", 0x21FC) == {1004}
    monkeypatch.setattr(port_owner, "_TABLES", (str(tmp_path / "none"), str(tmp_path / "none")))
    assert listening_users("127.0.0.1", 0x21FC) is None
