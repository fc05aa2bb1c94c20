"""Connections to hosts at https:// are replaced when the certificate is, each by one other and none by chance."""

import asyncio

import pytest

from serving.routing import host_client
from serving.routing.host_client import HostClient
from serving.routing.host_connection import ConnectionLost
from serving.routing.load_balancer import HostLoadBalancer
from tests.waiting import eventually

URL = "https://10.0.0.7:8443"


class Contexts:
    def __init__(self):
        self.now = object()

    def current(self):
        return self.now


class Connection:
    def __init__(self, context):
        self.context, self.open = context, True

    def close(self):
        self.open = False

    retire = close


class Network:
    """Connects at once, or as each attempt is answered if `held`."""

    def __init__(self):
        self.held = False
        self.attempts = []
        self.made = []

    async def connect(self, _url, *, contexts, **_):
        context, answer = contexts.current(), asyncio.get_running_loop().create_future()
        self.attempts.append(answer)
        if self.held:
            await answer
        self.made.append(Connection(context))
        return self.made[-1]


@pytest.fixture
def network(monkeypatch):
    network = Network()
    monkeypatch.setattr(host_client, "connect", network.connect)
    return network


@pytest.fixture
def contexts():
    return Contexts()


@pytest.fixture
async def client(contexts):
    loop = asyncio.get_running_loop()
    client = HostClient(HostLoadBalancer(loop.time), loop.time, contexts=contexts)
    yield client
    client.close()


async def test_a_refused_renewal_is_not_tried_again_by_each_call(network, client, contexts):
    former = await client.reach(URL)
    network.held, contexts.now = True, object()
    client.connection(URL)
    await eventually(lambda: len(network.attempts) == 2)
    network.attempts[1].set_exception(ConnectionLost())
    for _ in range(10):
        assert client.connection(URL) is former
        await asyncio.sleep(0)
    assert len(network.attempts) == 2


async def test_a_refused_renewal_is_tried_again_after_a_pause(network, client, contexts, monkeypatch):
    monkeypatch.setattr(host_client, "_RENEWAL_PAUSE_SECONDS", 0.0)
    former = await client.reach(URL)
    network.held, contexts.now = True, object()
    client.connection(URL)
    await eventually(lambda: len(network.attempts) == 2)
    network.attempts[1].set_exception(ConnectionLost())
    network.held = False
    await eventually(lambda: client.connection(URL) is not former)
    assert not former.open


async def test_a_host_that_is_lost_during_a_renewal_has_one_connection_afterwards(network, client, contexts):
    former = await client.reach(URL)
    network.held, contexts.now = True, object()
    client.connection(URL)
    await eventually(lambda: len(network.attempts) == 2)
    former.open = False
    reached = asyncio.create_task(client.reach(URL))
    await eventually(lambda: len(network.attempts) == 3)
    for attempt in network.attempts[1:]:
        attempt.set_result(None)
    await reached
    await eventually(lambda: len(network.made) == 3)
    await asyncio.sleep(0)
    assert [one for one in network.made if one.open] == [client.connection(URL)]
