"""Webhooks in MLflow's form: only a fresh one with a valid signature causes a poll."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta

import pytest

from ipnext.sources.mlflow.webhooks import FRESH_SECONDS, find_sender

pytestmark = pytest.mark.trust

NOW = datetime(2026, 12, 1, tzinfo=UTC)
SENT = str(int(NOW.timestamp()))
SECRETS = {"https://a.example": "secret-a", "https://b.example": "secret-b"}
BODY = json.dumps({"entity": "model_version", "action": "created", "data": {"name": "ctr", "version": "3"}}).encode()


def sign(secret, *, delivery="d-1", timestamp=SENT, body=BODY):
    digest = hmac.digest(secret.encode(), f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256)
    return "v1," + base64.b64encode(digest).decode()


def sender(signature, *, delivery="d-1", timestamp=SENT, body=BODY, now=NOW):
    return find_sender(SECRETS, delivery=delivery, timestamp=timestamp, signature=signature, body=body, now=now)


def test_the_secret_names_the_server():
    assert [sender(sign(secret)) for secret in SECRETS.values()] == list(SECRETS)


@pytest.mark.parametrize(
    "given",
    [
        {"signature": sign("other")},
        {"signature": ""},
        {"signature": sign("secret-a").removeprefix("v1,")},
        {"signature": sign("secret-a").replace("v1", "v2")},
        {"signature": "v1,\u00e9"},
        {"signature": sign("secret-a"), "body": BODY + b" "},
        {"signature": sign("secret-a"), "delivery": "d-2"},
        {"signature": sign("secret-a"), "timestamp": str(int(NOW.timestamp()) + 1)},
        {"signature": sign("secret-a", timestamp="now"), "timestamp": "now"},
        {"signature": sign("secret-a", timestamp="\u0661"), "timestamp": "\u0661"},
        {"signature": sign("secret-a"), "now": NOW + timedelta(seconds=FRESH_SECONDS + 1)},
        {"signature": sign("secret-a"), "now": NOW - timedelta(seconds=FRESH_SECONDS + 1)},
    ],
)
def test_anything_else_is_of_no_server(given):
    assert sender(**given) is None


def test_without_secrets_there_is_no_sender():
    found = find_sender({}, delivery="", timestamp="", signature="", body=b"", now=NOW)
    assert found is None
