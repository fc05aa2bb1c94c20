"""Connections to a real agent: clients that keep them without a request don't lock the control plane out."""

import socket
from contextlib import ExitStack

import pytest

from ipnext.components.settings import ComponentSettings
from ipnext.dev.certificates import DevCertificates
from ipnext.errors import InvalidInput
from ipnext.infra.agent.listener import agent_limits
from ipnext.infra.settings import AgentSettings
from ipnext.settings import DevSettings
from tests.ipnext.api.requests.test_connections import HALF, HALF_A_HELLO, STRANGER, read_all
from tests.waiting import PATIENCE_SECONDS, until

MOST = 12
LIMITS = {"IPNEXT_AGENT_CONNECTIONS": str(MOST), "IPNEXT_AGENT_CONNECTIONS_PER_SOURCE": str(MOST // 2)}


def started(running_agent, directory, *, secure, **settings):
    certificates = None
    if secure:
        certificates = DevCertificates(directory / "certificates", ("eu",), ComponentSettings(), DevSettings())
    environment = LIMITS | {f"IPNEXT_AGENT_{name}": value for name, value in settings.items()}
    return running_agent("eu", directory, certificates=certificates, environment=environment)


def take(stack, agent, count, sent, source):
    found = []
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", agent.port), PATIENCE_SECONDS, source_address=(source, 0))
        found.append(stack.enter_context(client))
        client.sendall(sent)
    return found


@pytest.mark.parametrize(("secure", "sent"), [(True, HALF_A_HELLO), (True, b""), (False, HALF), (False, b"")])
def test_connections_without_a_request_lock_the_control_plane_not_out(running_agent, tmp_path, secure, sent):
    agent = started(running_agent, tmp_path, secure=secure, HEADER_SECONDS="300")
    try:
        agent.launch()
        with ExitStack() as stack:
            *_, last = take(stack, agent, 2 * MOST, sent, STRANGER)
            assert agent.infra.observe("eu").region == "eu"
            refused = read_all(last)
            assert refused == b"" or (not secure and refused.startswith(b"HTTP/1.1 503 ")), refused
    finally:
        agent.close()


@pytest.mark.parametrize(("secure", "sent"), [(True, HALF_A_HELLO), (False, HALF)])
def test_connections_without_a_request_give_their_room_back(running_agent, tmp_path, secure, sent):
    agent = started(running_agent, tmp_path, secure=secure, HEADER_SECONDS="0.5", KEEP_ALIVE_SECONDS="0.5")
    try:
        agent.launch()
        with ExitStack() as stack:
            held = [client for n in (2, 3) for client in take(stack, agent, MOST, sent, f"127.0.0.{n}")]
            answers = [read_all(client) for client in held]
            assert {answer[:12] for answer in answers} <= {b"", b"HTTP/1.1 408", b"HTTP/1.1 503"}
            until(agent.reachable)
    finally:
        agent.close()


def test_a_wait_for_a_change_outlasts_the_limits_and_is_answered(running_agent, tmp_path):
    agent = started(running_agent, tmp_path, secure=False, HEADER_SECONDS="0.5", KEEP_ALIVE_SECONDS="0.5")
    try:
        agent.launch()
        token = agent.client.get(f"{agent.url}/state", params={"model": "m"}).json()["token"]
        answer = agent.client.get(f"{agent.url}/changes", params={"model": "m", "token": token, "seconds": "4"})
        assert (answer.status_code, answer.json()) == (200, {})
    finally:
        agent.close()


def test_the_limits_are_settings_and_fit_the_process(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda _: (1024, 4096))
    limits = agent_limits(AgentSettings())
    assert (limits.connections, limits.per_source) == (768, 384)
    with pytest.raises(InvalidInput, match=r"connections \(IPNEXT_AGENT_CONNECTIONS\): 769 connections need more open"):
        agent_limits(AgentSettings(connections=769))
