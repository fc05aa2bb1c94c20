"""Public keys of an identity provider as another component has read them. Makes no requests."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ipnext.access.key_sets import SigningKey, fitting_keys, only_key, usable_keys
from ipnext.errors import Unavailable


class PublishedKeys:
    """Keys that prove tokens until `valid_until` (Unix time in seconds)."""

    def __init__(
        self, documents: Iterable[Mapping[str, Any]], *, valid_until: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = tuple(usable_keys([dict(document) for document in documents]))
        self._valid_until, self._clock = valid_until, clock

    def find(self, kid: str | None, algorithm: str) -> SigningKey:
        """Return the key that a token names, or the only one of its algorithm.

        Unauthenticated; Unavailable if the keys are too old.
        """
        if self._clock() >= self._valid_until:
            msg = "the identity provider's keys were not read for too long, so no token can be verified here; try again"
            raise Unavailable(msg)
        return only_key(fitting_keys(self._keys, kid, algorithm))
