"""Texts of API keys: `ipnext_ID.SECRET`. The id finds the stored key, the secret proves it.

A secret has 256 random bits, so its plain SHA-256 can be stored: it cannot be guessed, so a slow hash would protect
nothing.
"""

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final, NamedTuple

from ipnext.access.proof import proof_key_of
from ipnext.errors import Unauthenticated

PREFIX: Final = "ipnext_"
LONGEST: Final = 128
_FORM: Final = re.compile(rf"{PREFIX}(?P<id>[a-z2-7]{{16}})\.(?P<secret>[A-Za-z0-9_-]{{43}})")


class NewKey(NamedTuple):
    """A new key: its text goes to the caller, the rest to the store."""

    id: str
    digest: str
    proof_key: str
    text: str


class PresentedKey(NamedTuple):
    """A key as a request gives it."""

    id: str
    secret: str


def draw_key() -> NewKey:
    """Draw a key from the system's randomness."""
    identity = base64.b32encode(secrets.token_bytes(10)).decode().lower()
    secret = secrets.token_urlsafe(32)
    return NewKey(identity, digest_of_secret(secret), proof_key_of(secret), f"{PREFIX}{identity}.{secret}")


def is_key(text: str) -> bool:
    """Return whether a credential claims to be an API key, well formed or not."""
    return text.startswith(PREFIX)


def parse_key(text: str) -> PresentedKey:
    """Read the text of a key. Unauthenticated if its form is wrong; the message repeats nothing of it."""
    found = _FORM.fullmatch(text)
    if found is None:
        msg = f"the API key has not the form {PREFIX}ID.SECRET"
        raise Unauthenticated(msg)
    return PresentedKey(found["id"], found["secret"])


def digest_of_secret(secret: str) -> str:
    """Return the SHA-256 (hex) of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def proves(secret: str, digest: str) -> bool:
    """Return whether a secret has this digest; compared in constant time."""
    return hmac.compare_digest(digest_of_secret(secret).encode(), digest.encode())
