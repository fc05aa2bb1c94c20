"""The codec for Temporal's UI: for its pages and for programs of this machine, and for no other page."""

from base64 import b64encode

import pytest
from aiohttp.test_utils import TestClient, TestServer

from ipnext import codec_server
from ipnext.network.allowed_hosts import AllowedHosts
from ipnext.payload_keys import PayloadKeys
from ipnext.payloads import EncryptionCodec

UI, OTHER = "https://temporal.example", "https://other.example"
PAYLOADS = {
    "payloads": [{"metadata": {"encoding": b64encode(b"json/plain").decode()}, "data": b64encode(b'"secret"').decode()}]
}


@pytest.fixture
async def client(listeners):
    codec = EncryptionCodec(lambda: PayloadKeys("k", {"k": bytes(32)}))
    app = codec_server.codec_app(codec, AllowedHosts(origins=(UI,)))
    async with TestClient(TestServer(app)) as client:
        yield client


async def sealed(client):
    return await (await client.post("/encode", json=PAYLOADS)).json()


async def test_a_program_and_a_page_of_the_ui_read_what_was_encrypted(client):
    content = await sealed(client)
    assert content != PAYLOADS
    for headers in ({}, {"origin": UI}):
        answer = await client.post("/decode", json=content, headers=headers)
        assert (answer.status, await answer.json()) == (200, PAYLOADS)
        assert answer.headers.get("access-control-allow-origin") == headers.get("origin")


async def test_a_browser_may_ask_for_the_ui(client):
    asked = {"origin": UI, "access-control-request-method": "POST", "access-control-request-headers": "x-namespace"}
    answer = await client.options("/decode", headers=asked)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == UI
    assert "x-namespace" in answer.headers["access-control-allow-headers"]


@pytest.mark.parametrize("headers", [{"origin": OTHER}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}])
async def test_a_page_of_another_origin_reads_nothing(client, headers):
    content = await sealed(client)
    for method in ("POST", "OPTIONS"):
        answer = await client.request(method, "/decode", json=content, headers=headers)
        assert answer.status == 403
        assert "secret" not in await answer.text()
        assert "access-control-allow-origin" not in answer.headers


async def test_another_host_name_is_refused(client):
    answer = await client.post("/decode", json=PAYLOADS, headers={"host": "rebound.example"})
    assert answer.status == 421


async def test_a_body_that_is_no_payloads_is_refused_in_words(client):
    answer = await client.post("/decode", data=b"{", headers={"origin": UI})
    assert answer.status == 400
    assert "as Temporal's UI sends it" in (await answer.json())["message"]
    assert answer.headers["access-control-allow-origin"] == UI


def test_without_keys_it_ends_and_names_the_setting(monkeypatch, capsys):
    monkeypatch.delenv("IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE", raising=False)
    monkeypatch.setattr(codec_server, "keep_new_files_private", lambda: None)
    assert codec_server.main(["--port", "1"]) == 2
    assert "IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE" in capsys.readouterr().out
