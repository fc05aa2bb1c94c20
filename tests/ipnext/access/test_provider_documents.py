"""Reading an identity provider: only where it may be, only what it may say."""

import gzip
import json
import threading

import pytest

from ipnext.errors import InvalidInput, Unavailable
from ipnext.login import identity_provider
from ipnext.login.identity_provider import LARGEST_BYTES, ProviderClient, check_address, check_issuer


@pytest.fixture
def client(provider):
    found = ProviderClient(provider.issuer)
    yield found
    found.close()


@pytest.mark.parametrize(
    "address",
    [
        "https://id.example.com",
        "https://id.example.com:8443/realms/shop",
        "http://127.0.0.1:8080/realms/shop",
        "http://127.9.9.9/",
        "http://localhost:8080",
        "http://[::1]:8080/x",
    ],
)
def test_a_provider_is_reached_over_https_or_on_loopback(address):
    assert check_issuer(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "http://id.example.com",
        "http://10.0.0.7/realms/shop",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0:8080",
        "http://localhost.example.com",
        "http://127.0.0.1.example.com",
        "http://127.0.0.1@example.com/",
        "https://user:password@id.example.com",
        "ftp://id.example.com",
        "file:///etc/passwd",
        "//id.example.com",
        "https://",
        "https://id.example.com:port",
        "https://id.example.com/\n",
        "https://[::1",
        "id.example.com",
        "",
    ],
)
def test_other_addresses_are_refused_with_what_is_allowed(address):
    with pytest.raises(InvalidInput, match="allowed: https://HOST"):
        check_issuer(address)


@pytest.mark.parametrize("address", ["https://id.example.com/?realm=shop", "https://id.example.com/#shop"])
def test_an_issuer_has_neither_query_nor_fragment(address):
    assert check_address(address, "jwks_uri") == address
    with pytest.raises(InvalidInput, match="a query or a fragment"):
        check_issuer(address)


def test_discovery_names_the_endpoints_and_may_lack_those_of_logins(provider, client):
    assert client.discover().device_authorization == f"{provider.issuer}/device"
    provider.changed_discovery = {"device_authorization_endpoint": None, "revocation_endpoint": None}
    assert client.discover()[3:] == (None, None)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"issuer": "https://evil.example.com"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"jwks_uri": "http://169.254.169.254/keys"}, "jwks_uri"),
        ({"jwks_uri": "file:///etc/passwd"}, "jwks_uri"),
        ({"jwks_uri": None}, "jwks_uri"),
        ({"jwks_uri": ["https://id.example.com"]}, "jwks_uri"),
        ({"token_endpoint": "http://id.example.com/token"}, "token_endpoint"),
        ({"device_authorization_endpoint": "javascript:alert(1)"}, "device_authorization_endpoint"),
    ],
)
def test_a_discovery_document_that_leads_elsewhere_is_refused(provider, client, changed, words):
    provider.changed_discovery = changed
    with pytest.raises(Unavailable, match=words):
        client.discover()


DISCOVERY = "openid-configuration"


@pytest.mark.parametrize(
    ("status", "headers", "body", "words"),
    [
        (302, {"Location": "/realms/shop/keys"}, b"", "redirects"),
        (301, {"Location": "http://169.254.169.254/"}, b"", "redirects"),
        (307, {"Location": "https://evil.example.com/"}, b"{}", "redirects"),
        (500, {}, b"{}", "answered 500"),
        (404, {}, b"no such realm", "answered 404"),
        (200, {}, b"<html>", "not JSON"),
        (200, {}, b"\xff\xfe", "not JSON"),
        (200, {}, b"[" * 100_000, "not JSON"),
        (200, {}, b"[]", "not a JSON object"),
        (200, {}, b" " * (LARGEST_BYTES + 1), "larger than"),
        (200, {"Content-Encoding": "gzip"}, gzip.compress(b" " * 10**7), "not JSON"),
    ],
)
def test_answers_that_are_no_document_are_unavailable(provider, client, status, headers, body, words):
    provider.replaced[DISCOVERY] = (status, headers, body)
    with pytest.raises(Unavailable, match=words):
        client.discover()
    assert provider.asked == {DISCOVERY: 1}


def test_a_document_of_the_largest_size_is_read(provider, client):
    document = json.dumps({"issuer": provider.issuer, "jwks_uri": f"{provider.issuer}/keys"}).encode()
    provider.replaced[DISCOVERY] = (200, {}, document.ljust(LARGEST_BYTES))
    assert client.discover().jwks == f"{provider.issuer}/keys"


def test_a_provider_that_hangs_is_unavailable(provider, monkeypatch):
    monkeypatch.setattr(identity_provider, "ANSWER_SECONDS", 0.05)
    provider.gate = threading.Event()
    client = ProviderClient(provider.issuer)
    with pytest.raises(Unavailable, match="does not answer"):
        client.discover()
    provider.gate.set()
    client.close()


def test_a_provider_that_is_not_there_is_unavailable():
    client = ProviderClient("http://127.0.0.1:1")
    with pytest.raises(Unavailable, match=r"does not answer at http://127\.0\.0\.1:1/\.well-known"):
        client.discover()
    client.close()
