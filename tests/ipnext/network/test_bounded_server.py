"""uvicorn behind bounded connections: it serves, refuses and ends as it does by itself."""

import asyncio
import contextlib
import socket
import ssl

import httpx
import pytest

from ipnext.errors import Conflict, InvalidInput
from ipnext.network.bounded_server import BoundedServer, bounded_config, server_context
from ipnext.network.connections import ConnectionLimits
from ipnext.settings import platform_settings
from tests.ipnext.infra.envoy.test_public_listener import write_pair
from tests.waiting import PATIENCE_SECONDS, eventually

pytestmark = pytest.mark.usefixtures("listeners")


class Application:
    """Answers with the scheme; notes its start and its end."""

    def __init__(self):
        self.lives = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                message = await receive()
                self.lives.append(message["type"])
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return
        content = scope["scheme"].encode()
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


@contextlib.asynccontextmanager
async def serving(app, context=None, **limits):
    """The port of a server, which ends with this."""
    config = bounded_config(app, host="127.0.0.1", port=0, keep_alive_seconds=5)
    server = BoundedServer(config, ConnectionLimits(**limits), context)
    task = asyncio.create_task(server._serve())
    await eventually(lambda: server.started and server.servers)
    try:
        yield server.servers[0]._listener.getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, PATIENCE_SECONDS)


async def get(port, scheme="https"):
    async with httpx.AsyncClient(verify=False, trust_env=False, timeout=PATIENCE_SECONDS) as client:
        return (await client.get(f"{scheme}://127.0.0.1:{port}/")).text


@pytest.fixture
def context(tmp_path):
    return server_context(*write_pair(tmp_path), field="f", variable="F")


async def test_it_serves_in_clear_text_and_ends_in_order():
    app = Application()
    async with serving(app) as port:
        assert await get(port, "http") == "http"
        assert app.lives == ["lifespan.startup"]
    assert app.lives == ["lifespan.startup", "lifespan.shutdown"]
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_it_serves_over_tls_while_another_source_holds_half_open_handshakes(context):
    async with serving(Application(), context, connections=6, per_source=3, header_seconds=300) as port:
        held = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(6)]
        for reader, _ in held[3:]:
            assert await reader.read() == b"", "beyond the share of its source"
        for _ in range(5):
            assert await get(port) == "https"
        for _, writer in held:
            writer.close()


async def test_it_ends_although_handshakes_are_half_open(context):
    async with serving(Application(), context, header_seconds=300) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await get(port) == "https"
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def test_a_port_that_is_taken_keeps_it_from_starting():
    app = Application()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = bounded_config(app, host="127.0.0.1", port=taken.getsockname()[1], keep_alive_seconds=5)
        with pytest.raises(Conflict, match="Address already in use"):
            await BoundedServer(config, ConnectionLimits())._serve()
    assert app.lives == []


def test_the_context_speaks_no_old_tls(context):
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize(
    ("proxies", "client", "scheme"),
    [
        ((), "127.0.0.1", "http"),
        (("10.0.0.0/8",), "127.0.0.1", "http"),
        (("127.0.0.1",), "203.0.113.9", "https"),
        (("127.0.0.0/8", "::1"), "203.0.113.9", "https"),
    ],
)
async def test_headers_of_proxies_count_from_those_that_are_trusted_only(monkeypatch, proxies, client, scheme):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    seen = []

    async def app(scope, _receive, _send):
        seen.append((scope["client"][0], scope["scheme"]))

    config = bounded_config(app, host="127.0.0.1", port=0, keep_alive_seconds=5, trusted_proxies=proxies)
    config.load()
    headers = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"https")]
    scope = {"type": "http", "client": ("127.0.0.1", 4711), "scheme": "http", "headers": headers}
    await config.loaded_app(scope, None, None)
    assert seen == [(client, scheme)]


@pytest.mark.parametrize("proxy", ["*", "proxy.example", "10.0.0.5/8"])
def test_a_trusted_proxy_is_an_address_or_a_network(proxy):
    with pytest.raises(InvalidInput, match=r"trusted_proxies \(IPNEXT_TRUSTED_PROXIES\).*must list IP addresses"):
        platform_settings(trusted_proxies=(proxy,))
