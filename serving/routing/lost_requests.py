"""Requests whose host or engine ended while it processed them, for a minute: a query of death is refused.

They are recognised by what the host or engine got, not by their bytes (`serving.routing.request_identity`).

Why: docs/decisions/0042. Used by a router, from its event loop.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from ipnext.errors import HostLost, QueryOfDeath

REMEMBERED_SECONDS: Final = 60.0
_KEPT: Final = 1024
"""Requests that are remembered; beyond that the oldest is forgotten."""
_PIECE_BYTES: Final = 2**19
"""Of a piece longer than twice this, only its length, its beginning and its end are hashed."""

Identity = Iterable[bytes | bytearray | memoryview]
"""Pieces that are equal for requests that are the same."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A lost request.

    If `url` is set, the same request may be sent again, as another client's innocent request; else not.
    """

    until: float
    part: str | None = None
    url: str | None = None
    deadly: bool = False
    """Whether the request ended its host twice."""


class LostRequests:
    """The requests that were lost within the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.known: dict[bytes, Loss] = {}
        """Losses by the key of their request."""

    def of(self, model: str, identity: Callable[[], Identity]) -> "Record":
        """Return the record of one request."""
        return Record(self, model, identity)

    def find(self, key: bytes) -> Loss | None:
        """Return a loss that is less than a minute old."""
        loss = self.known.get(key)
        if loss is not None and loss.until <= self._clock():
            del self.known[key]
            return None
        return loss

    def note(self, key: bytes, part: str | None = None, url: str | None = None, *, deadly: bool = False) -> None:
        """Remember a loss for a minute from now."""
        self.known.pop(key, None)
        self.known[key] = Loss(self._clock() + REMEMBERED_SECONDS, part, url, deadly)
        if len(self.known) > _KEPT:
            del self.known[next(iter(self.known))]

    def forget(self, key: bytes) -> None:
        """Forget a request that was answered."""
        self.known.pop(key, None)


class Record:
    """One request and its loss, if any. Its identity is made only if there is a loss to look up or to record."""

    __slots__ = ("_identity", "_key", "_losses", "_model")

    def __init__(self, losses: LostRequests, model: str, identity: Callable[[], Identity]) -> None:
        self._losses = losses
        self._model = model
        self._identity = identity
        self._key: bytes | None = None

    @property
    def key(self) -> bytes:
        """Key of the request: a hash of its model and its identity."""
        if self._key is None:
            self._key = self._hashed(self._identity())
        return self._key

    def identify(self, identity: Callable[[], Identity]) -> None:
        """Make the key from data that is at hand now, if there is a loss to look up."""
        if self._losses.known:
            self._key = self._hashed(identity())

    def _hashed(self, identity: Identity) -> bytes:
        found = blake2b(self._model.encode(), digest_size=16)
        for piece in identity:
            view = memoryview(piece)
            found.update(f"\0{len(view)}\0".encode())
            found.update(view[:_PIECE_BYTES])
            found.update(view[max(_PIECE_BYTES, len(view) - _PIECE_BYTES) :])
        return found.digest()

    def check(self) -> Loss | None:
        """Return the request's earlier loss if it may be sent again; the host that then gets it must not end, too.

        Raises:
            QueryOfDeath: it ended its host twice, less than a minute ago.
            HostLost: it was lost, and no host may answer it.
        """
        loss = self._losses.find(self.key) if self._losses.known else None
        if loss is None:
            return None
        again = f"the same request was lost less than {REMEMBERED_SECONDS:.0f} s ago"
        if loss.deadly:
            msg = f"{again}: it ended its host twice; it is sent to none"
            raise QueryOfDeath(msg)
        if loss.url is None:
            msg = f"{again}, as what it was sent to ended; it is sent to no other until then"
            raise HostLost(msg)
        return loss

    def lost(self, part: str | None = None, url: str | None = None, *, deadly: bool = False) -> None:
        """Remember that the request was lost."""
        self._losses.note(self.key, part, url, deadly=deadly)

    def note_answer(self) -> None:
        """Forget that the request was lost."""
        if self._losses.known:
            self._losses.forget(self.key)
