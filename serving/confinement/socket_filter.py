"""Limits the kinds of sockets that a process can open, by a seccomp filter. A process does this to itself, irrevocably.

Landlock restricts TCP ports, and no other protocol. The filter refuses all kinds of sockets that are not listed: UDP,
which carries data out by DNS, and address families such as vsock. It does not depend on the version of the C library:
it judges the system calls that create sockets, and refuses io_uring, which creates them without one. It also refuses
TCP Fast Open, which connects while it sends: Landlock's rule for connections does not cover it.

It may also keep a process, and all that it starts, in its process group, by which its parent ends them.
"""

import ctypes
import os
import platform
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from ipnext.errors import Unavailable

_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000
_EPERM: Final = 1
_EACCES: Final = 13
_ENOSYS: Final = 38

_LOAD: Final = 0x20
"""BPF_LD | BPF_W | BPF_ABS"""
_AND: Final = 0x54
"""BPF_ALU | BPF_AND | BPF_K"""
_IF_EQUAL: Final = 0x15
"""BPF_JMP | BPF_JEQ | BPF_K"""
_IF_AT_LEAST: Final = 0x35
"""BPF_JMP | BPF_JGE | BPF_K"""
_IF_ANY_BIT: Final = 0x45
"""BPF_JMP | BPF_JSET | BPF_K"""
_RETURN: Final = 0x06
"""BPF_RET | BPF_K"""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; the low half of an argument comes first on the machines below."""
_ARGUMENT_BYTES: Final = 8
_STEP_BYTES: Final = 8
"""Of a struct sock_filter."""
_TYPE_MASK: Final = 0xF
"""Without SOCK_CLOEXEC and SOCK_NONBLOCK."""
_X32: Final = 0x40000000
"""Lowest number of system calls of the x32 ABI, which has numbers of its own."""
_NETLINK_ROUTE: Final = 0
_MSG_FASTOPEN: Final = 0x20000000


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class _Machine:
    architecture: int
    socket: int
    socketpair: int
    sendto: int
    sendmsg: int
    sendmmsg: int
    setpgid: int
    setsid: int
    io_uring_setup: int = 425

    @property
    def sending(self) -> Iterable[tuple[int, int]]:
        """The calls that send, each with the position of its flags among the arguments."""
        return (self.sendto, 3), (self.sendmsg, 2), (self.sendmmsg, 3)


_MACHINES: Final = {
    "x86_64": _Machine(0xC000003E, 41, 53, 44, 46, 307, 109, 112),
    "aarch64": _Machine(0xC00000B7, 198, 199, 206, 211, 269, 154, 157),
}


@dataclass(frozen=True, slots=True)
class SocketKind:
    """Sockets that a process may open. Empty: any."""

    family: int
    types: tuple[int, ...] = ()
    protocols: tuple[int, ...] = ()


TCP: Final = tuple(
    SocketKind(family, (socket.SOCK_STREAM,), (0, socket.IPPROTO_TCP)) for family in (socket.AF_INET, socket.AF_INET6)
)
"""Without MPTCP, SCTP and SMC, which Landlock's rules for TCP may not cover."""
LOCAL: Final = (SocketKind(socket.AF_UNIX),)
INTERFACES: Final = (SocketKind(socket.AF_NETLINK, (), (_NETLINK_ROUTE,)),)
"""getifaddrs(3) reads the machine's addresses by it, as gloo and NCCL need them."""
_PAIRS: Final = (SocketKind(socket.AF_UNIX, (socket.SOCK_STREAM, socket.SOCK_SEQPACKET)),)
"""Connected ends within a process. A pair of datagram sockets could send to any address."""


def limit_sockets(kinds: Sequence[SocketKind], *, keeps_group: bool = False) -> None:
    """Let this process, and all that it starts, open sockets of these kinds only. Existing ones stay.

    `keeps_group`: none of them leaves its process group.

    Only while it has a single thread: others would stay unlimited. Unavailable if the kernel or the machine cannot do
    it.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        msg = f"sockets can't be limited on machine {platform.machine()!r}; allowed: {', '.join(_MACHINES)}"
        raise Unavailable(msg)
    program = b"".join(_program(machine, kinds, keeps_group=keeps_group))
    code = ctypes.create_string_buffer(program, len(program))
    header = _FilterProgram(len(program) // _STEP_BYTES, ctypes.addressof(code))
    library = ctypes.CDLL(None, use_errno=True)
    if (
        library.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
        or library.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(header), 0, 0) != 0
    ):
        msg = f"this kernel does not limit sockets by seccomp: {os.strerror(ctypes.get_errno())}"
        raise Unavailable(msg)


def _program(machine: _Machine, kinds: Sequence[SocketKind], *, keeps_group: bool) -> Iterable[bytes]:
    """Yield the instructions (struct sock_filter): each test skips its own block unless it applies."""
    yield _step(_LOAD, _ARCHITECTURE)
    yield _step(_IF_EQUAL, machine.architecture, if_true=1)
    yield _refuse(_ENOSYS)  # another architecture has other numbers
    yield _step(_LOAD, _NUMBER)
    yield _step(_IF_AT_LEAST, _X32, if_false=1)
    yield _refuse(_ENOSYS)
    yield _step(_IF_EQUAL, machine.io_uring_setup, if_false=1)
    yield _refuse(_ENOSYS)
    for call in (machine.setpgid, machine.setsid) if keeps_group else ():
        yield _step(_IF_EQUAL, call, if_false=1)
        yield _refuse(_EPERM)
    for call, allowed in ((machine.socket, kinds), (machine.socketpair, _PAIRS)):
        block = [*(step for kind in allowed for step in _allow(kind)), _refuse(_EACCES)]
        yield _step(_IF_EQUAL, call, if_false=len(block))
        yield from block
    for call, flags in machine.sending:
        yield _step(_IF_EQUAL, call, if_false=4)
        yield _step(_LOAD, _argument(flags))
        yield _step(_IF_ANY_BIT, _MSG_FASTOPEN, if_false=1)
        yield _refuse(_EACCES)
        yield _step(_RETURN, _RET_ALLOW)
    yield _step(_RETURN, _RET_ALLOW)


def _allow(kind: SocketKind) -> list[bytes]:
    """Return the instructions that allow a call for this kind, and else go on behind them."""
    tests = [
        [_step(_LOAD, _argument(0)), *_unless_one_of((kind.family,))],
        [_step(_LOAD, _argument(1)), _step(_AND, _TYPE_MASK), *_unless_one_of(kind.types)],
        [_step(_LOAD, _argument(2)), *_unless_one_of(kind.protocols)],
    ]
    given = [test for test, values in zip(tests, ((kind.family,), kind.types, kind.protocols), strict=True) if values]
    steps = [step for test in given for step in test] + [_step(_RETURN, _RET_ALLOW)]
    return [_leave(step, len(steps) - at - 1) for at, step in enumerate(steps)]


_LEAVE: Final = 0xFF
"""Stands for the distance to the end of the block."""


def _unless_one_of(values: Sequence[int]) -> list[bytes]:
    """Leave the block unless the loaded value is one of these."""
    last = len(values) - 1
    return [
        _step(_IF_EQUAL, value, if_true=last - at, if_false=_LEAVE if at == last else 0)
        for at, value in enumerate(values)
    ]


def _leave(step: bytes, distance: int) -> bytes:
    code, if_true, if_false, value = struct.unpack("HBBI", step)
    return struct.pack("HBBI", code, if_true, distance if if_false == _LEAVE else if_false, value)


def _argument(position: int) -> int:
    return _FIRST_ARGUMENT + position * _ARGUMENT_BYTES


def _step(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _refuse(error: int) -> bytes:
    return _step(_RETURN, _RET_ERRNO | error)
