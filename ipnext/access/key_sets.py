"""Public keys of a JSON Web Key Set (RFC 7517): the usable ones, and the one that a token is signed by."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from ipnext.errors import Unauthenticated

MOST_KEYS: Final = 100
RSA_BITS: Final = (2048, 8192)
_PUBLIC: Final = ("kty", "use", "key_ops", "alg", "kid", "n", "e", "crv", "x", "y")
"""Members of a public JSON Web Key."""

SigningKey = RSAKey | ECKey | OKPKey

ALGORITHMS: Final[Mapping[str, tuple[str, str | None]]] = {
    "RS256": ("RSA", None),
    "RS384": ("RSA", None),
    "RS512": ("RSA", None),
    "PS256": ("RSA", None),
    "PS384": ("RSA", None),
    "PS512": ("RSA", None),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "Ed25519": ("OKP", "Ed25519"),
}
"""Allowed algorithms of tokens -> type and curve of their keys. All are asymmetric."""


def fitting_keys(keys: Iterable[SigningKey], kid: str | None, algorithm: str) -> Sequence[SigningKey]:
    """Return the keys that may have signed a token with this `kid` and algorithm; `kid` is None if it names none."""
    return [key for key in keys if (kid is None or key.kid == kid) and _fits(key, algorithm)]


def only_key(found: Sequence[SigningKey]) -> SigningKey:
    """Return the one key that fits a token. Unauthenticated if there is none, or several."""
    if len(found) == 1:
        return found[0]
    msg = (
        "the token is signed by a key that the identity provider does not publish for its algorithm"
        if not found
        else "the token does not say which of the identity provider's keys it is signed by"
    )
    raise Unauthenticated(msg)


def usable_documents(given: Any) -> Sequence[Mapping[str, Any]]:
    """Return the usable keys as published, without other members of their documents, such as certificates."""
    found = (data for data in (given if isinstance(given, list) else [])[:MOST_KEYS] if _key(data) is not None)
    return [{name: data[name] for name in _PUBLIC if name in data} for data in found]


def usable_keys(given: Any) -> Iterable[SigningKey]:
    """Yield the public keys that can verify signatures.

    Other members of a key set are left out, as RFC 7517 requires.
    """
    for data in (given if isinstance(given, list) else [])[:MOST_KEYS]:
        key = _key(data)
        if key is not None:
            yield key


def _key(data: Any) -> SigningKey | None:
    if not isinstance(data, dict) or "d" in data or data.get("use", "sig") != "sig":
        return None
    if data.get("kty") not in ("RSA", "EC", "OKP") or "verify" not in (data.get("key_ops") or ["verify"]):
        return None
    given = {name: value for name, value in data.items() if not name.startswith("x5")}
    try:
        if data["kty"] == "RSA" and not RSA_BITS[0] <= _bits(data["n"]) <= RSA_BITS[1]:
            return None
        key = JWKRegistry.import_key(given)
        _ = key.public_key  # read now: a point that is not on its curve is no key
    except (JoseError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return key if isinstance(key, RSAKey | ECKey | OKPKey) else None


def _bits(modulus: str) -> int:
    return int.from_bytes(urlsafe_b64decode(modulus.encode())).bit_length()


def _fits(key: SigningKey, algorithm: str) -> bool:
    kind, curve = ALGORITHMS[algorithm]
    if key.key_type != kind or key.alg not in {None, algorithm}:
        return False
    return curve is None or (not isinstance(key, RSAKey) and key.curve_name == curve)
