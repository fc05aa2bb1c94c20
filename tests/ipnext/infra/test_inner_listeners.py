"""A region as it is by default.

Whatever listens in it is known, and only the gateway's port and the agent's are open to others.
"""

import os
import stat
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from ipnext.components.host_directories import is_of_same_model
from ipnext.components.identity import Component
from ipnext.components.private_files import make_own_directory
from ipnext.errors import Conflict
from ipnext.infra.process.places import ProcessAddresses, run_directory
from tests.e2e.conftest import NO_HOSTS
from tests.processes import unix_transport
from tests.waiting import until

PROCESSES = {
    "serving.router": {Component.AGENT, Component.GATEWAY},
    "serving.host": {Component.AGENT, Component.ROUTER},
}
HOST = ("{python}", "-m", "serving.host", "--sockets", "{sockets}")


@pytest.fixture
def agent(agent_with_host):
    return agent_with_host


def sockets_of(process):
    """Unix sockets with a path that a process listens on.

    The kernel gives accepted connections the path of their listener.
    """
    return {Path(one.laddr) for one in process.net_connections("unix") if one.laddr.startswith("/")}


def test_only_gateway_and_agent_listen_on_ports(agent):
    found = Counter()
    for process in [psutil.Process(agent.process.pid), *agent.children()]:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                found[one.laddr] += 1
    assert {address.port for address in found} == {
        agent.port,
        *(httpx.URL(url).port for url in (agent.gateway, agent.peer_url)),
    }
    assert {address.ip for address in found} == {"127.0.0.1"}


def test_every_other_listener_is_a_socket_of_this_user_alone_and_known(agent):
    gateway = sockets_of(agent.child("envoy"))
    assert {path.name for path in gateway} == {"admin.sock", "router.sock"}, (
        "that of its administration, and the egress"
    )
    known = set(gateway)
    for module, callers in PROCESSES.items():
        process = agent.child(module)
        found = until(
            lambda one=process, each=callers: len(paths := sockets_of(one)) >= len(each) and paths,
            why=lambda name=module: f"{name} listens to all its callers",
        )
        assert {path.name for path in found} == {f"{caller}.sock" for caller in callers}
        known |= found
    everything = {path for process in agent.children() for path in sockets_of(process)}
    (supervisor,) = everything - known  # bound by a short path, /proc/self/fd/N/...
    assert supervisor.name == "supervisor.sock", "a listener that this test does not know"
    for path in {*known, agent.state / "supervisor.sock"}:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        assert path.stat().st_uid == os.geteuid()
        if path.name != "supervisor.sock":
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700, path


def test_envoy_and_agent_reach_the_router_over_its_sockets(agent):
    assert agent.get("/v2/health/live") == 200
    assert agent.get("/control/state") == 404
    (gateway,) = (path for path in sockets_of(agent.child("serving.router")) if path.name == "gateway.sock")
    with httpx.Client(transport=unix_transport(str(gateway))) as client:
        assert client.post("http://localhost/control/drain", timeout=60).status_code == 403
        assert client.get("http://localhost/v2/health/live", timeout=60).status_code == 200
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(gateway))) as unproved:
        assert unproved.get("http://localhost/v2/health/live", timeout=60).status_code == 403


def test_a_directory_with_a_long_path_has_its_sockets_elsewhere(tmp_path):
    short, long = Path("/s"), tmp_path / ("x" * 100)
    assert run_directory(short) == Path("/s/run")
    assert run_directory(long) == run_directory(long), "the next agent finds it"
    assert len(bytes(run_directory(long))) < 60
    assert run_directory(long) != run_directory(tmp_path / ("y" * 100))


def test_a_directory_of_another_user_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(Conflict, match="belongs to another user"):
        make_own_directory(tmp_path / "run", otherwise="move")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.undo()
    with pytest.raises(Conflict):
        make_own_directory(tmp_path / "link", otherwise="move")
    (tmp_path / "file").touch()
    with pytest.raises(Conflict, match="no directory"):
        make_own_directory(tmp_path / "file", otherwise="move")


def test_a_directory_that_others_could_write_is_not_used(tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    place.chmod(0o770)
    with pytest.raises(Conflict, match="others may write it"):
        make_own_directory(place, otherwise="move")
    place.chmod(0o710)
    make_own_directory(place, otherwise="move")
    assert place.stat().st_mode & 0o777 == 0o700


def test_an_agent_that_ends_leaves_no_sockets(new_agent):
    agent = new_agent("eu", real=True, environment=NO_HOSTS).start()
    place = run_directory(agent.state.resolve())
    assert place.is_dir()
    agent.end()
    assert not place.exists()


class OnePort:
    """A book with one port for everybody."""

    def port(self, _):
        return 20_001


def test_a_command_of_an_operator_that_takes_a_port_gets_one(tmp_path):
    places = ProcessAddresses(tmp_path, OnePort())
    assert places.choose("h", ("x", "--port", "{port}")) == "http://127.0.0.1:20001"
    first, second = places.choose("h", HOST), places.choose("i", HOST)
    assert first.startswith("unix://")
    assert first != second
    assert places.choose("h", HOST) == first


def test_directories_of_a_models_hosts_begin_alike_and_those_of_others_do_not(tmp_path):
    places = ProcessAddresses(tmp_path, OnePort())
    names = {
        (model, host): Path(places.choose(host, HOST, model=model).removeprefix("unix://")).name
        for model in ("m", "n")
        for host in ("1", "2")
    }
    assert len(set(names.values())) == 4
    assert is_of_same_model(names["m", "1"], names["m", "2"])
    assert not is_of_same_model(names["m", "1"], names["n", "1"])
    again = ProcessAddresses(tmp_path, OnePort())
    assert again.choose("1", HOST, model="m").endswith(names["m", "1"]), "the next agent's hosts reach those that run"
    (tmp_path / "other").mkdir()
    elsewhere = ProcessAddresses(tmp_path / "other", OnePort())
    assert not elsewhere.choose("1", HOST, model="m").endswith(names["m", "1"]), "the name is no help to find it"
