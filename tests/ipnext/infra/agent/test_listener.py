"""The listener of an agent in front of aiohttp: limits before the handshake, requests that last, new certificates."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import httpx
import pytest
from aiohttp import web

from ipnext.components.certificates import client_context
from ipnext.components.settings import ComponentSettings
from ipnext.dev.certificates import DevCertificates
from ipnext.errors import Conflict
from ipnext.infra.agent.listener import AgentListener
from ipnext.infra.process.ports import free_port
from ipnext.network.connections import SWEEP_SECONDS, ConnectionLimits
from ipnext.settings import DevSettings
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.usefixtures("listeners")

HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "
STRANGER = "127.0.0.2"


async def slow(request):
    """Answers after so many seconds with the length of the body."""
    body = await request.read()
    await asyncio.sleep(float(request.query.get("seconds", "0")))
    return web.Response(text=str(len(body)))


@contextlib.asynccontextmanager
async def listening(files=None, **limits):
    """The port of a listener, which ends with this."""
    app = web.Application()
    app.router.add_route("*", "/", slow)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    listener = AgentListener(runner.server, files, trust_domain="ipnext.local", limits=ConnectionLimits(**limits))
    port = free_port()
    await listener.start("127.0.0.1", port)
    try:
        yield port
    finally:
        await listener.stop()
        await runner.cleanup()


async def connect(stack, port, sent=b"", source=STRANGER):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
    stack.callback(writer.close)
    writer.write(sent)
    return reader


async def rest(reader):
    with contextlib.suppress(ConnectionError):
        return await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
    return b""


def asking(port, context=None):
    url = f"http{'s' if context else ''}://127.0.0.1:{port}"
    return httpx.AsyncClient(base_url=url, verify=context or False, trust_env=False, timeout=PATIENCE_SECONDS)


@pytest.fixture
def certificates(tmp_path):
    return DevCertificates(tmp_path, ("eu",), ComponentSettings(), DevSettings())


def files_of(certificates):
    environment = certificates.environment("eu")
    return ComponentSettings(
        **{
            f"component_{name}_file": environment[f"IPNEXT_COMPONENT_{name.upper()}_FILE"]
            for name in ("certificate", "key", "ca")
        }
    ).certificate_files


def plane(certificates):
    return client_context(certificates.control_plane().certificate_files, lambda _: True)


async def test_half_open_handshakes_leave_room_for_the_control_plane(certificates):
    files = files_of(certificates)
    with contextlib.ExitStack() as stack:
        async with listening(files, connections=6, per_source=3, header_seconds=300) as port:
            held = [await connect(stack, port) for _ in range(6)]
            assert [await rest(reader) for reader in held[3:]] == [b""] * 3
            async with asking(port, plane(certificates)) as client:
                assert (await client.get("/")).status_code == 200


async def test_who_shows_no_certificate_holds_no_place(certificates):
    async with listening(files_of(certificates), per_source=1) as port:
        context = plane(certificates)
        for _ in range(3):
            async with asking(port) as client:
                client._transport = httpx.AsyncHTTPTransport(verify=False)
                with pytest.raises(httpx.TransportError):
                    await client.get(f"https://127.0.0.1:{port}/")
        async with asking(port, context) as client:
            assert (await client.get("/")).status_code == 200


async def test_a_handshake_and_headers_that_are_late_end(certificates):
    for files, sent, answer in ((files_of(certificates), b"\x16\x03\x01", b""), (None, HALF, b"HTTP/1.1 408 ")):
        with contextlib.ExitStack() as stack:
            async with listening(files, header_seconds=0.2) as port:
                assert (await rest(await connect(stack, port, sent))).startswith(answer)


async def test_a_request_may_last_longer_than_headers_and_idle_connections():
    async with listening(header_seconds=0.5, keep_alive_seconds=0.5) as port, asking(port) as client:

        async def body():
            for _ in range(6):
                yield b"x" * 1000
                await asyncio.sleep(0.3)

        assert (await client.put("/?seconds=2", content=body())).text == "6000"


async def test_an_idle_connection_is_closed():
    with contextlib.ExitStack() as stack:
        async with listening(keep_alive_seconds=0.2) as port:
            reader = await connect(stack, port, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await rest(reader)).startswith(b"HTTP/1.1 200 ")


async def test_a_new_certificate_counts_for_new_connections(certificates, monkeypatch):
    monkeypatch.setattr("ipnext.infra.agent.listener.LOOK_SECONDS", 0.05)
    files = files_of(certificates)
    async with listening(files) as port, asking(port, plane(certificates)) as client:
        assert (await client.get("/")).status_code == 200
        before = await serial(port, certificates)
        files.certificate.write_bytes(b"no certificate")
        assert (await client.get("/")).status_code == 200
        reissued = DevCertificates(files.certificate.parents[1], ("eu",), ComponentSettings(), DevSettings())
        assert files_of(reissued) == files

        async with asyncio.timeout(PATIENCE_SECONDS):
            while await serial(port, certificates) == before:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.05)
        assert (await client.get("/")).status_code == 200


@pytest.mark.parametrize("path", ["/", "/?seconds=600"], ids=["between requests", "within an answer"])
async def test_a_connection_ends_with_the_certificate_that_it_was_opened_with(certificates, monkeypatch, path):
    day = 24 * 3600
    now = {"later": 0.0}
    monkeypatch.setattr("ipnext.infra.agent.listener.time", SimpleNamespace(time=lambda: time.time() + now["later"]))
    async with listening(files_of(certificates), keep_alive_seconds=600) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=plane(certificates))
        request = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(request % b"/")
        assert await reader.readuntil(b"\r\n\r\n0") is not None
        writer.write(request % path.encode())
        now["later"] = day - 3600
        await asyncio.sleep(2 * SWEEP_SECONDS)  # what must not happen has no event
        assert not reader.at_eof()
        now["later"] = 2 * day
        await rest(reader)  # TimeoutError if it goes on
        writer.close()


async def serial(port, certificates):
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=plane(certificates))
    found = writer.get_extra_info("peercert")["serialNumber"]
    writer.close()
    return found


async def test_a_port_that_is_taken_is_named(certificates):
    async with listening() as port:
        listener = AgentListener(asyncio.Protocol, None, trust_domain="x", limits=ConnectionLimits())
        with pytest.raises(Conflict, match=f"cannot listen on 127.0.0.1:{port}"):
            await listener.start("127.0.0.1", port)
