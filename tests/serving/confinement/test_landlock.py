"""A host that confines itself: what it may do no more, and that it answers and fetches all the same."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import structlog.testing
from landlockpy import LandlockError, abi_version

from ipnext.errors import Unavailable
from serving.confinement import landlock
from serving.confinement.landlock import Confinement, LandlockRights, confine, make_ruleset
from tests.waiting import PATIENCE_SECONDS

CONFINED = """
import json, os, socket, subprocess, sys
from pathlib import Path
from serving.confinement.landlock import Confinement, confine
cache, outside, parent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
held = os.open(outside / "secret", os.O_RDONLY)
assert confine(Confinement.REQUIRED, readable=[cache])

def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

def listen():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))

def connect():
    with socket.create_connection(("127.0.0.1", int(sys.argv[4])), 10):
        pass

def ask():
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(str(outside / "socket"))

def opens(*kind):
    return tried(lambda: socket.socket(*kind).close())

told = {
    "reads its cache": tried((cache / "weights").read_bytes),
    "imports a module": tried(lambda: __import__("sqlite3")),
    "reads what it has open": tried(lambda: os.read(held, 1)),
    "reads another file": tried((outside / "secret").read_bytes),
    "lists another directory": tried(lambda: list(outside.iterdir())),
    "writes into its cache": tried(lambda: (cache / "weights").write_bytes(b"")),
    "writes another file": tried(lambda: (outside / "made").write_bytes(b"")),
    "removes a file": tried((cache / "weights").unlink),
    "goes by way of its own descriptors": tried((Path("/proc/self/root") / str(outside)[1:] / "secret").read_bytes),
    "starts a program": tried(lambda: subprocess.run(["/bin/true"])),
    "starts another Python": tried(lambda: subprocess.run([sys.executable, "-c", ""])),
    "listens": tried(listen),
    "connects": tried(connect),
    "asks by a socket file": tried(ask),
    "opens a socket of UDP": opens(socket.AF_INET, socket.SOCK_DGRAM),
    "opens a socket to its hypervisor": opens(socket.AF_VSOCK, socket.SOCK_STREAM),
    "opens a netlink socket": opens(socket.AF_NETLINK, socket.SOCK_RAW),
    "makes a pair for its event loop": tried(lambda: [end.close() for end in socket.socketpair()]),
    "signals another process": tried(lambda: os.kill(parent, 0)),
    "reads another's environment": tried(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
    "reads its own": tried(lambda: Path("/proc/self/environ").read_bytes()),
    "throws away": tried(lambda: Path("/dev/null").write_bytes(b"x")),
}
print(json.dumps(told))
"""

try:
    ABI = abi_version()
except LandlockError:
    ABI = 0

needs_landlock = pytest.mark.skipif(ABI < 6, reason=f"this kernel's Landlock is of version {ABI}: signals need 6")


@needs_landlock
@pytest.mark.usefixtures("subprocesses")
def test_what_a_confined_process_may_do(tmp_path: Path) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    for directory in (cache, outside):
        directory.mkdir()
    (cache / "weights").write_bytes(b"w")
    (outside / "secret").write_bytes(b"s")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as named:
        named.bind(str(outside / "socket"))
        named.listen()
        words = (str(cache), str(outside), str(os.getpid()), str(server.getsockname()[1]))
        ran = subprocess.run(
            [sys.executable, "-c", CONFINED, *words],
            capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False, cwd=outside,
            env={**os.environ, "PYTHONPATH": str(Path(landlock.__file__).parents[2])},
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    refused = "PermissionError"
    assert json.loads(ran.stdout) == {
        "reads its cache": "done",
        "imports a module": "done",
        "reads what it has open": "done",
        "reads another file": refused,
        "lists another directory": refused,
        "writes into its cache": refused,
        "writes another file": refused,
        "removes a file": refused,
        "goes by way of its own descriptors": refused,
        "starts a program": refused,
        "starts another Python": refused,
        "listens": refused,
        "connects": refused,
        "asks by a socket file": refused,
        "opens a socket of UDP": refused,
        "opens a socket to its hypervisor": refused,
        "opens a netlink socket": refused,
        "makes a pair for its event loop": "done",
        "signals another process": refused,
        "reads another's environment": refused,
        "reads its own": "done",
        "throws away": "done",
    }
    assert (cache / "weights").read_bytes() == b"w"


def test_it_can_be_off() -> None:
    assert not confine(Confinement.OFF, readable=[])


def test_a_kernel_without_landlock_is_told_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "_version", lambda: 0)
    assert not confine(Confinement.AVAILABLE, readable=[])
    with pytest.raises(Unavailable, match="this kernel has no Landlock"):
        confine(Confinement.REQUIRED, readable=[])


@pytest.mark.parametrize("version", [1, 3])
def test_a_kernel_with_less_than_required_is_refused(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(landlock, "_version", lambda: version)
    with pytest.raises(Unavailable, match=f"of this kernel is of version {version}, .*=required needs version 4"):
        make_ruleset(Confinement.REQUIRED, LandlockRights())


def test_it_is_logged_what_an_older_kernel_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "_version", lambda: 3)
    with structlog.testing.capture_logs() as lines:
        rules = make_ruleset(Confinement.AVAILABLE, LandlockRights())
    if rules is not None:
        rules.close()
    assert [line["unrestricted"] for line in lines] == [["TCP ports", "signals and abstract Unix sockets"]]


FIRST_IMPORT = """
import os, sys, tempfile
from pathlib import Path
tempfile.tempdir = sys.argv[1] + "/nowhere"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.argv[1]
from serving.confinement.landlock import Confinement, confine
from serving.host.host import preload
assert confine(Confinement.AVAILABLE, readable=[Path(sys.argv[1])])
import serving.engines.torch.engine
preload()
"""


@needs_landlock
@pytest.mark.usefixtures("subprocesses")
def test_torch_can_be_imported_where_it_has_never_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIRST_IMPORT, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == []
