"""Proof that an API knows a key before a client sends the key: another program may listen on the port of an ended API.

The client draws a nonce. The API answers with its port and an HMAC over both, keyed by a key that is derived from the
secret for this purpose. The store has it beside the digest of the secret, and regions, which have the digest, do not:
who has taken over a region can't pose as the API. Nobody learns anything of the secret from either. The port is part of
it, so that a program on another port gains nothing by asking the API, where the client knows the port and the address
that the API listens on: those of `ipnext dev`. An address that a person logged in at may be a tunnel; there the proof
only shows that somebody reaches the API.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final

NONCE_FORM: Final = r"[A-Za-z0-9_-]{22,64}"
_PURPOSE: Final = "ipnext-proof-1"
_DERIVATION: Final = "ipnext-proof-key-1"


def draw_nonce() -> str:
    """Draw a nonce that no answer was made for before."""
    return secrets.token_urlsafe(32)


def proof_key_of(secret: str) -> str:
    """Return the key (hex) of the proofs that an API knows a secret.

    HMAC-SHA256 as a key derivation (RFC 5869, one block).
    """
    return hmac.new(secret.encode(), _DERIVATION.encode(), hashlib.sha256).hexdigest()


def make_proof(proof_key: str, *, nonce: str, port: int) -> str:
    """Return the HMAC-SHA256 (hex) keyed by the key's proof key. ValueError if the nonce has another form."""
    if re.fullmatch(NONCE_FORM, nonce) is None:
        msg = f"nonce: must match {NONCE_FORM}"
        raise ValueError(msg)
    return hmac.new(proof_key.encode(), f"{_PURPOSE}\n{nonce}\n{port}".encode(), hashlib.sha256).hexdigest()


def is_proof(proof: str, secret: str, *, nonce: str, port: int) -> bool:
    """Return whether the maker of this proof knows the key; compared in constant time."""
    return hmac.compare_digest(make_proof(proof_key_of(secret), nonce=nonce, port=port).encode(), proof.encode())
