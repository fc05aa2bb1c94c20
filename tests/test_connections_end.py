"""A connection that one end has closed leaves no garbage behind, however late the event loop of a test sees it."""

import asyncio
import ssl

import httpx2
import pytest

from tests.connections import close_handshakes, transports
from tests.waiting import eventually

BLIND_TURNS = 20


class Told(asyncio.Protocol):
    def __init__(self, made):
        self.made = made

    def connection_made(self, transport):
        self.made.append(transport)


@pytest.fixture(scope="module")
def accepted():
    """Transports of the accepting ends."""
    return []


@pytest.fixture(scope="module")
def left():
    """Transports of both ends."""
    return []


def see_nothing(loop, monkeypatch):
    """For some turns of the event loop."""
    select, turns = loop._selector.select, iter(range(BLIND_TURNS))
    monkeypatch.setattr(
        loop._selector, "select", lambda timeout=None: [] if next(turns, None) is not None else select(timeout)
    )


@pytest.mark.parametrize("number", range(2))
async def test_a_connection_that_ends_with_its_test_is_closed_at_both_ends(listeners, accepted, number, monkeypatch):
    assert [transport.get_extra_info("socket").fileno() for transport in accepted] == [-1] * number
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Told(accepted), "127.0.0.1", 0)
    client, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    await eventually(lambda: len(accepted) > number)
    client.close()
    server.close()
    see_nothing(loop, monkeypatch)


@pytest.mark.parametrize("number", range(2))
async def test_one_that_a_test_leaves_open_is_aborted_at_both_ends(listeners, left, number):
    assert [transport.get_extra_info("socket").fileno() for transport in left] == [-1] * 2 * number
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Told(left), "127.0.0.1", 0)
    client, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
    await eventually(lambda: len(left) > 2 * number)
    left.append(client)
    server.close()


async def test_a_client_that_gives_a_handshake_up_closes_the_connection(listeners):
    loop, opened = asyncio.get_running_loop(), []
    server = await loop.create_server(lambda: Told(opened), "127.0.0.1", 0)
    address, port = server.sockets[0].getsockname()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with close_handshakes(httpx2.AsyncClient(trust_env=False, verify=context, timeout=None)) as client:
        request = asyncio.create_task(client.get(f"https://{address}:{port}/"))
        await eventually(lambda: opened)
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        await eventually(
            lambda: not [each for each in transports(loop) if each.get_extra_info("socket").fileno() != -1]
        )
    server.close()
