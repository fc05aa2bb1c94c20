"""Admission of each request: open models for every caller, other models for callers that prove their access.

It fails closed. Before the first access list, models whose tables do not call them open are refused; after a list that
was lost or withdrawn, all models but those that a later list names as open.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Final

from ipnext.errors import Forbidden, IPnextError, NotFound, RateLimited, Unauthenticated, Unavailable
from ipnext.model.access.predictions import ModelAccess, RateLimit
from ipnext.model.access.rights import ANY, Principal
from ipnext.names import NO_CAPACITY_HEADER
from serving.access.access_list import Caller, Callers, callable_owners
from serving.access.key_uses import KeyUses
from serving.access.rate_limits import Rate, RateLimiter
from serving.http.messages import Request
from serving.metrics.refusals import Reason
from serving.routing.table import Routes

MOST_KNOWN: Final = 4096
"""Most cached admissions; one more empties the cache."""
_SCHEME: Final = "bearer"
_NEEDED: Final = (
    "a model of this name is not open to everybody, or not here: give an API key or a token, "
    "as `Authorization: Bearer ...`"
)


class Refusal(Exception):
    """A refused request. `error` is its answer, `reason` the label that it is counted under."""

    def __init__(self, error: IPnextError, reason: Reason) -> None:
        super().__init__(error.message)
        self.error, self.reason = error, reason


class AccessGuard:
    """Admits or refuses requests. `routes` and `callers` return the revisions currently in use."""

    def __init__(
        self,
        routes: Callable[[], Routes],
        callers: Callable[[], Callers | None],
        *,
        limiter: RateLimiter | None = None,
        uses: KeyUses | None = None,
    ) -> None:
        self.uses = KeyUses() if uses is None else uses
        """Uses of API keys, including requests that are refused after authentication."""
        self._routes, self._callers = routes, callers
        self._limiter = RateLimiter() if limiter is None else limiter
        self._basis: tuple[Routes, Callers | None, frozenset[str] | None] | None = None
        self._closed: frozenset[str] = frozenset()
        self._known: dict[tuple[str, bytes], Caller] = {}
        """Cached admissions by the table and list in force: model and mark of a credential -> the caller."""
        self._mark_key = os.urandom(16)

    @property
    def closed_models(self) -> frozenset[str]:
        """Models that need a credential; computed once per table and list."""
        routes, callers = self._routes(), self._callers()
        withdrawn = None if callers is None else callers.withdrawn
        basis = self._basis
        if basis is None or basis[0] is not routes or basis[1] is not callers or basis[2] is not withdrawn:
            self._closed = _find_closed(routes, callers)
            self._basis = (routes, callers, withdrawn)
            self._known.clear()
        return self._closed

    def admit(self, request: Request, model: str, *, predicts: bool = True, elsewhere: bool = False) -> None:
        """Return if the request is admitted. Refused.

        `predicts`: whether the request counts against the caller's limits; requests that only describe a model do not.
        `elsewhere`: whether it needs no route of this region; the one that answers it checks it, too, and counts it.
        """
        closed = self.closed_models
        if not closed or (model not in closed and self._routes().knows(model)):
            return
        try:
            if not (predicts and not elsewhere and self._admit_again(request, model)):
                self._admit(request, model, predicts=predicts and not elsewhere, elsewhere=elsewhere)
        except Unauthenticated as error:
            raise Refusal(error, "unauthenticated") from None
        except RateLimited as error:
            raise Refusal(error, "rate_limited") from None
        except Forbidden as error:
            raise Refusal(error, "forbidden") from None
        except NotFound as error:
            raise Refusal(error, "forbidden" if model in closed else "unknown_model") from None
        except Unavailable as error:
            raise Refusal(error, "no_access_list" if self._no_entry(model) else "unavailable") from None

    def is_still_admitted(self, request: Request, model: str) -> bool:
        """Return whether the caller of an admitted request may still ask its model.

        True if the list in force does not tell: if it was lost, is out of date, or has no such model any more.
        """
        callers = self._callers()
        access = None if callers is None else callers.models.get(model)
        if callers is None or access is None or access.access.is_open:
            return True
        try:
            return callers.decide(callers.prove(_credential(request)), access).allowed
        except Unauthenticated:
            return False
        except Unavailable:
            return True

    def admit_unread(self, request: Request) -> None:
        """Raise Refused if all known models need a credential and the request proves none.

        Then no body of it has to be read.
        """
        closed, routes = self.closed_models, self._routes()
        if not closed or not (routes.models.keys() | routes.choices.keys()) <= closed:
            return
        try:
            self._prove(self._list(), _credential(request))
        except Unauthenticated as error:
            raise Refusal(error, "unauthenticated") from None
        except Unavailable as error:
            raise Refusal(error, "no_access_list" if self._callers() is None else "unavailable") from None

    def visible(self, request: Request) -> Routes:
        """Return the routes without the models that the caller may not call. An invalid credential counts as none."""
        closed, routes = self.closed_models, self._routes()
        if not closed:
            return routes
        hidden = closed - self._find_visible(request, closed)
        return Routes(routes.revision, {name: one for name, one in routes.models.items() if name not in hidden})

    def _admit_again(self, request: Request, model: str) -> bool:
        """Return whether the admission of this credential to the model is cached. RateLimited.

        Between two requests most of the check's code and data leave the processor's caches, so that the whole check
        takes ten times as long as in a loop; a cached admission touches little of them.
        """
        if not self._known:
            return False
        caller = self._known.get((model, self._mark(request)))
        if caller is None or not self._list().still_proves(caller) or request.header(NO_CAPACITY_HEADER) is not None:
            return False
        if caller.principal.kind == "key":
            self.uses.note(caller.principal.id)
        self._take(caller, model, caller.limits[model])
        return True

    def _mark(self, request: Request) -> bytes:
        """Return a keyed digest of the request's credential: the cache holds no secret."""
        return hashlib.blake2b(_credential(request).encode(), digest_size=16, key=self._mark_key).digest()

    def _admit(self, request: Request, model: str, *, predicts: bool, elsewhere: bool) -> None:
        callers = self._list()
        credential = _credential(request)
        caller = self._prove(callers, credential)
        principal = caller.principal
        access = callers.models.get(model)
        if access is None or access.access.is_open:
            if self._routes().knows(model) and access is None:
                msg = f"this region does not know yet who may ask model {model[:80]!r}; try again"
                raise Unavailable(msg)
            callers.decide_unknown(caller, model)
            raise _unknown(model)
        decision = callers.decide(caller, access)
        if not decision.allowed:
            if not caller.knows(access):
                raise _unknown(model)
            msg = (
                f"{principal.text} may not ask model {model} for predictions (models.predict): "
                f"policy {decision.policy!r} decides"
            )
            raise Forbidden(msg, policy=decision.policy)
        if request.header(NO_CAPACITY_HEADER) is not None:
            msg = f"model {model} has no capacity in this region at the moment; try again"
            raise Unavailable(msg)
        if (
            not elsewhere and model not in self._routes().models
        ):  # all of it is served elsewhere, and the gateway knows no such generation
            msg = f"model {model} has no such generation in this region"
            raise NotFound(msg)
        if predicts:
            self._limit(caller, access)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[model, self._mark(request)] = caller

    def _list(self) -> Callers:
        """Return the access list. Unavailable if there is none."""
        callers = self._callers()
        if callers is None:
            msg = "this region has lost its list of who may ask; try again"
            raise Unavailable(msg)
        return callers

    def _prove(self, callers: Callers, credential: str) -> Caller:
        caller = callers.prove(credential)
        if caller.principal.kind == "key":
            self.uses.note(caller.principal.id)
        return caller

    def _limit(self, caller: Caller, access: ModelAccess) -> None:
        wanted = caller.limits.get(access.model)
        if wanted is None:
            wanted = caller.limits[access.model] = tuple(_buckets(caller.principal, access))
        self._take(caller, access.model, wanted)

    def _take(self, caller: Caller, model: str, wanted: Sequence[tuple[Hashable, Rate]]) -> None:
        """Count a request against the limits. RateLimited."""
        seconds = self._limiter.take(wanted) if wanted else 0.0
        if seconds > 0.0:
            msg = (
                f"{caller.principal.text} asks model {model} more often than spec.access.limits allow; "
                f"try again in {seconds:.1f} s"
            )
            raise RateLimited(msg, seconds=seconds)

    def _find_visible(self, request: Request, closed: frozenset[str]) -> frozenset[str]:
        """Return the closed models that the caller may call for predictions."""
        callers = self._callers()
        if callers is None:
            return frozenset()
        try:
            caller = self._prove(callers, _credential(request))
        except (Unauthenticated, Unavailable):
            return frozenset()
        return callers.list_callable(caller) & closed

    def _no_entry(self, model: str) -> bool:
        callers = self._callers()
        return callers is None or model not in callers.models


def caller_owner(principal: Principal, access: ModelAccess) -> str:
    """Return the owner that a principal calls for; `*` for a role over all owners.

    The model's owner if the principal has a role there, else an owner that the model is shared with.
    """
    owners = callable_owners(principal)
    if access.owner in owners:
        return access.owner
    shared = sorted(owners.intersection(access.access.callers) - {ANY})
    return shared[0] if shared else min(owners, default=ANY)


def _buckets(principal: Principal, access: ModelAccess) -> Iterator[tuple[Hashable, Rate]]:
    """Yield the buckets that a request of the principal draws from."""
    limits = access.access.limits
    if limits.per_key is not None:
        yield ("key", access.model, principal.kind, principal.id), _rate(limits.per_key)
    if limits.per_owner is not None:
        yield ("owner", access.model, caller_owner(principal, access)), _rate(limits.per_owner)


def _find_closed(routes: Routes, callers: Callers | None) -> frozenset[str]:
    if callers is None:
        return frozenset(routes.accesses)
    listed = callers.models
    if callers.withdrawn is not None:
        return frozenset(routes.accesses.keys() | listed.keys()) - callers.withdrawn
    by_list = {name for name, one in listed.items() if not one.access.is_open}
    return frozenset(by_list | {n for n, access in routes.accesses.items() if n not in listed and access != "open"})


def _credential(request: Request) -> str:
    """Return the credential of a request. Unauthenticated if there is none, or its scheme is not Bearer."""
    given = request.header("authorization")
    scheme, _, credential = (given or "").partition(" ")
    if given is None or scheme.lower() != _SCHEME or not credential.strip():
        raise Unauthenticated(_NEEDED)
    return credential.strip()


def _unknown(model: str) -> NotFound:
    """Return the same error for a model that does not exist and for one of other owners."""
    return NotFound(f"model {model[:80]!r} is not served here, or is not yours to ask")


def _rate(limit: RateLimit) -> Rate:
    return Rate(limit.requests_per_second, limit.capacity)
