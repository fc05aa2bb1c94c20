"""Public keys of an identity provider: read by discovery, kept, and read again after a while or for an unknown key.

While the provider is away, the keys that were read last go on proving tokens for `LASTS_SECONDS`.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import structlog
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from joserfc.util import urlsafe_b64decode

from ipnext.errors import Unauthenticated, Unavailable
from ipnext.identity_provider import ProviderClient

FRESH_SECONDS: Final = 300.0
"""Age at which keys are read again in the background, in seconds; a key that was withdrawn proves nothing after it."""
LASTS_SECONDS: Final = 12 * 3600.0
"""Age at which keys prove nothing any more if the provider did not answer since, in seconds."""
BETWEEN_READS_SECONDS: Final = 5.0
"""Least time between two reads, in seconds, whatever tokens ask for."""
MOST_WAITING: Final = 8
"""Threads that may wait for a read; further ones are answered Unavailable at once."""
MOST_KEYS: Final = 100
RSA_BITS: Final = (2048, 8192)

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
"""Algorithms that tokens may be signed by -> type and curve of their keys. All are asymmetric."""


class SigningKeys:
    """Keys by their id. Any thread may use it; one asks the provider, a few wait for it, and none that knows its key does."""

    def __init__(self, provider: ProviderClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider, self._clock = provider, clock
        self._keys: Sequence[SigningKey] = ()
        self._read_at: float | None = None
        self._asked_at: float | None = None
        self._why = "it was not asked yet"
        self._reading = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)

    def find(self, kid: str | None, algorithm: str) -> SigningKey:
        """The key that a token names, or the only one of its algorithm if it names none.

        Unauthenticated if there is none; Unavailable if the provider's keys can't be had now.
        """
        age = self._age()
        if age is None or age > LASTS_SECONDS:
            self._read_now()
            age = self._age()
            if age is None or age > LASTS_SECONDS:
                msg = f"the identity provider's keys can't be had now: {self._why}"
                raise Unavailable(msg)
        elif age > FRESH_SECONDS:
            self._read_aside()
        found = self._fitting(kid, algorithm)
        if not found:
            self._read_now()
            found = self._fitting(kid, algorithm)
        if len(found) != 1:
            msg = (
                "the token is signed by a key that the identity provider does not publish for its algorithm"
                if not found
                else "the token does not say which of the identity provider's keys it is signed by"
            )
            raise Unauthenticated(msg)
        return found[0]

    def close(self) -> None:
        """Close the connections to the provider, after the read that is under way."""
        with self._reading:
            self._provider.close()

    def _age(self) -> float | None:
        return None if self._read_at is None else self._clock() - self._read_at

    def _fitting(self, kid: str | None, algorithm: str) -> Sequence[SigningKey]:
        return [key for key in self._keys if (kid is None or key.kid == kid) and _fits(key, algorithm)]

    def _read_now(self) -> None:
        """Read the keys, unless they were asked for a moment ago. Unavailable while too many threads wait for that."""
        if not self._waiting.acquire(blocking=False):
            msg = "the identity provider's keys are being read; try again"
            raise Unavailable(msg)
        try:
            with self._reading:
                self._read()
        finally:
            self._waiting.release()

    def _read_aside(self) -> None:
        """Read the keys in the background, unless that is being done, or was a moment ago."""
        if self._is_early() or not self._reading.acquire(blocking=False):
            return

        def read() -> None:
            try:
                self._read()
            finally:
                self._reading.release()

        threading.Thread(target=read, name="signing-keys", daemon=True).start()

    def _is_early(self) -> bool:
        return self._asked_at is not None and self._clock() - self._asked_at < BETWEEN_READS_SECONDS

    def _read(self) -> None:
        """Read the keys. If that fails, the former ones stay."""
        if self._is_early():
            return
        try:
            document = self._provider.read(self._provider.discover().jwks)
        except Unavailable as error:
            self._why = error.message
            structlog.get_logger().warning("identity_provider_keys_not_read", error=error.message)
            return
        finally:
            self._asked_at = self._clock()  # those that waited do not ask again
        self._keys, self._read_at = tuple(usable_keys(document.get("keys"))), self._clock()


def usable_keys(given: Any) -> Iterable[SigningKey]:
    """Public keys that can verify signatures; what else a key set has is left out, as RFC 7517 has it."""
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
