"""Bodies that wait are counted: all together, and those of one client, who leaves room for others."""

import asyncio
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ipnext.access.acting import RequestAuthority
from ipnext.api.errors import install_error_handlers
from ipnext.api.requests.body_limit import ApiBodyBudget, BodyLimit
from ipnext.errors import RateLimited, Unavailable
from ipnext.model.access.rights import Principal
from tests.waiting import eventually

SIZE = 1000
PUBLIC = Principal(kind="local", id="local", name="anybody", grants=())


def key(name):
    return Principal(kind="key", id=name, name=name, grants=())


class Api:
    """An application behind the middleware; its endpoint answers once `going` is set."""

    def __init__(self, budget, *, authenticated=True):
        self.going, self.budget, self.whole = asyncio.Event(), budget, 0
        app = FastAPI()
        app.state.recorder = SimpleNamespace()
        install_error_handlers(app)
        app.add_middleware(BodyLimit, most=SIZE, budget=budget, authenticated=authenticated)

        @app.post("/x")
        async def endpoint(request: Request) -> Response:
            await request.body()
            self.whole += 1
            await self.going.wait()
            return Response()

        self.app = app

    async def ask(self, principal, source="1.2.3.4", *, size=SIZE, declared=True):
        sent = []
        headers = [(b"content-length", str(size).encode())] if declared else []
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/x",
            "raw_path": b"/x",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost"), *headers],
            "client": (source, 1),
            "server": ("localhost", 80),
            "state": {"acting": RequestAuthority(principal, source)},
        }

        async def receive():
            return {"type": "http.request", "body": bytes(size), "more_body": False}

        async def send(message):
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), b"".join(one.get("body", b"") for one in sent)


@pytest.mark.parametrize("declared", [True, False])
async def test_a_client_keeps_a_quarter_of_the_bodies_waiting_and_others_have_room(declared):
    api = Api(ApiBodyBudget(8 * SIZE))
    greedy = [asyncio.create_task(api.ask(key("greedy"))) for _ in range(2)]
    await eventually(lambda: api.whole == 2)
    status, headers, text = await api.ask(key("greedy"), declared=declared)
    assert (status, headers[b"retry-after"]) == (429, b"1")
    assert b"RateLimited" in text
    assert f"{2 * SIZE} bytes".encode() in text
    others = [asyncio.create_task(api.ask(key(f"other {n}"))) for n in range(6)]
    await eventually(lambda: api.whole == 8)
    status, headers, text = await api.ask(key("late"), declared=declared)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert b"IPNEXT_API_BODY_BUDGET_BYTES" in text
    api.going.set()
    assert {answer[0] for answer in await asyncio.gather(*greedy, *others)} == {200}
    assert api.budget.held_bytes == 0


async def test_before_a_credential_is_known_an_address_has_a_share():
    api = Api(ApiBodyBudget(4 * SIZE))
    first = asyncio.create_task(api.ask(PUBLIC, "1.1.1.1"))
    await eventually(lambda: api.whole == 1)
    assert (await api.ask(PUBLIC, "1.1.1.1"))[0] == 429
    api.going.set()
    assert (await api.ask(PUBLIC, "2.2.2.2"))[0] == 200
    assert (await first)[0] == 200


async def test_without_authentication_there_is_one_limit_for_all():
    api = Api(ApiBodyBudget(4 * SIZE), authenticated=False)
    asked = [asyncio.create_task(api.ask(PUBLIC)) for _ in range(4)]
    await eventually(lambda: api.whole == 4)
    assert (await api.ask(PUBLIC))[0] == 503
    api.going.set()
    await asyncio.gather(*asked)
    assert api.budget.held_bytes == 0


def test_a_refused_body_is_not_counted():
    budget = ApiBodyBudget(4 * SIZE)
    budget.take("a", SIZE)
    with pytest.raises(RateLimited):
        budget.take("a", 1)
    with pytest.raises(Unavailable):
        budget.take("b", 4 * SIZE)
    budget.give_back("a", SIZE)
    assert budget.held_bytes == 0
