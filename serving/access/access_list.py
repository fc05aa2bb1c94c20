"""The access list, prepared for requests, and the follower of its file.

The region's agent writes the file next to the router's table. If a file cannot be read, the former list stays in force;
a router that never read one answers nobody. A list of revision 0 says that the region never got one. An agent that
cannot write the file sends the list itself, and withdraws one that is out of date for too long.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from pathlib import Path
from typing import Final

import structlog
from pydantic import ValidationError

from ipnext.access.actions import ACTIONS
from ipnext.access.keys import LONGEST, digest_of_secret, is_key, parse_key, proves
from ipnext.access.oidc import LONGEST_TOKEN, PersonIdentity, TokenVerifier
from ipnext.access.policy import Decision, Policies, Resource, permits_more
from ipnext.access.published_keys import PublishedKeys
from ipnext.errors import InvalidInput, Unauthenticated, Unavailable
from ipnext.model.access.predictions import (
    AccessList,
    AccessRevision,
    AccessSpec,
    AccessWithdrawal,
    CallerKey,
    CallerRole,
    ModelAccess,
    TokenIssuer,
)
from ipnext.model.access.rights import ANY, Grant, Principal, Role
from ipnext.model.wire import decode
from serving.access.rate_limits import Rate

REMEMBERED: Final = 4096
"""Verified tokens that are cached until they expire or another list is in use."""
_PREDICT: Final = ACTIONS["models.predict"]
_CLOSED: Final = AccessSpec(predictions="authenticated")


class Caller:
    """A caller proved by a credential, with the decisions cached for it.

    Compared by identity, so that look-ups are fast.
    """

    __slots__ = ("callable", "decisions", "ends", "limits", "owners", "principal")

    def __init__(self, principal: Principal, ends: float) -> None:
        self.principal = principal
        self.owners = callable_owners(principal)
        self.callable: frozenset[str] | None = None
        """The closed models that it may call, once they have been listed."""
        self.ends = ends
        """Unix time at which the credential expires; infinity if it does not."""
        self.decisions: dict[str, Decision] = {}
        """By model, like the limits below."""
        self.limits: dict[str, tuple[tuple[Hashable, Rate], ...]] = {}
        """Buckets that its requests draw from."""

    def knows(self, model: ModelAccess) -> bool:
        """Return whether the caller has a role over the model's owner, or over one that it is shared with."""
        owners, callers = self.owners, model.access.callers
        return bool(owners) and (
            ANY in owners or model.owner in owners or ANY in callers or not owners.isdisjoint(callers)
        )


class Callers:
    """One revision of the list: authenticates callers and decides on their access. Immutable except for its caches."""

    def __init__(self, access: AccessList, *, clock: Callable[[], float] = time.time) -> None:
        """`clock`: Unix time in seconds. InvalidInput if a policy is not valid Cedar."""
        self.revision = AccessRevision.of(access)
        self.withdrawn: frozenset[str] | None = None
        """Models that a later list names as open, if this one is out of date: it then proves no caller."""
        self.models: Mapping[str, ModelAccess] = {one.model: one for one in access.models}
        self._clock = clock
        self._keys = {key.id: key for key in access.keys}
        self._callers = {key.id: Caller(_principal(key), _end_of(key)) for key in access.keys}
        self._policies = Policies(access.policies)
        self._roles_decide = not permits_more(access.policies)
        self._tokens = None if access.tokens is None else _Tokens(access.tokens, access.roles, clock)

    def prove(self, credential: str) -> Caller:
        """Return the caller that a key or token proves.

        Unauthenticated, whose text repeats nothing of the credential; Unavailable.
        """
        if self.revision.revision == 0:
            msg = "this region has no list yet of who may ask; try again"
            raise Unavailable(msg)
        if self.withdrawn is not None:
            msg = "this region's list of who may ask is out of date; try again"
            raise Unavailable(msg)
        if is_key(credential):
            return self._of_key(credential)
        if self._tokens is None:
            msg = "the credential is no API key, and this platform takes no tokens of an identity provider"
            raise Unauthenticated(msg)
        return self._tokens.prove(credential)

    def still_proves(self, caller: Caller) -> bool:
        """Return whether the credential of a caller of this list has not expired."""
        return self._clock() < caller.ends

    def decide(self, caller: Caller, model: ModelAccess) -> Decision:
        """Decide whether a caller may call a model of this list.

        No policy is evaluated for a caller without a role there, unless the operator's may permit it: that takes some
        0.15 ms, by which callers could tell models of others from models that do not exist.
        """
        found = caller.decisions.get(model.model)
        if found is None:
            found = caller.decisions[model.model] = self._evaluate(caller, model)
        return found

    def decide_unknown(self, caller: Caller, name: str) -> None:
        """Do what `decide` does for a model of other owners, for a name that no closed model has."""
        self._evaluate(caller, ModelAccess.model_construct(model=name, owner="", access=_CLOSED))

    def list_callable(self, caller: Caller) -> frozenset[str]:
        """Return the models of this list that need a credential and that the caller may call.

        Roles alone decide, as the built-in policies do, unless the operator added policies.
        """
        if caller.callable is None:
            closed = (one for one in self.models.values() if not one.access.is_open)
            may_call = (lambda one: self.decide(caller, one).allowed) if self._policies.has_own else caller.knows
            caller.callable = frozenset(one.model for one in closed if may_call(one))
        return caller.callable

    def _evaluate(self, caller: Caller, model: ModelAccess) -> Decision:
        if self._roles_decide and not caller.knows(model):
            return Decision(allowed=False, policy=_PREDICT.policy)
        resource = Resource("Model", model.model, model.owner, model.access.callers)
        return self._policies.decide(caller.principal, _PREDICT, resource)

    def _of_key(self, text: str) -> Caller:
        if len(text) > LONGEST:
            msg = "the API key is too long"
            raise Unauthenticated(msg)
        given = parse_key(text)
        key = self._keys.get(given.id)
        if not proves(given.secret, _NO_DIGEST if key is None else key.digest) or key is None:
            msg = (
                "the API key is not known in this region: it never was, was revoked, "
                "or may ask no model that needs a credential here"
            )
            raise Unauthenticated(msg)
        caller = self._callers[key.id]
        if not self.still_proves(caller):
            msg = "the API key has expired; ask an administrator for another one"
            raise Unauthenticated(msg)
        return caller


_NO_DIGEST: Final = digest_of_secret("")
"""Compared with unknown keys, so that checking them takes as long as checking wrong ones."""


class _Tokens:
    """Callers proved by tokens of the identity provider."""

    def __init__(self, issuer: TokenIssuer, roles: Collection[CallerRole], clock: Callable[[], float]) -> None:
        self._verifier = TokenVerifier(
            issuer.issuer,
            issuer.audience,
            PublishedKeys(issuer.keys, valid_until=issuer.valid_until, clock=clock),
            name_claim=issuer.name_claim,
            groups_claim=issuer.groups_claim,
            clock=clock,
        )
        self._valid_until, self._clock = issuer.valid_until, clock
        self._roles: dict[str, list[Grant]] = {}
        for role in roles:
            self._roles.setdefault(role.subject, []).append(role.grant)
        self._known: OrderedDict[str, Caller] = OrderedDict()

    def prove(self, token: str) -> Caller:
        """Return the caller of a token; errors as `Callers.prove`."""
        if len(token) > LONGEST_TOKEN:
            msg = f"the token is longer than {LONGEST_TOKEN} characters"
            raise Unauthenticated(msg)
        mark = digest_of_secret(token)
        found = self._known.get(mark)
        if found is not None and self._clock() < found.ends:
            return found
        identity = self._verifier.verify(token)
        principal = Principal(kind="user", id=identity.id, name=identity.name, grants=self._grants(identity))
        caller = self._known[mark] = Caller(principal, min(identity.expires_at, self._valid_until))
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return caller

    def _grants(self, identity: PersonIdentity) -> tuple[Grant, ...]:
        found = {grant for subject in identity.subjects for grant in self._roles.get(subject, ())}
        return tuple(sorted(found, key=lambda grant: (grant.owner, grant.region, grant.role.rank)))


def _principal(key: CallerKey) -> Principal:
    return Principal(kind="key", id=key.id, name=key.name, grants=key.grants)


def _end_of(key: CallerKey) -> float:
    return math.inf if key.expires_at is None else key.expires_at.timestamp()


def callable_owners(principal: Principal) -> frozenset[str]:
    """Return the owners whose models the principal's roles let it call; `*`: all."""
    lowest = Role.CALLER.rank
    return frozenset(grant.owner for grant in principal.grants if grant.region == ANY and grant.role.rank >= lowest)


class AccessFollower:
    """Holds the list of the file's last valid content; None before the first, so that nobody is let in."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        """`path`: None if the router has no access list file; then tables alone tell which models are open."""
        self._path, self._clock = path, clock
        self._seen: tuple[int, int, int] | None = None
        self._least = 0
        """Lists of an older revision are withdrawn, and do not come back."""
        self.callers: Callers | None = Callers(AccessList(revision=0), clock=clock) if path is None else None

    def look(self) -> None:
        """Load the file if it has changed. If it is invalid, that is logged and the former list stays."""
        if self._path is None:
            return
        try:
            stat = self._path.stat()
        except OSError:
            return
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen != self._seen and self._take_over(self._path):
            self._seen = seen

    @property
    def in_force(self) -> AccessRevision:
        """The list that callers are proved by; revision 0: none."""
        callers = self.callers
        return AccessRevision.of(None) if callers is None or callers.withdrawn is not None else callers.revision

    def put(self, content: bytes | bytearray) -> None:
        """Put a list in force that the agent sends, unless a later one is.

        InvalidInput if it is none; its content is not repeated.
        """
        try:
            self._use(decode(AccessList, content))
        except ValidationError as error:
            msg = f"body: not an access list: {error.error_count()} faults"
            raise InvalidInput(msg, field="body") from None

    def withdraw(self, content: bytes | bytearray) -> None:
        """Let nobody in but to the open models that an AccessWithdrawal names, if the list is older or there is none.

        InvalidInput.
        """
        try:
            withdrawal = decode(AccessWithdrawal, content)
        except ValidationError as error:
            msg = f"body: not a withdrawal of an access list: {error.error_count()} faults"
            raise InvalidInput(msg, field="body") from None
        self._least = max(self._least, withdrawal.below)
        callers = self.callers or Callers(AccessList(revision=0), clock=self._clock)
        if callers.revision.revision >= withdrawal.below:
            return
        if callers.withdrawn is None:
            structlog.get_logger().error("access list withdrawn", revision=callers.revision.revision)
        callers.withdrawn = frozenset(withdrawal.open)
        self.callers = callers

    def _take_over(self, path: Path) -> bool:
        """Return whether the file was read, so that it need not be read again until it changes."""
        log = structlog.get_logger()
        try:
            self._use(decode(AccessList, path.read_bytes()))
        except (OSError, ValidationError, InvalidInput) as error:
            # pydantic repeats its input: a digest has no place in a log
            log.warning("the access list cannot be read, the former one stays", reason=type(error).__name__)
            return not isinstance(error, OSError)
        return True

    def _use(self, access: AccessList) -> None:
        former = self.callers
        if access.revision < max(self._least, 0 if former is None else former.revision.revision):
            return
        self.callers = Callers(access, clock=self._clock)
        structlog.get_logger().info("access list in use", revision=access.revision, models=len(access.models))
