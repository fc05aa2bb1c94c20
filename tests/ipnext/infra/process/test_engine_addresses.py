"""Where the engines of a host may listen: what it reports otherwise ends it."""

import socket
from pathlib import Path
from unittest.mock import Mock

import pytest

from ipnext.infra.context import RegionContext
from ipnext.infra.process.engine_addresses import EngineAddresses
from ipnext.infra.settings import AgentSettings
from ipnext.model.deployment.host_control import HeldGeneration, HostState
from tests.waiting import until

SOCKETS, PORTS = EngineAddresses(sockets=True), EngineAddresses(ports=True)


def state(url: str | None, *, loads: bool = False) -> HostState:
    held = (HeldGeneration(model="m", part="p", generation=1, snapshot=1, url=url),)
    return HostState(loading=held) if loads else HostState(ready=held)


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host's directory with the socket of an engine."""
    engine = tmp_path / "run" / "host" / "e" / "1"
    engine.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(engine / "e.sock"))
    return tmp_path / "run" / "host"


def test_an_engine_in_the_directory_of_its_host_is_taken(host: Path) -> None:
    assert SOCKETS.refusal(state(f"unix://{host}/e/1/e.sock"), host=f"unix://{host}") is None
    assert SOCKETS.refusal(state(None), host=f"unix://{host}") is None


def test_an_engine_that_has_just_ended_is_no_foreign_one(host: Path) -> None:
    assert SOCKETS.refusal(state(f"unix://{host}/e/2/e.sock"), host=f"unix://{host}") is None


@pytest.mark.parametrize(
    "url",
    [
        "unix:///tmp/ipnext-engines-x/e",
        "unix://{run}/other/router.sock",
        "unix://{run}/other/e/1/e.sock",
        "unix://{run}/host/e/../../other/e/1/e.sock",
        "unix://{run}/host/e/1",
        "unix://{run}/host/e/1/../../../other/e.sock",
        "unix://e/1/e.sock",
        "http://127.0.0.1:20001",
        "http://metadata.internal/",
    ],
)
@pytest.mark.parametrize("loads", [False, True])
def test_any_other_address_is_refused(host: Path, url: str, loads: bool) -> None:
    refusal = SOCKETS.refusal(state(url.format(run=host.parent), loads=loads), host=f"unix://{host}")
    assert refusal is not None
    assert f"allowed: unix://{host}/e/NAME/NAME.sock" in refusal


def test_links_are_refused_wherever_they_are(host: Path, tmp_path: Path) -> None:
    real = host / "e" / "1"
    (host / "e" / "2").symlink_to(real)
    (host / "e" / "3").mkdir()
    (host / "e" / "3" / "e.sock").symlink_to(real / "e.sock")
    other = tmp_path / "run" / "other"
    other.mkdir()
    (other / "e").symlink_to(host / "e")
    (host / "e" / "4").mkdir()
    (host / "e" / "4" / "e.sock").write_text("a file")
    for place, name in ((host, "2"), (host, "3"), (host, "4"), (other, "1")):
        refusal = SOCKETS.refusal(state(f"unix://{place}/e/{name}/e.sock"), host=f"unix://{place}")
        assert refusal is not None, name
        assert "which leads elsewhere" in refusal


@pytest.mark.parametrize(
    ("url", "is_taken"),
    [
        ("http://127.0.0.1:20000", True),
        ("http://127.0.0.1:31999", True),
        ("http://127.0.0.1:32000", False),
        ("http://127.0.0.1:8700", False),
        ("http://127.0.0.1:x", False),
        ("http://127.0.0.1:20000/v1", False),
        ("http://u@127.0.0.1:20000", False),
        ("https://127.0.0.1:20000", False),
        ("http://10.0.0.1:20000", False),
        ("unix:///run/host/e/1/e.sock", False),
    ],
)
def test_engines_on_ports_are_on_those_of_loopback_for_engines(url: str, is_taken: bool) -> None:
    assert (PORTS.refusal(state(url), host="http://127.0.0.1:20005") is None) == is_taken


def addresses(engine: str, **settings: object) -> EngineAddresses:
    given = AgentSettings.model_validate(settings)
    place = RegionContext(
        region="eu", directory=Path("/state"), artifacts="file:///s", gateway_port=1,
        settings=given, places=Mock(), session=Mock(),
    )  # fmt: skip
    return place.engine_addresses(engine)


def test_hosts_of_torch_have_no_engines_and_those_of_vllm_as_its_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPNEXT_VLLM_COMMAND", raising=False)
    assert addresses("torch") == EngineAddresses()
    assert addresses("vllm") == SOCKETS
    assert addresses("vllm", vllm_host_command=["mine", "{port}"]) == PORTS
    assert addresses("torch", host_command=["mine", "{port}"]) == PORTS
    monkeypatch.setenv("IPNEXT_VLLM_COMMAND", "mock {port}")
    assert addresses("vllm") == EngineAddresses(sockets=True, ports=True)
    monkeypatch.setenv("IPNEXT_VLLM_COMMAND", "mock {socket}")
    assert addresses("vllm") == SOCKETS


def test_a_refusal_shows_no_more_than_the_beginning_of_an_address() -> None:
    refusal = EngineAddresses().refusal(state("unix:///" + "x" * 10_000), host="unix:///run/host")
    assert refusal is not None
    assert len(refusal) < 500


@pytest.mark.usefixtures("subprocesses")
def test_a_host_that_reports_a_foreign_engine_is_killed_and_never_routed(new_agent, builder) -> None:
    agent, one = new_agent().start(), builder("taken-over")
    agent.infra.apply(one.deployment({1: (1,)}, engine_url="http://169.254.169.254:80"))

    def replica():
        (found,) = agent.infra.observe("eu").replicas
        return found

    until(lambda: "reports an engine at 'http://169.254.169.254:80'" in (replica().message or ""), why=replica)
    assert replica().ready == ()
    assert "169.254" not in (agent.state / "router.json").read_text()
