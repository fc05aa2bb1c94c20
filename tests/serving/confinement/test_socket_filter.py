"""The kinds of sockets that a process may open after it has limited itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipnext.errors import Unavailable
from serving.confinement import socket_filter
from serving.confinement.socket_filter import limit_sockets
from tests.waiting import PATIENCE_SECONDS

LIMITED = """
import ctypes, json, os, socket, sys
from serving.confinement import socket_filter
from serving.confinement.socket_filter import INTERFACES, LOCAL, TCP, limit_sockets
held, other = socket.socketpair()
server = socket.create_server(("127.0.0.1", 0))
limit_sockets({"none": (), "tcp": TCP, "engine": (*LOCAL, *TCP, *INTERFACES)}[sys.argv[1]])

def tried(act, *given):
    try:
        act(*given)
    except OSError as error:
        return type(error).__name__
    return "done"

def opens(family, kind, protocol=0):
    return tried(lambda: socket.socket(family, kind, protocol).close())

def pairs(kind):
    return tried(lambda: [end.close() for end in socket.socketpair(socket.AF_UNIX, kind)])

def fast_open():
    with socket.socket() as one:
        one.sendto(b"x", socket.MSG_FASTOPEN, server.getsockname())

def fast_open_by_message():
    with socket.socket() as one:
        one.sendmsg([b"x"], [], socket.MSG_FASTOPEN, server.getsockname())

def connect():
    with socket.create_connection(server.getsockname(), 10):
        pass

library = ctypes.CDLL(None, use_errno=True)
flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
told = {
    "local": opens(socket.AF_UNIX, socket.SOCK_STREAM),
    "local datagrams": opens(socket.AF_UNIX, socket.SOCK_DGRAM),
    "TCP": opens(socket.AF_INET, socket.SOCK_STREAM | flags),
    "TCP of IPv6": opens(socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "a connection": tried(connect),
    "a connection by sending": tried(fast_open),
    "a connection by a message": tried(fast_open_by_message),
    "MPTCP": opens(socket.AF_INET, socket.SOCK_STREAM, 262),
    "UDP": opens(socket.AF_INET, socket.SOCK_DGRAM),
    "UDP of IPv6": opens(socket.AF_INET6, socket.SOCK_DGRAM | flags),
    "raw": opens(socket.AF_INET, socket.SOCK_RAW, 1),
    "interfaces": opens(socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "devices": opens(socket.AF_NETLINK, socket.SOCK_DGRAM, 15),
    "hypervisor": opens(socket.AF_VSOCK, socket.SOCK_STREAM),
    "cryptography": opens(socket.AF_ALG, socket.SOCK_SEQPACKET),
    "packets": opens(socket.AF_PACKET, socket.SOCK_RAW),
    "pair": pairs(socket.SOCK_STREAM),
    "pair of datagrams": pairs(socket.SOCK_DGRAM),
    "an existing one": tried(held.send, b"x"),
    "io_uring": "done" if library.syscall(425, 1, 0) >= 0 else ctypes.get_errno(),
    "a child": os.waitstatus_to_exitcode(
        os.system(f"{sys.executable} -S -c 'import socket; socket.socket(2, 2)' 2>&-")
    ),
}
print(json.dumps(told))
"""
DONE, REFUSED = "done", "PermissionError"
KINDS = {
    "local": {"engine"},
    "local datagrams": {"engine"},
    "TCP": {"tcp", "engine"},
    "TCP of IPv6": {"tcp", "engine"},
    "a connection": {"tcp", "engine"},
    "a connection by sending": set(),
    "a connection by a message": set(),
    "MPTCP": set(),
    "UDP": set(),
    "UDP of IPv6": set(),
    "raw": set(),
    "interfaces": {"engine"},
    "devices": set(),
    "hypervisor": set(),
    "cryptography": set(),
    "packets": set(),
    "pair": {"none", "tcp", "engine"},
    "pair of datagrams": set(),
    "an existing one": {"none", "tcp", "engine"},
}


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("kinds", ["none", "tcp", "engine"])
def test_a_process_opens_the_sockets_that_are_listed_and_no_others(kinds: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, kinds],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(socket_filter.__file__).parents[2])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told.pop("io_uring") == 38, "which would create sockets by itself"
    assert told.pop("a child") == 1, "the limits are inherited"
    assert told == {name: DONE if kinds in allowed else REFUSED for name, allowed in KINDS.items()}


def test_an_unknown_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_filter.platform, "machine", lambda: "riscv64")
    with pytest.raises(Unavailable, match="'riscv64'; allowed: x86_64, aarch64"):
        limit_sockets(())


GROUPED = """
import os, sys
from serving.confinement.socket_filter import limit_sockets
limit_sockets((), keeps_group=sys.argv[1] == "kept")
told = []
for leave in (os.setsid, lambda: os.setpgid(0, 0)):
    child = os.fork()
    if not child:
        try:
            leave()
        except PermissionError:
            os._exit(1)
        os._exit(0)
    told.append("refused" if os.waitpid(child, 0)[1] else "done")
print(*told)
"""


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize(("group", "told"), [("kept", "refused refused"), ("free", "done done")])
def test_what_a_process_starts_stays_in_its_group_if_that_is_kept(group: str, told: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", GROUPED, group],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(socket_filter.__file__).parents[2])},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout.strip()) == (0, told), ran.stderr
