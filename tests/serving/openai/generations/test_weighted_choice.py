"""The generation of an OpenAI request by the shares of the route table, and requests that another region answers."""

import asyncio
import json

import httpx
import pytest

from ipnext.access.keys import draw_key
from ipnext.errors import NotFound, Unavailable
from ipnext.model.access.predictions import AccessList, AccessSpec, CallerKey, ModelAccess
from ipnext.model.access.rights import Grant, Role
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.deployment.router_table import GenerationShares, RoutedModel, RouterTable
from serving.http.messages import Request
from serving.openai.engines import connection
from serving.openai.weighted_choice import ForwardedRequest, directed
from serving.routing.table import compile_routes
from tests.serving.openai.conftest import REGION, endpoint, raw_engine, served
from tests.waiting import eventually

CHAT = "/v1/chat/completions"
ANSWER = b'{"choices": []}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-ipnext-region: south\r\ncontent-length: %d\r\n\r\n"


def shares(parts, model="llm", **more):
    """`parts`: (region, generation) -> its fraction."""
    found = tuple(RouteShare(to=to, generation=number, fraction=part) for (to, number), part in parts.items())
    return GenerationShares(model=model, shares=found, **more)


def routes_of(*generations):
    table = RouterTable(
        revision=1, region=REGION, models=(RoutedModel(model="llm", served=tuple(map(served, generations))),)
    )
    return compile_routes(table).models["llm"]


def steering(way):
    request = way.request if isinstance(way, ForwardedRequest) else way
    headers = {name.removeprefix("x-ipnext-"): value for name, value in request.headers.items()}
    return way.region if isinstance(way, ForwardedRequest) else REGION, headers


TWO = shares({(REGION, 1): 0.5, (REGION, 2): 0.25, ("south", 3): 0.25})


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (0.0, (REGION, {"generation": "1", "chosen-by": "weight"})),
        (0.49, (REGION, {"generation": "1", "chosen-by": "weight"})),
        (0.5, (REGION, {"generation": "2", "chosen-by": "weight"})),
        (0.75, ("south", {"generation": "3", "forwarded-by": f"{REGION};chosen-by=weight"})),
        (1 - 2**-53, ("south", {"generation": "3", "forwarded-by": f"{REGION};chosen-by=weight"})),
    ],
)
def test_a_generation_is_chosen_in_proportion_to_its_share(drawn, expected):
    assert (
        steering(directed(Request("POST", CHAT), TWO, routes_of(1, 2), region=REGION, draw=lambda: drawn)) == expected
    )


def test_shares_that_do_not_add_up_to_one_count_in_relation_to_each_other():
    few = shares({(REGION, 1): 0.1, (REGION, 2): 0.1})
    drawn = [
        steering(directed(Request("POST", CHAT), few, None, region=REGION, draw=lambda at=at: at)) for at in (0.4, 0.6)
    ]
    assert [headers["generation"] for _, headers in drawn] == ["1", "2"]


@pytest.mark.parametrize(
    ("pin", "expected"),
    [
        ("2", (REGION, {"generation": "2"})),
        ("4", (REGION, {"generation": "4"})),
        ("3", ("south", {"generation": "3", "forwarded-by": REGION})),
    ],
    ids=["served here", "served here without a share", "served by a share of another region"],
)
def test_a_generation_that_a_client_names_is_kept_and_not_called_chosen(pin, expected):
    request = Request("POST", CHAT, {"x-ipnext-generation": pin})
    assert steering(directed(request, TWO, routes_of(1, 2, 4), region=REGION)) == expected


@pytest.mark.parametrize("pin", ["9", "x", "01", ""])
def test_a_generation_that_no_share_serves_is_refused_with_those_that_are(pin):
    with pytest.raises(NotFound, match="served: 1, 2, 3"):
        directed(Request("POST", CHAT, {"x-ipnext-generation": pin}), TWO, routes_of(1, 2), region=REGION)


def test_a_model_without_shares_is_refused_with_the_reason():
    with pytest.raises(Unavailable, match="no snapshots are published"):
        directed(Request("POST", CHAT), shares({}, refusal="no snapshots are published"), None, region=REGION)


@pytest.mark.parametrize("pin", [{}, {"x-ipnext-generation": "3"}])
def test_what_another_region_has_sent_is_never_sent_on(pin):
    request = Request("POST", CHAT, {"x-ipnext-forwarded-by": "east;chosen-by=weight", **pin})
    assert directed(request, TWO, routes_of(1, 2), region=REGION, draw=lambda: 0.9) is request


# through a router


async def answer(method, path, body, writer):
    writer.write(HEAD % len(ANSWER) + ANSWER)


@pytest.fixture
async def gateway(listeners):
    """Stands for the egress of the region's gateway."""
    async with raw_engine(answer) as gateway:
        yield gateway


@pytest.fixture
def table(edge, gateway):
    def table(*choices, models=(), egress=None):
        edge.revision += 1
        url = egress or gateway.url
        content = RouterTable(revision=edge.revision, region=REGION, models=models, choices=choices, egress=url)
        new = edge.path.with_suffix(".new")
        new.write_text(content.model_dump_json())
        new.replace(edge.path)
        edge.follower.look()

    return table


def ask(model="llm", **more):
    return {"model": model, "messages": [{"role": "user", "content": "say it"}], **more}


def head_of(request):
    lines = request[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}


async def test_a_request_of_a_model_that_only_another_region_serves_is_sent_there_as_it_came(
    edge, client, table, gateway
):
    table(shares({("south", 3): 1.0}))
    headers = {
        "authorization": "Bearer t",
        "x-ipnext-session": "s",
        "x-ipnext-deadline-ms": "60000",
        "host": "localhost:1",
    }
    body = b' {"model" : "llm:style",  "messages": [] }'
    found = await client.post(edge.url + CHAT, content=body, headers={**headers, "content-type": "application/json"})
    assert (found.status_code, found.content, found.headers["x-ipnext-region"]) == (200, ANSWER, "south")
    [request] = gateway.requests
    sent = head_of(request)
    assert request[1] == body
    assert {name: sent[name] for name in headers} == headers
    assert {name: value for name, value in sent.items() if name.startswith("x-ipnext") and name not in headers} == {
        "x-ipnext-generation": "3",
        "x-ipnext-forwarded-by": f"{REGION};chosen-by=weight",
        "x-ipnext-upstream": "region-south",
        "x-ipnext-caller-proof": "",
    }


async def test_what_another_region_answers_counts_there_alone_and_as_in_flight_while_it_streams(edge, client, table):
    go_on = asyncio.Event()

    async def stream(method, path, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        await go_on.wait()
        writer.write(b"4\r\nlast\r\n0\r\n\r\n")

    async with raw_engine(stream) as slow:
        table(shares({("south", 3): 1.0}), egress=slow.url)
        async with client.stream("POST", edge.url + CHAT, json=ask(stream=True)) as answer:
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"first"
            assert edge.has_requests()
            assert edge.router.engines.loads.under_way == {slow.url: 1}, "a router that ends would not wait for it"
            go_on.set()
            assert b"".join([piece async for piece in pieces]) == b"last"
    await eventually(lambda: not edge.has_requests())
    assert edge.router.engines.loads.under_way == {}
    assert edge.metrics.traffic == ()
    assert "ipnext_requests_total{" not in edge.metrics.text().decode()


async def test_a_refusal_of_the_choice_is_in_openais_form_and_counts_for_nothing(edge, client, table):
    table(shares({}, refusal="model llm has no capacity in region north at the moment; try again"))
    found = await client.post(edge.url + CHAT, json=ask())
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert "no capacity" in found.json()["error"]["message"]
    found = await client.post(edge.url + CHAT, json=ask(), headers={"x-ipnext-generation": "5"})
    assert (found.status_code, found.json()["error"]["type"]) == (404, "NotFoundError")
    assert "ipnext_requests_total{" not in edge.metrics.text().decode()


async def test_a_region_whose_gateway_gives_no_answer_is_unavailable(edge, client, table):
    async def close(method, path, body, writer):
        writer.close()

    async with raw_engine(close) as gone:
        table(shares({("south", 3): 1.0}), egress=gone.url)
        found = await client.post(edge.url + CHAT, json=ask())
    assert (found.status_code, found.headers["retry-after"]) == (503, "1")
    assert "south" in found.json()["error"]["message"]
    assert not edge.has_requests()


async def test_connections_to_a_former_egress_close_after_their_answers(edge, client, table, gateway, monkeypatch):
    monkeypatch.setattr(connection, "IDLE_SECONDS", 3600.0)
    go_on = asyncio.Event()

    async def late(method, path, body, writer):
        await go_on.wait()
        writer.write(HEAD % len(ANSWER) + ANSWER)

    async with raw_engine(late) as former:
        table(shares({("south", 3): 1.0}), egress=former.url)
        asked = asyncio.ensure_future(client.post(edge.url + CHAT, json=ask()))
        await eventually(lambda: former.requests)
        table(shares({("south", 3): 1.0}), egress=gateway.url)
        assert (await client.post(edge.url + CHAT, json=ask())).status_code == 200
        assert not former.left
        go_on.set()
        assert (await asked).status_code == 200
        await eventually(lambda: former.left)


async def test_a_generation_chosen_by_weight_is_evidence_for_gates_and_a_pinned_one_is_not(edge, engine, client, table):
    model = RoutedModel(model="llm", served=(served(1), served(2)), endpoints=(endpoint(engine, 1, 2),))
    table(shares({(REGION, 1): 1.0}), models=(model,))
    for headers in ({}, {"x-ipnext-generation": "2"}):
        assert (await client.post(edge.url + CHAT, json=ask(), headers=headers)).status_code == 200
    [first, second] = sorted(edge.metrics.traffic, key=lambda one: one.generation)
    assert (first.requests, first.chosen[REGION].requests, first.chosen[REGION].under_way) == (1, 1, 0)
    assert (second.requests, second.chosen) == (1, {})


# access


@pytest.fixture
async def guarded(edge, table):
    """Model `llm` of owner ads needs a credential and is served in the south alone; its key."""
    key, foreign = draw_key(), draw_key()
    limits = {"perKey": {"requestsPerSecond": 0.001, "burst": 1}}
    spec = AccessSpec.model_validate({"predictions": "authenticated", "limits": limits})
    grants = {key: "ads", foreign: "search"}
    edge.allow(
        AccessList(
            revision=1,
            models=(
                ModelAccess(model="llm", owner="ads", access=spec),
                ModelAccess(model="free", owner="ads", access=AccessSpec()),
            ),
            keys=tuple(
                CallerKey(id=k.id, name=owner, digest=k.digest, grants=(Grant(role=Role.CALLER, owner=owner),))
                for k, owner in grants.items()
            ),
        )
    )
    choices = [shares({("south", 3): 1.0}, access="authenticated"), shares({("south", 1): 1.0}, model="free")]
    table(*choices)
    return key, foreign


async def test_no_request_without_a_credential_leaves_for_another_region(edge, client, guarded, gateway):
    key, foreign = guarded

    async def status(model, given=None, **headers):
        headers |= {} if given is None else {"authorization": f"Bearer {given.text}"}
        return (await client.post(edge.url + CHAT, json=ask(model), headers=headers)).status_code

    assert await status("llm") == 401
    assert await status("llm", foreign) == 404
    assert await status("llm", **{"x-ipnext-generation": "7"}) == 401, (
        "which generations there are is not for everybody"
    )
    assert gateway.requests == []
    assert await status("llm", key, **{"x-ipnext-generation": "7"}) == 404
    assert [await status("llm", key) for _ in range(3)] == [200] * 3, (
        "the region that answers counts against the limits"
    )
    assert await status("free") == 200
    assert len(gateway.requests) == 4


async def test_a_request_that_another_region_has_sent_is_checked_as_any_other(edge, client, engine, guarded, table):
    model = RoutedModel(model="llm", served=(served(1),), endpoints=(endpoint(engine, 1),), access="authenticated")
    table(shares({(REGION, 1): 1.0}, access="authenticated"), models=(model,))
    sent_on = {"x-ipnext-generation": "1", "x-ipnext-forwarded-by": "south;chosen-by=weight"}
    for given, status in ((None, 401), (guarded[1], 404), (guarded[0], 200)):
        headers = sent_on | ({} if given is None else {"authorization": f"Bearer {given.text}"})
        assert (await client.post(edge.url + CHAT, json=ask(), headers=headers)).status_code == status


# bodies


async def begun(edge, *head, body=b""):
    """Send a part of a request; the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(edge.url).port)
    lines = [f"POST {CHAT} HTTP/1.1", "host: localhost", "content-type: application/json", *head]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)
    found = await reader.readuntil(b"\r\n\r\n")
    error = json.loads(await reader.read())["error"]
    writer.close()
    return found.split(b" ")[1], error


async def test_a_body_beyond_the_limit_is_refused_before_it_has_come_in_openais_form(edge, listeners):
    status, error = await begun(edge, f"content-length: {32 * 2**20 + 1}")
    assert (status, error["type"]) == (b"413", "BadRequestError")
    assert "at most 33554432 bytes" in error["message"]


async def test_what_cannot_be_read_is_refused_in_openais_form(edge, listeners):
    status, error = await begun(edge, "transfer-encoding: gzip")
    assert (status, error["type"]) == (b"400", "BadRequestError")
