"""Temporal's UI of `ipnext dev`: for administrators who are logged in, and for no page of another origin or name."""

import asyncio
import contextlib
import ipaddress
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import httpx
import pytest

from ipnext.dev import temporal_ui
from ipnext.dev.hidden_address import HiddenAddress
from ipnext.dev.temporal_ui import proxy_app
from ipnext.infra.process.ports import free_port
from ipnext.model.access.rights import Role
from tests.waiting import PATIENCE_SECONDS

OWN_PAGE = {"sec-fetch-site": "same-origin"}
OPENED = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


class Upstream(BaseHTTPRequestHandler):
    """Takes the place of the UI; notes what it gets."""

    def answer(self):
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        headers = [(name.lower(), value) for name, value in self.headers.items()]
        self.server.got.append((self.command, self.path, dict(headers), body))
        content = b"all workflows"
        self.send_response(302 if self.path == "/moved" else 200)
        for name, value in (("location", "/namespaces"), ("x-frame-options", "ALLOWALL"), ("connection", "close")):
            self.send_header(name, value)
        for cookie in ("_csrf=1; Path=/", "theme=dark"):
            self.send_header("set-cookie", cookie)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def __getattr__(self, name):
        """`do_GET` and its like."""
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def upstream(listeners):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    server.got, server.url = [], f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="temporal's UI")
    thread.start()
    yield server
    server.shutdown()
    thread.join(PATIENCE_SECONDS)
    server.server_close()


@contextlib.asynccontextmanager
async def asking(upstream, api):
    """A client of the proxy, without a credential."""
    app = proxy_app(upstream, api)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8233") as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _patient(monkeypatch):
    """The API may be slow on a busy machine."""
    monkeypatch.setattr(temporal_ui, "ASK_SECONDS", PATIENCE_SECONDS)


@pytest.fixture
async def proxied(live, upstream):
    async with asking(upstream.url, live.url) as client:
        yield client


def cookie_of(live, key=None):
    """The header of a browser that is logged in by a key."""
    headers = {"authorization": f"Bearer {key or live.rooms.admin_key}"}
    answer = httpx.post(f"{live.url}/v1/sessions", headers=headers, trust_env=False, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 201
    return {"cookie": "; ".join(f"{name}={value}" for name, value in answer.cookies.items())}


async def test_an_administrator_s_browser_gets_the_ui(live, upstream, proxied):
    headers = cookie_of(live) | OWN_PAGE
    answer = await proxied.get("/namespaces/default/workflows?query=a%20b%2Fc", headers=headers)
    assert (answer.status_code, answer.text) == (200, "all workflows")
    [(method, path, got, _)] = upstream.got
    assert (method, path) == ("GET", "/namespaces/default/workflows?query=a%20b%2Fc")
    assert got["host"] == urlsplit(upstream.url).netloc


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
async def test_who_is_no_administrator_of_all_gets_nothing(live, upstream, proxied, role):
    headers = cookie_of(live, live.rooms.add_key("other", role)) | OWN_PAGE
    answer = await proxied.get("/", headers=headers)
    assert answer.status_code == 403
    assert "admins-do-everything" in answer.text
    assert upstream.got == []


async def test_an_administrator_of_one_owner_gets_nothing(live, upstream, proxied):
    answer = await proxied.get("/", headers=cookie_of(live, live.rooms.add_key("o", Role.ADMIN, owner="search")))
    assert (answer.status_code, upstream.got) == (403, [])


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_who_is_not_logged_in_is_led_to_the_login(live, upstream, proxied, method):
    answer = await proxied.request(method, "/api/v1/namespaces", headers=OWN_PAGE)
    assert (answer.status_code, upstream.got) == (401, [])
    if method != "HEAD":
        assert f'href="{live.url}/"' in answer.text
    for headers in ({"cookie": "ipnext_session_1=x"}, {"authorization": "Bearer x"}, {"authorization": "Basic eDp4"}):
        assert (await proxied.get("/", headers=headers)).status_code == 401
    assert upstream.got == []


async def test_a_session_that_ended_ends_here(live, upstream, proxied):
    headers = cookie_of(live) | OWN_PAGE
    assert (await proxied.get("/", headers=headers)).status_code == 200
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client:
        assert (await client.delete(f"{live.url}/v1/sessions/current", headers=headers)).status_code == 204
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await proxied.get("/", headers=headers)).status_code != 401:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.1)


async def test_a_change_is_passed_on_with_its_body_and_without_what_proves_somebody(live, upstream, proxied):
    sent = cookie_of(live)
    sent["cookie"] += "; _csrf=1"
    headers = sent | OWN_PAGE | {"origin": "http://127.0.0.1:8233", "x-csrf-token": "1", "te": "trailers"}
    answer = await proxied.post("/api/v1/x/terminate", headers=headers, content=b'{"reason": "r"}')
    assert answer.status_code == 200
    [(method, path, got, body)] = upstream.got
    assert (method, path, body) == ("POST", "/api/v1/x/terminate", b'{"reason": "r"}')
    assert (got["cookie"], got["x-csrf-token"]) == ("_csrf=1", "1")
    assert not {"origin", "te", "authorization"} & got.keys()
    assert not [value for value in got.values() if "ipnext_" in value]


async def test_a_body_of_a_request_that_reads_is_passed_on_too(live, upstream, proxied):
    headers = {"authorization": f"Bearer {live.rooms.admin_key}"}
    answer = await proxied.request("GET", "/api/v1/namespaces", headers=headers, json={})
    assert (answer.status_code, upstream.got[-1][3]) == (200, b"{}")


async def test_what_the_ui_gives_one_browser_goes_to_no_other(live, upstream, proxied):
    first, second = cookie_of(live), cookie_of(live)
    for headers in (first, second, {"authorization": f"Bearer {live.rooms.admin_key}"}):
        proxied.cookies.clear()
        assert (await proxied.get("/", headers=headers | OWN_PAGE)).status_code == 200
    assert [got.get("cookie") for _, _, got, _ in upstream.got] == [None] * 3


@pytest.mark.parametrize("path", ["//evil.example/x", "/%2e%2e/x", "/a%00b", "/@evil.example"])
async def test_a_path_leads_to_no_other_host(live, upstream, path):
    app = proxy_app(upstream.url, live.url)
    sent = []

    async def receive():
        await asyncio.Event().wait()  # a client that stays

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"127.0.0.1:8233"), (b"authorization", f"Bearer {live.rooms.admin_key}".encode())]
    scope = {"type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"x=1"}
    scope |= {"headers": headers, "server": ("127.0.0.1", 8233), "scheme": "http", "http_version": "1.1"}
    async with app.router.lifespan_context(app):
        await app(scope, receive, send)
    assert sent[0]["status"] == 200
    [(_, got, given, _)] = upstream.got
    assert got == f"/{path.lstrip('/')}?x=1", "the server of this test takes slashes in front together"
    assert given["host"] == urlsplit(upstream.url).netloc


async def test_a_program_may_bring_a_key_which_goes_no_further(live, upstream, proxied):
    answer = await proxied.get("/api/v1/namespaces", headers={"authorization": f"Bearer {live.rooms.admin_key}"})
    assert answer.status_code == 200
    assert "authorization" not in upstream.got[0][2]


async def test_what_the_ui_answers_comes_as_it_is_and_may_be_framed_by_itself_alone(live, proxied):
    answer = await proxied.get("/moved", headers=cookie_of(live) | OWN_PAGE)
    assert (answer.status_code, answer.headers["location"]) == (302, "/namespaces")
    assert answer.headers.get_list("set-cookie") == ["_csrf=1; Path=/", "theme=dark"]
    assert answer.headers.get_list("x-frame-options") == ["SAMEORIGIN"]
    assert "connection" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example:8233"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_page_of_another_origin_or_name_gets_nothing(live, upstream, proxied, method, headers, status):
    """Although the browser sends the session along."""
    answer = await proxied.request(method, "/api/v1/namespaces", headers=cookie_of(live) | headers)
    assert (answer.status_code, upstream.got) == (status, [])


async def test_a_change_without_a_word_of_its_page_is_refused(live, upstream, proxied):
    assert (await proxied.post("/api/v1/x", headers=cookie_of(live))).status_code == 403
    assert upstream.got == []


async def test_the_link_of_our_page_leads_to_the_ui(live, proxied):
    answer = await proxied.get("/", headers=cookie_of(live) | OPENED | {"sec-fetch-site": "same-site"})
    assert answer.status_code == 200


async def test_with_authentication_off_the_ui_is_open_as_the_api_is(rooms, switchboard, upstream):
    rooms.settings = rooms.settings.model_copy(update={"authentication": "none"})
    with switchboard.answering(rooms.app()) as url:
        async with asking(upstream.url, url) as client:
            assert (await client.get("/", headers=OWN_PAGE)).status_code == 200
            assert (await client.get("/", headers={"host": "evil.example"})).status_code == 421


async def test_an_api_or_a_ui_that_does_not_answer_is_502(live):
    nothing = f"http://127.0.0.1:{free_port()}"
    for upstream, api in ((nothing, live.url), (live.url, nothing)):
        async with asking(upstream, api) as client:
            assert (await client.get("/", headers=cookie_of(live) | OWN_PAGE)).status_code == 502


@pytest.mark.usefixtures("listeners")
def test_the_ui_hides_on_addresses_that_nobody_uses():
    drawn = {HiddenAddress.draw() for _ in range(50)}
    assert len({address.host for address in drawn}) == 50
    for address in drawn:
        assert ipaddress.ip_address(address.host).is_loopback
        assert not address.host.startswith("127.0.")
        assert address.port > 1023
