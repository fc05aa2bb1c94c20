"""Proof that an API knows a key before a client sends the key: another program may listen on the port of an ended API.

The client draws a nonce. The API answers with its port and an HMAC over both, keyed by the digest of the key's secret, which it has stored.
Nobody learns anything of the key from it. The port is part of it, so that a program on another port gains nothing by asking the API, where the client knows the port and the
address that the API listens on: those of `ipnext dev`. An address that a person logged in at may be a tunnel; there the proof only shows
that somebody reaches the API.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final

from ipnext.access.keys import digest_of_secret

NONCE_FORM: Final = r"[A-Za-z0-9_-]{22,64}"
_PURPOSE: Final = "ipnext-proof-1"


def draw_nonce() -> str:
    """Draw a nonce that no answer was made for before."""
    return secrets.token_urlsafe(32)


def make_proof(digest: str, *, nonce: str, port: int) -> str:
    """Return the HMAC-SHA256 (hex) keyed by the key's digest. ValueError if the nonce has another form."""
    if re.fullmatch(NONCE_FORM, nonce) is None:
        msg = f"nonce: must match {NONCE_FORM}"
        raise ValueError(msg)
    return hmac.new(digest.encode(), f"{_PURPOSE}\n{nonce}\n{port}".encode(), hashlib.sha256).hexdigest()


def is_proof(proof: str, secret: str, *, nonce: str, port: int) -> bool:
    """Return whether the maker of this proof knows the key; compared in constant time."""
    return hmac.compare_digest(make_proof(digest_of_secret(secret), nonce=nonce, port=port).encode(), proof.encode())
