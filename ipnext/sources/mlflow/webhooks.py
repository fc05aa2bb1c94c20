"""Signatures of webhooks in MLflow's form: HMAC-SHA256 of delivery id, time and body with a secret of the server."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Final

FRESH_SECONDS: Final = 300
"""Greatest difference of a webhook's time from the clock. A repeated one only causes a poll."""
LONGEST_ID: Final = 200
LONGEST_TIME: Final = 12
"""Digits."""


def is_fresh(timestamp: str, now: datetime) -> bool:
    """Return whether a webhook's time, in seconds, is about now: of any other the body need not be read."""
    if not timestamp.isascii() or not timestamp.isdecimal() or len(timestamp) > LONGEST_TIME:
        return False
    return abs(now.timestamp() - int(timestamp)) <= FRESH_SECONDS


def find_sender(
    secrets: Mapping[str, str], *, delivery: str, timestamp: str, signature: str, body: bytes, now: datetime
) -> str | None:
    """Return the URL of the server whose secret signed a webhook; None if there is none, or it is not fresh.

    `timestamp` is in seconds, `signature` of the form `v1,BASE64`, as MLflow sends them in `X-MLflow-Timestamp` and
    `X-MLflow-Signature`.
    """
    if len(delivery) > LONGEST_ID or not is_fresh(timestamp, now):
        return None
    signed = f"{delivery}.{timestamp}.".encode() + body
    found = None
    for url, secret in secrets.items():
        expected = base64.b64encode(hmac.digest(secret.encode(), signed, hashlib.sha256)).decode()
        if hmac.compare_digest(f"v1,{expected}".encode(), signature.encode()):
            found = url
    return found
