"""Models that need a credential, asked in OpenAI's protocol.

What is refused, in which form, and what an engine gets to see.
"""

import asyncio
import json

import httpx
import openai
import pytest

from ipnext.access.keys import draw_key
from ipnext.model.access.predictions import AccessList, AccessSpec, CallerKey, ModelAccess
from ipnext.model.access.rights import Grant, Role
from ipnext.model.deployment.router_table import RoutedModel
from serving.metrics.tallies import CANCELLED
from serving.protocol.json_size import SMALL_BYTES
from tests.waiting import eventually

from .conftest import endpoint, raw_engine, served

BODY = {"model": "secret", "messages": [{"role": "user", "content": "hello"}]}
CLOSED = AccessSpec(predictions="authenticated")


def bearer(key):
    return {"authorization": f"Bearer {key}"}


async def answer(method, path, body, writer):
    content = b'{"choices": []}'
    writer.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(content) + content
    )


@pytest.fixture
async def engine(listeners):
    async with raw_engine(answer) as engine:
        yield engine


@pytest.fixture
def keys():
    return {owner: draw_key() for owner in ("ads", "search")}


@pytest.fixture
async def ask(edge, client, engine, keys):
    """Serves `free` and `secret`, which is of owner ads."""

    def serve(**access):
        models = [
            RoutedModel(model=model, served=(served(1),), endpoints=(endpoint(engine.url, 1),), access=kind)
            for model, kind in (("free", "open"), ("secret", "authenticated"))
        ]
        edge.table(*models)
        spec = AccessSpec.model_validate({"predictions": "authenticated", **access})
        grants = {owner: (Grant(role=Role.CALLER, owner=owner),) for owner in keys}
        edge.allow(
            AccessList(
                revision=1,
                models=(
                    ModelAccess(model="free", owner="ads", access=AccessSpec()),
                    ModelAccess(model="secret", owner="ads", access=spec),
                ),
                keys=tuple(
                    CallerKey(id=key.id, name=owner, digest=key.digest, grants=grants[owner])
                    for owner, key in keys.items()
                ),
            )
        )

    async def ask(model="secret", key=None, *, path="/v1/chat/completions", **headers):
        given = {} if key is None else bearer(key.text)
        return await client.post(edge.url + path, json={**BODY, "model": model}, headers=given | headers)

    serve()
    ask.serve = serve
    return ask


async def test_a_client_without_a_key_gets_openais_error(edge, ask, engine):
    found = await ask()
    assert (found.status_code, found.headers["www-authenticate"]) == (401, 'Bearer realm="ipnext"')
    error = found.json()["error"]
    assert (error["type"], error["code"]) == ("AuthenticationError", "invalid_api_key")
    assert engine.requests == []
    assert edge.counts(model="secret").answers == {}
    assert edge.metrics.traffic == ()
    assert (
        'refused_requests_total{model="secret",reason="unauthenticated",region="north"} 1.0'
        in edge.metrics.text().decode()
    )


async def test_openais_own_client_sends_the_key_and_raises_its_errors(edge, ask, keys):
    async def complete(key, model="secret"):
        async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=key, max_retries=0) as client:
            return await client.chat.completions.create(model=model, messages=BODY["messages"])

    await complete(keys["ads"].text)
    await complete("EMPTY", "free")
    with pytest.raises(openai.AuthenticationError):
        await complete("EMPTY")
    with pytest.raises(openai.NotFoundError):
        await complete(keys["search"].text)
    ask.serve(limits={"perKey": {"requestsPerSecond": 0.001, "burst": 1}})
    await complete(keys["ads"].text)
    with pytest.raises(openai.RateLimitError) as limited:
        await complete(keys["ads"].text)
    assert int(limited.value.response.headers["retry-after"]) >= 1
    assert 'reason="rate_limited"' in edge.metrics.text().decode()


async def test_no_engine_sees_a_credential_of_a_client(ask, engine, keys):
    secret = keys["ads"].text.split(".")[1]
    credentials = {"cookie": secret, "proxy-authorization": secret, "x-api-key": secret, "api-key": secret}
    for model in ("secret", "free"):
        assert (await ask(model, keys["ads"], **credentials, **{"x-ipnext-user": "eve"})).status_code == 200
    assert len(engine.requests) == 2
    for head, body in engine.requests:
        assert secret.encode() not in head + body
        assert b"x-ipnext" not in head
        assert b"authorization" not in head.lower()


async def test_lists_and_errors_name_only_what_is_for_who_asks(edge, client, ask, keys):
    async def names(key=None):
        found = await client.get(f"{edge.url}/v1/models", headers=bearer(key.text) if key else {})
        return [one["id"] for one in found.json()["data"]]

    assert (await names(), await names(keys["search"]), await names(keys["ads"])) == (
        *(["free"], ["free"], ["free", "secret"]),
    )
    for key, status in ((None, 401), (keys["search"], 404), (keys["ads"], 200)):
        found = await client.get(f"{edge.url}/v1/models/secret", headers=bearer(key.text) if key else {})
        assert found.status_code == status
    empty = await client.post(f"{edge.url}/v1/completions", json={"prompt": "x"})
    assert "secret" not in empty.text
    absent, foreign = await ask("absent", keys["search"]), await ask("secret", keys["search"])
    assert absent.text.replace("absent", "secret") == foreign.text


async def test_a_stream_ends_with_the_access_of_its_caller(edge, client, ask, keys, listeners, monkeypatch):
    """Not with that of another caller, nor with the list itself, and not as a fault of the generation."""
    monkeypatch.setattr("serving.access.open_streams.CHECK_SECONDS", 0.02)

    async def stream(method, path, body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"8\r\ndata: x\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    model = ModelAccess(model="secret", owner="ads", access=AccessSpec(predictions="authenticated"))
    listed = [
        CallerKey(id=key.id, name=owner, digest=key.digest, grants=(Grant(role=Role.CALLER, owner="ads"),))
        for owner, key in keys.items()
    ]

    async def pieces_of(key):
        async with client.stream("POST", f"{edge.url}/v1/chat/completions", json=BODY, headers=bearer(key.text)) as got:
            assert got.status_code == 200
            async for _ in got.aiter_bytes():
                read[key.id] += 1

    async def read_more():
        before = dict(read)
        await eventually(lambda: all(read[key] > count + 5 for key, count in before.items() if key in open_keys))

    async with raw_engine(stream) as engine:
        edge.table(
            RoutedModel(
                model="secret", served=(served(1),), endpoints=(endpoint(engine.url, 1),), access="authenticated"
            )
        )
        edge.allow(AccessList(revision=2, models=(model,), keys=tuple(listed)))
        read = dict.fromkeys((key.id for key in keys.values()), 0)
        open_keys = set(read)
        streams = {owner: asyncio.create_task(pieces_of(key)) for owner, key in keys.items()}
        await read_more()
        edge.allow(AccessList(revision=3))  # the model is not in it: this ends no answer
        await read_more()
        edge.allow(AccessList(revision=4, models=(model,), keys=tuple(k for k in listed if k.name == "search")))
        with pytest.raises(httpx.RemoteProtocolError):
            await streams["ads"]
        open_keys = {keys["search"].id}
        await read_more()
        streams["search"].cancel()
        await asyncio.gather(streams["search"], return_exceptions=True)
    assert edge.counts(model="secret").answers.keys() == {CANCELLED}


async def test_who_waits_for_a_hot_swap_is_asked_again_what_it_may_when_the_wait_ends(edge, client, ask, engine, keys):
    waits = {"model": "secret", "served": (served(1), served(2)), "access": "authenticated", "swap": True}
    edge.table(RoutedModel(**waits, coming=(2,)))
    waiting = asyncio.create_task(ask(key=keys["ads"], **{"x-ipnext-generation": "1", "x-ipnext-chosen-by": "weight"}))
    await eventually(edge.has_requests)
    revoked = AccessList(
        revision=2, models=(ModelAccess(model="secret", owner="ads", access=CLOSED),), keys=(), roles=()
    )
    edge.allow(revoked)
    edge.table(RoutedModel(**waits, endpoints=(endpoint(engine.url, 1, 2),)))
    assert (await waiting).status_code == 401
    assert not edge.has_requests()


@pytest.mark.parametrize("free", ["open", "authenticated"])
async def test_a_large_body_is_read_only_if_a_model_is_open_or_the_caller_known(edge, client, engine, ask, keys, free):
    await ask("secret")  # puts the table in force
    secret, other = (
        RoutedModel(model=model, served=(served(1),), endpoints=(endpoint(engine.url, 1),), access=kind)
        for model, kind in (("secret", "authenticated"), ("other", free))
    )
    edge.table(secret, other)

    async def post(headers):
        unreadable = {"content": b"{" + b" " * SMALL_BYTES, "headers": {"content-type": "application/json", **headers}}
        return (await client.post(f"{edge.url}/v1/completions", **unreadable)).status_code

    unknown = 400 if free == "open" else 401
    assert await post({}) == await post(bearer("no-key")) == unknown
    assert await post(bearer(keys["ads"].text)) == 400


async def test_an_adapter_is_as_closed_as_its_model(ask):
    assert (await ask("secret:style")).status_code == 401


async def test_a_refusal_reads_no_prompt_into_the_error(ask):
    found = await ask(path="/v1/completions")
    assert "hello" not in json.dumps(found.json())
