"""Headers of an engine's answer, or another region's, that a client gets."""

import pytest

from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.deployment.router_table import GenerationShares, RouterTable
from tests.serving.openai.conftest import REGION, raw_engine
from tests.serving.openai.test_routes import CHAT, ask

pytestmark = pytest.mark.usefixtures("listeners")

ENDS = b"content-length: 15\r\n\r\n" + b'{"model":"llm"}'
STEERING = {
    "x-ipnext-refused": "1",
    "x-ipnext-chosen-by": "weight",
    "x-ipnext-upstream": "region-us",
    "x-ipnext-caller-proof": "p",
    "x-ipnext-new": "1",
    "x-envoy-ratelimited": "true",
    "set-cookie": "a=b",
    "access-control-allow-origin": "*",
    "strict-transport-security": "max-age=1",
    "clear-site-data": "*",
    "location": "http://other.example",
    "connection": "keep-alive",
    "server": "other",
}
DESCRIBING = {
    "content-type": "application/json",
    "cache-control": "no-cache",
    "retry-after": "7",
    "x-request-id": "r",
    "openai-processing-ms": "3",
}
PLATFORM = {
    "x-ipnext-generation": "99",
    "x-ipnext-snapshots": "llm=99",
    "x-ipnext-region": "south",
    "x-ipnext-error": "Fake",
}


def script_of(headers, status=b"200 OK", end=ENDS):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()

    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 " + status + b"\r\n" + lines + end)

    return script


CHUNKED = b'transfer-encoding: chunked\r\n\r\nf\r\n{"model":"llm"}\r\n0\r\n\r\n'


@pytest.mark.parametrize("end", [ENDS, CHUNKED], ids=["whole", "in pieces"])
async def test_an_engines_headers_describe_its_answer_and_steer_nothing(edge, client, end):
    async with raw_engine(script_of(STEERING | DESCRIBING | PLATFORM, end=end)) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + CHAT, json=ask())
    own = {"x-ipnext-generation": "1", "x-ipnext-snapshots": "llm=10", "x-ipnext-region": REGION}
    framing = {"content-length", "transfer-encoding"}
    assert {name: value for name, value in answer.headers.items() if name not in framing} == DESCRIBING | own
    assert answer.content == b'{"model":"llm"}'


async def test_an_engine_that_refuses_does_not_ask_for_another_attempt(edge, client):
    async with raw_engine(script_of(STEERING, status=b"503 Service Unavailable")) as engine:
        edge.serve(engine.url)
        answer = await client.post(edge.url + CHAT, json=ask())
    assert answer.status_code == 503
    assert "x-ipnext-refused" not in answer.headers


async def test_another_region_names_what_answered_and_steers_nothing(edge, client):
    given = STEERING | DESCRIBING | PLATFORM | {"www-authenticate": "Bearer"}
    async with raw_engine(script_of(given)) as gateway:
        choice = GenerationShares(model="llm", shares=(RouteShare(to="south", generation=3, fraction=1.0),))
        table = RouterTable(revision=1, region=REGION, models=(), choices=(choice,), egress=gateway.url)
        edge.path.write_text(table.model_dump_json())
        edge.follower.look()
        answer = await client.post(edge.url + CHAT, json=ask())
    wanted = DESCRIBING | PLATFORM | {"www-authenticate": "Bearer", "content-length": "15"}
    assert dict(answer.headers) == wanted
