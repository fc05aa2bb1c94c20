"""A process that is confined as an engine, and has the user of the agent.

It reaches every socket of a region, and none obeys it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from landlockpy import LandlockError, abi_version

from ipnext.infra.supervisor_process import PROTOCOL
from serving.confinement import landlock
from tests.waiting import PATIENCE_SECONDS, until

try:
    ABI = abi_version()
except LandlockError:
    ABI = 0

pytestmark = pytest.mark.skipif(ABI < 6, reason=f"this kernel's Landlock is of version {ABI}: signals need 6")

CONFINED = """
import json, os, socket, sys
from pathlib import Path
from serving.confinement.landlock import LandlockRights, Confinement, restrict
from serving.confinement.socket_filter import LOCAL
given = json.loads(sys.argv[1])
assert restrict(Confinement.REQUIRED, LandlockRights(reads=(Path("/proc"),)), sockets=LOCAL)

def exchange(path, sent):
    os.chdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(60)
        link.connect(os.path.basename(path))
        link.sendall(sent)
        return link.makefile("rb").read().decode()

def asked(path, method, target):
    head = f"{method} {target} HTTP/1.1\\r\\nhost: localhost\\r\\nconnection: close\\r\\ncontent-length: 0\\r\\n\\r\\n"
    try:
        return exchange(path, head.encode()).split()[1]
    except OSError as error:  # it has ended the process
        return type(error).__name__

def tried(path):
    try:
        return open(path).read()
    except OSError as error:
        return type(error).__name__

print(json.dumps({
    "answers": [asked(*call) for call in given["calls"]],
    "proofs": [tried(path) for path in given["proofs"]],
    "supervisor": exchange(given["supervisor"], given["messages"].encode()),
}))
"""

CALLS = {
    "agent.sock": (("GET", "/control/state"), ("PUT", "/control/holds"), ("POST", "/control/drain")),
    "router.sock": (("POST", "/parts/m/p/infer"),),
    "gateway.sock": (("GET", "/v2/health/live"), ("POST", "/v2/models/m/infer")),
    "admin.sock": (("GET", "/config_dump"), ("POST", "/quitquitquit"), ("POST", "/drain_listeners")),
}


@pytest.fixture
def agent(agent_with_host):
    return agent_with_host


def sockets_of(agent):
    """Every Unix socket with a path, without the supervisor's, once all processes listen."""
    found = {Path(one.laddr) for child in agent.children() for one in child.net_connections("unix") if one.laddr}
    found = {path for path in found if path.is_absolute() and path.name != "supervisor.sock"}
    assert {path.name for path in found} == set(CALLS)
    return sorted(found)


def settled(agent):
    try:
        return sockets_of(agent)
    except (AssertionError, psutil.NoSuchProcess):
        return None


@pytest.mark.usefixtures("subprocesses")
def test_a_confined_process_of_the_agents_user_is_obeyed_by_no_socket(agent, tmp_path):
    found = until(lambda: settled(agent), why=lambda: "all processes listen")
    calls = [(str(path), *call) for path in found for call in CALLS[path.name]]
    proofs = [path for place in {agent.state, *(path.parent for path in found)} for path in place.rglob("*.proof")]
    assert len({path.name for path in proofs}) == len(CALLS) + 1
    mark, before = tmp_path / "mark", agent.children()
    hello = {"kind": "hello", "protocol": PROTOCOL, "owner": None, "successor_seconds": 60, "grace_seconds": 1}
    restarts = {"backoff_first_seconds": 1, "backoff_limit_seconds": 9, "steady_seconds": 9, "log_limit_bytes": 9999}
    fork = {"modules": [], "environment": {}, "log": str(tmp_path / "fork.log"), "python": sys.executable}
    hello["fork"] = {**fork, "version": "0", "restarts": restarts}
    start = {"kind": "start", "number": 1, "name": "x", "command": ["/bin/touch", str(mark)], "environment": {}}
    end = {"kind": "end"}
    messages = [hello, {**hello, "proof": "guessed"}, {**start, "log": str(tmp_path / "log"), "note": {}}, end]
    given = {
        "calls": calls,
        "proofs": list(map(str, proofs)),
        "supervisor": str(agent.state / "supervisor.sock"),
        "messages": "".join(json.dumps(message) + "\n" for message in messages),
    }
    ran = subprocess.run(
        [sys.executable, "-c", CONFINED, json.dumps(given)],
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(landlock.__file__).parents[2])},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    answers = {(Path(path).name, *call): answer for (path, *call), answer in zip(calls, told["answers"], strict=True)}
    assert set(answers.values()) == {"403"}, answers
    assert set(told["proofs"]) == {"PermissionError"}
    assert "welcome" not in told["supervisor"]
    assert "refused" in told["supervisor"]
    assert not mark.exists()
    assert not (tmp_path / "log").exists()
    assert {process.pid for process in before} <= {process.pid for process in agent.children()}, "none was ended"
    agent.infra.observe("eu")
