"""The codec for Temporal's UI: for its pages and for programs of this machine, and for no other page."""

import socket
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
    assert answer.headers["access-control-allow-private-network"] == "true"


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


@pytest.mark.parametrize(("path", "status"), [("/decode", 413), ("/other", 404)])
async def test_a_page_of_the_ui_reads_why_a_request_is_refused(client, monkeypatch, path, status):
    monkeypatch.setattr(client.app, "_client_max_size", 10)
    answer = await client.post(path, data=b"x" * 11, headers={"origin": UI})
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == UI
    other = await client.post(path, data=b"x" * 11, headers={"origin": OTHER})
    assert other.status == 403
    assert "access-control-allow-origin" not in other.headers


def test_without_keys_it_ends_and_names_the_setting(monkeypatch, capsys):
    monkeypatch.delenv("IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE", raising=False)
    monkeypatch.setattr(codec_server, "keep_new_files_private", lambda: None)
    assert codec_server.main(["--port", "1"]) == 2
    assert "IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE" in capsys.readouterr().out


@pytest.fixture
def with_keys(tmp_path, monkeypatch):
    file = tmp_path / "keys.json"
    file.write_text(f'{{"encrypt": null, "keys": {{"k": "{b64encode(bytes(32)).decode()}"}}}}')
    monkeypatch.setenv("IPNEXT_TEMPORAL_PAYLOAD_KEYS_FILE", str(file))
    monkeypatch.setattr(codec_server, "keep_new_files_private", lambda: None)


@pytest.mark.usefixtures("with_keys", "listeners")
def test_a_port_in_use_ends_it_in_words(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert codec_server.main(["--port", str(other.getsockname()[1])]) == 1
    assert "address already in use" in capsys.readouterr().out


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x"])
def test_a_number_that_is_no_port_is_a_usage_error(port, capsys):
    with pytest.raises(SystemExit, match="2"):
        codec_server.read_arguments([f"--port={port}"])
    assert "--port" in capsys.readouterr().err
