"""Failures that a test switches on: refusals, requests without an answer, watches that fall silent."""

import asyncio
from dataclasses import dataclass, field

from tests.kubernetes.server import errors
from tests.kubernetes.server.access import Act
from tests.kubernetes.server.errors import ApiFailure


@dataclass
class Refusal:
    """Requests that are refused: of a status, and of which verbs and resources (plural); none named: of all."""

    code: int
    verbs: frozenset[str] = frozenset()
    plurals: frozenset[str] = frozenset()
    left: int | None = None
    """So many requests; None: until it is lifted."""
    met: int = 0
    """So many requests were refused."""

    def meets(self, act: Act) -> bool:
        """Return whether it refuses a request, which it counts."""
        is_meant = (not self.verbs or act.verb in self.verbs) and (not self.plurals or act.plural in self.plurals)
        if not is_meant or self.left == 0:
            return False
        self.left = None if self.left is None else self.left - 1
        self.met += 1
        return True

    def failure(self) -> ApiFailure:
        """Return what the client gets."""
        known = {
            401: errors.unauthorized(),
            403: errors.forbidden("refused by a test"),
            410: errors.expired(),
            429: errors.too_many_requests("too many requests, try again later"),
        }
        return known.get(self.code) or ApiFailure(self.code, "InternalError", "failed by a test")


@dataclass
class Failures:
    """Which failures are switched on; all of them off at first."""

    refusals: list[Refusal] = field(default_factory=list)
    hangs: list[Refusal] = field(default_factory=list)
    """Requests that get no answer until they are lifted; `code` does not count."""
    is_silent: bool = False
    """Watches keep their connections and send nothing more, neither events nor bookmarks."""
    _lifted: asyncio.Event = field(default_factory=asyncio.Event)

    async def meet(self, act: Act) -> None:
        """Let a request fail as switched on. ApiFailure if it is refused."""
        while any(each.meets(act) for each in self.hangs):
            await self._lifted.wait()
        for each in self.refusals:
            if each.meets(act):
                raise each.failure()

    def lift(self) -> None:
        """Switch all failures off."""
        self.refusals.clear()
        self.hangs.clear()
        self.is_silent = False
        self._lifted.set()
        self._lifted = asyncio.Event()
