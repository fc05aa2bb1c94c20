"""An engine is confined by the host that starts it, and so is that host.

A program in the engine's place tries what it must not do.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from landlockpy import LandlockError, abi_version

import serving
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until

PRYING = Path(__file__).parent / "prying_engine.py"

try:
    ABI = abi_version()
except LandlockError:
    ABI = 0

pytestmark = [
    pytest.mark.usefixtures("subprocesses"),
    pytest.mark.skipif(ABI < 6, reason=f"this kernel's Landlock is of version {ABI}: signals need 6"),
]

DONE, REFUSED = "done", "PermissionError"
NEEDED = {
    "reads its snapshot": DONE,
    "writes into its home": DONE,
    "writes a temporary file": DONE,
    "starts the system's compiler": DONE,
    "starts itself": DONE,
    "listens on its port": DONE,
    "signals a process of its own": DONE,
    "opens a local socket": DONE,
    "reads the machine's addresses": DONE,
    "reads its own": DONE,
}
NOT_NEEDED = {
    "reads another snapshot": REFUSED,
    "reads the agent's state": REFUSED,
    "lists the agent's state": REFUSED,
    "writes there": REFUSED,
    "writes into the cache": REFUSED,
    "adds to the cache": REFUSED,
    "writes a log of others": REFUSED,
    "starts a program that it wrote": REFUSED,
    "listens on another port": REFUSED,
    "connects to a foreign port": REFUSED,
    "connects as it sends": REFUSED,
    "opens a socket of UDP": REFUSED,
    "opens a socket of MPTCP": REFUSED,
    "opens a socket to its hypervisor": REFUSED,
    "hears of devices": REFUSED,
    "signals its keeper": REFUSED,
    "reads another's environment": REFUSED,
    "privileges": {"new": False, "over processes": False},
    "secrets": [],
    "outside of its home": [],
}


@pytest.fixture
def engine(yard, shelf, tmp_path):
    """A host that holds snapshot 1 with the prying program, and what that has told.

    Snapshot 2 lies in the same cache.
    """
    (tmp_path / "wanted.json").write_text("{}")
    other = shelf.store.fetch(shelf.published[2].uri, tmp_path / "cache")

    def start(*extra, **hold):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            given = {"state": str(tmp_path), "other": other.name, "port": port, "test": os.getpid()}
            host = yard.start(
                "host",
                "--inherit-environment=PRYING",
                *extra,
                IPNEXT_VLLM_COMMAND=f"{{python}} {PRYING} {{directory}} {{port}}",
                PRYING=json.dumps(given),
                AWS_SECRET_ACCESS_KEY="of the artifact store",
                HF_TOKEN="of a hub",
                PGPASSWORD="of a database",
                XDG_CACHE_HOME=str(tmp_path / "shared"),
            )
            host.hold(shelf.hold(1, **hold))
            return host, until(lambda: told(host), why=lambda: (tmp_path / "host.log").read_text()[-2000:])

    return start


def told(host):
    """What the program has said; nothing while it has not."""
    files = list((host.root / "logs").glob("*.engine-*.log"))
    lines = files[0].read_text().splitlines() if files else []
    return next((json.loads(line) for line in lines if line.startswith("{")), None)


def test_an_engine_does_what_it_needs_and_nothing_else(engine):
    _, tries = engine()
    assert {name: tries[name] for name in NEEDED} == NEEDED
    assert {name: tries[name] for name in NOT_NEEDED} == NOT_NEEDED


@pytest.mark.parametrize("more", [{"swap": True}, {"adapters": 1}])
def test_an_engine_that_takes_snapshots_while_it_runs_reads_the_cache(engine, more):
    _, tries = engine(**more)
    assert tries["reads another snapshot"] == DONE
    assert tries["adds to the cache"] == REFUSED


def test_an_operator_may_open_more_and_its_caches_stay_where_it_says(engine, tmp_path):
    (tmp_path / "shared").mkdir()
    _, tries = engine(f"--writable={tmp_path / 'shared'}", f"--readable={tmp_path / 'wanted.json'}")
    assert tries["reads the agent's state"] == DONE
    assert tries["writes there"] == REFUSED
    assert tries["outside of its home"] == ["XDG_CACHE_HOME"]


def test_confinement_can_be_off(engine):
    _, tries = engine("--confinement=off")
    assert (tries["reads the agent's state"], tries["writes there"], tries["connects to a foreign port"]) == (DONE,) * 3


def test_the_directory_of_an_engine_goes_with_it(engine):
    host, tries = engine()
    place = Path(tries["home"]).parent
    assert place.is_dir()
    host.hold()
    until(lambda: not place.exists())


def test_the_directory_of_an_engine_goes_with_a_host_that_is_killed(engine):
    host, tries = engine()
    family = host.family()
    host.process.send_signal(signal.SIGKILL)
    host.process.wait()
    until(lambda: gone(family))
    until(lambda: not Path(tries["home"]).exists())


HOST = """
import json, socket, sys
from pathlib import Path
from serving.genai.host import _arguments, confine, prepare_places
from tests.genai.host.prying_engine import open_socket, status, tried
root = Path(sys.argv[1])
given = _arguments(
    ["--sockets", str(root / "h"), "--region", "r", "--id", "h",
     "--artifacts", "file:///s", "--cache", str(root / "cache")]
)
(root / "h").mkdir()
(root / "logs").mkdir()
confine(given, writable=prepare_places(given))
print(json.dumps({
    "reads the cache": tried(lambda: list((root / "cache").iterdir())),
    "writes a log": tried(lambda: (root / "logs" / "one.log").write_bytes(b"")),
    "makes the socket of an engine": tried(lambda: (root / "h" / "e" / "one").mkdir()),
    "writes into the cache": tried(lambda: (root / "cache" / "made").write_bytes(b"")),
    "reads the agent's state": tried((root / "wanted.json").read_bytes),
    "takes its own socket's place": tried(lambda: (root / "h" / "agent.sock").write_bytes(b"")),
    "opens a socket of UDP": tried(lambda: open_socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "opens a local socket": tried(lambda: open_socket(socket.AF_UNIX, socket.SOCK_STREAM)),
    "privileges": int(status("CapEff"), 16) & ~0b110 != 0,
}))
"""


def confined_host(tmp_path, **command):
    """What a host with this command of its engines can do."""
    (tmp_path / "wanted.json").write_text("{}")
    roots = os.pathsep.join({str(Path(serving.__file__).parents[1]), str(Path(__file__).parents[3])})
    ran = subprocess.run(
        [sys.executable, "-c", HOST, str(tmp_path)],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": roots, **command},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_host_that_finds_no_engine_yet_limits_their_sockets_all_the_same(tmp_path):
    tries = confined_host(tmp_path, IPNEXT_VLLM_PYTHON="/nowhere/python")
    assert tries["reads the agent's state"] == DONE, "its engines will be confined"
    assert (tries["opens a socket of UDP"], tries["opens a local socket"]) == (REFUSED, DONE)


def test_a_host_of_engines_is_confined_itself(tmp_path):
    assert confined_host(tmp_path, IPNEXT_VLLM_COMMAND="sleep 1000") == {
        "reads the cache": DONE,
        "makes the socket of an engine": DONE,
        "writes into the cache": REFUSED,
        "writes a log": REFUSED,
        "reads the agent's state": REFUSED,
        "takes its own socket's place": REFUSED,
        "opens a socket of UDP": REFUSED,
        "opens a local socket": DONE,
        "privileges": False,
    }


def test_a_host_ends_with_its_place_for_engines(engine, shelf):
    host, tries = engine()
    place = Path(tries["home"]).parents[1]
    assert psutil.pid_exists(host.process.pid)
    host.end()
    assert not place.exists()
