"""Partitions: the platform runs in a network namespace of its own, where rules of the kernel swallow packets by port.

In the namespace the local routing table is asked last, so that a rule before it can blackhole what goes to a port or
comes from it, on connections that are open as on new ones. Nobody outside the namespace notices. Needs `ip` and
`unshare` and the right to make a namespace (root, or user namespaces).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

Cut = Literal["both", "answers"]
"""`both`: nothing passes, new connections fail at once. `answers`: requests arrive, their answers are lost."""

MARK = "IPNEXT_NEMESIS_NAMESPACE"
LOCAL_PRIORITY = "1000"
FIRST_PRIORITY = 10


def possible() -> bool:
    """Whether this machine lets this user cut connections."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    setup = f"{_preparation()} && ip rule add pref 10 ipproto tcp dport 9 blackhole"
    return subprocess.run([*_unshare(), "sh", "-ec", setup], capture_output=True, check=False).returncode == 0


def inside() -> bool:
    """Whether this process is in such a namespace."""
    return os.environ.get(MARK) == "1"


def enter(arguments: Sequence[str]) -> None:
    """Begin this program again within a namespace; does not return."""
    script = f'{_preparation()} && exec "$@"'
    command = [*_unshare(), "sh", "-ec", script, "sh", sys.executable, *arguments]
    os.execvpe(command[0], command, {**os.environ, MARK: "1"})


class Partition:
    """Cuts the connections to some ports until it is healed."""

    def __init__(self, ports: Iterable[int], cut: Cut) -> None:
        self._rules = [("sport", port) for port in ports]
        if cut == "both":
            self._rules += [("dport", port) for _, port in self._rules]

    def begin(self) -> None:
        for side, port in self._rules:
            _rule("add", side, port)

    def heal(self) -> None:
        for side, port in self._rules:
            _rule("del", side, port)


def _rule(verb: str, side: str, port: int) -> None:
    subprocess.run(
        ["ip", "rule", verb, "pref", str(FIRST_PRIORITY), "ipproto", "tcp", side, str(port), "blackhole"], check=True
    )


def _unshare() -> list[str]:
    return ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]


def _preparation() -> str:
    return f"ip link set lo up && ip rule add pref {LOCAL_PRIORITY} lookup local && ip rule del pref 0"
