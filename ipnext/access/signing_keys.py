"""Public keys of an identity provider: found by discovery, cached, and read again periodically or for an unknown key.

While the provider is unreachable, the keys that were read last remain valid for `LASTS_SECONDS`.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from ipnext.access.key_sets import SigningKey, fitting_keys, only_key, usable_keys
from ipnext.errors import Unavailable
from ipnext.login.identity_provider import ProviderClient

FRESH_SECONDS: Final = 300.0
"""Age at which keys are read again in the background, in seconds; a withdrawn key proves nothing after that."""
LASTS_SECONDS: Final = 12 * 3600.0
"""Age at which keys become invalid if the provider has not answered since, in seconds."""
BETWEEN_READS_SECONDS: Final = 5.0
"""Least time between two reads, in seconds, whichever keys tokens name."""
MOST_WAITING: Final = 8
"""Threads that may wait for a read; further ones get Unavailable at once."""


class SigningKeys:
    """Keys by their id.

    Any thread may use it; one reads from the provider, a few wait for it, and none waits for a known key.
    """

    def __init__(self, provider: ProviderClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._provider, self._clock = provider, clock
        self._keys: Sequence[SigningKey] = ()
        self._read_at: float | None = None
        self._asked_at: float | None = None
        self._why = "it was not asked yet"
        self._reading = threading.Lock()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)

    def find(self, kid: str | None, algorithm: str) -> SigningKey:
        """Return the key that a token names, or the only one of its algorithm if it names none.

        Unauthenticated if there is none; Unavailable if the provider's keys can't be read now.
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
        found = fitting_keys(self._keys, kid, algorithm)
        if not found:
            self._read_now()
            found = fitting_keys(self._keys, kid, algorithm)
        return only_key(found)

    def close(self) -> None:
        """Close the connections to the provider, after the read that is under way."""
        with self._reading:
            self._provider.close()

    def _age(self) -> float | None:
        return None if self._read_at is None else self._clock() - self._read_at

    def _read_now(self) -> None:
        """Read the keys, unless they were read a moment ago. Unavailable while too many threads wait for that."""
        if not self._waiting.acquire(blocking=False):
            msg = "the identity provider's keys are being read; try again"
            raise Unavailable(msg)
        try:
            with self._reading:
                self._read()
        finally:
            self._waiting.release()

    def _read_aside(self) -> None:
        """Read the keys in the background, unless a read is under way or was a moment ago."""
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
            self._asked_at = self._clock()  # waiting threads do not read again
        self._keys, self._read_at = tuple(usable_keys(document.get("keys"))), self._clock()
