"""Principals of credentials, proved by the store's keys, and what they may do, decided by the policies.

`authentication` calls it for every request, `endpoint_permission` for every endpoint.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import anyio
import structlog

from ipnext.access.acting import ACTING, RequestAuthority
from ipnext.access.actions import ACTIONS, Action
from ipnext.access.keys import LONGEST, is_key, parse_key, proves
from ipnext.access.policy import Policies, Resource
from ipnext.api.authorization.entry_budget import EntryBudget
from ipnext.errors import Forbidden, NotFound, Unauthenticated, Unavailable
from ipnext.model.access.rights import ANY, KEPT_SECONDS, Principal, Role
from ipnext.store.repository import Repository
from ipnext.store.store import Store

KEPT: Final = 4096
NOTED_SECONDS: Final = 5.0
USED_EVERY: Final = timedelta(minutes=1)

Tokens = Callable[[str], Principal]
"""Proves the principal of a token of the identity provider. Raises Unauthenticated."""


def no_tokens(_: str) -> Principal:
    """Refuse every token: no identity provider is configured."""
    msg = "the credential is no API key, and no identity provider is configured (IPNEXT_OIDC_ISSUER)"
    raise Unauthenticated(msg)


class Permission(NamedTuple):
    """The policy that permits, and the model of the request with its owner, if it exists."""

    policy: str
    model: str = ""
    owner: str = ""


class Access:
    """Proves principals by the store's keys and decides by the policies. Any thread may use it."""

    def __init__(  # noqa: PLR0913 - the collaborators made by the application
        self,
        store: Store,
        policies: Policies,
        *,
        required: bool = True,
        tokens: Tokens = no_tokens,
        prove_user: Callable[[Principal, Repository], Principal] = lambda principal, _: principal,
        entries: EntryBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """With `required=False` no credential is required, and every caller may do everything.

        `prove_user` returns a user that `tokens` proved before with its present roles. It raises Unauthenticated and
        Forbidden.
        """
        self._store, self._policies, self._tokens, self._clock = store, policies, tokens, clock
        self._prove_user = prove_user
        self._entries = entries
        self._used: dict[str, datetime] = {}
        self._kept: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self.required = required

    # authentication

    def recall(self, credential: str, kinds: tuple[str, ...]) -> Principal | None:
        """Return the principal of a credential that was proved a moment ago. Never blocks."""
        found = self._kept.get(_mark(credential, kinds))
        return found[0] if found is not None and self._clock() < found[1] else None

    def prove(self, credential: str, *, kinds: tuple[str, ...] = ("key",)) -> Principal:
        """Return the principal of a credential.

        Unauthenticated; the text is the same for a wrong secret and an unknown id.
        """
        if len(credential) > (LONGEST if is_key(credential) else 16_384):
            msg = "the credential is too long"
            raise Unauthenticated(msg)
        principal = self._of_key(credential, kinds) if is_key(credential) else self._tokens(credential)
        self._kept[_mark(credential, kinds)] = (principal, self._clock() + KEPT_SECONDS)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return principal

    def _of_key(self, text: str, kinds: tuple[str, ...]) -> Principal:
        given, now = parse_key(text), datetime.now(UTC)
        with self._store.read() as unit:
            key = unit.find_key(given.id)
            parent = "" if key is None or key.kind == "key" else unit.parent_of_key(given.id) or ""
        if key is None or not proves(given.secret, key.digest) or key.kind not in kinds:
            msg = "the API key is not known"
            raise Unauthenticated(msg)
        if not key.is_valid(now):
            raise _ended(Principal(kind=key.kind, id=key.id, name=key.name), is_revoked=key.revoked_at is not None)
        if key.last_used_at is None or now - key.last_used_at > USED_EVERY:
            self._used[key.id] = now
        return Principal(kind=key.kind, id=key.id, name=key.name, grants=key.grants, acts_for=parent)

    def is_still_valid(self, principal: Principal) -> bool:
        """Return whether a principal that was proved before would be proved now, with the same roles.

        Reads the store.
        """
        try:
            with self._store.read() as unit:
                return self._prove_in(unit, principal) == principal
        except (Unauthenticated, Forbidden):
            return False

    def prove_now(self, who: RequestAuthority) -> RequestAuthority:
        """Return `who` as `prove_in`, in a unit of its own: for requests that take or wait for long."""
        with self._store.read() as unit:
            return who.prove(unit)

    def prove_in(self, who: RequestAuthority, unit: Repository) -> RequestAuthority:
        """Return `who` with its present grants, policy and owner, as a unit of work has them.

        Raises Unauthenticated, Forbidden or NotFound, as at the start of the request.
        """
        principal = self._prove_in(unit, who.principal)
        found: dict[str, Any] = {"principal": principal}
        for check in who.trail.checks:
            found.update(check(principal, unit))
        return dataclasses.replace(who, **found)

    def count_entry(self, who: RequestAuthority, size_bytes: int) -> None:
        """Count an audit entry of a principal. RateLimited if it has caused too many."""
        if self._entries is not None and who.principal.kind != "local":
            self._entries.take(who.principal, size_bytes)

    def _prove_in(self, unit: Repository, principal: Principal) -> Principal:
        """Return a principal that was proved before with its present grants: those of keys never change."""
        if principal.kind == "user":
            return self._prove_user(principal, unit)
        if principal.kind == "local":
            return principal
        ends, now = unit.key_ends(principal.id, principal.acts_for), datetime.now(UTC)
        is_gone = len(ends) < (2 if principal.acts_for else 1)
        if is_gone or any(end.is_past(now) for end in ends):
            raise _ended(principal, is_revoked=is_gone or any(end.revoked_at is not None for end in ends))
        return principal

    def forget(self) -> None:
        """Clear the cache, so that every credential is looked up again: keys have changed."""
        self._kept.clear()

    def forget_credential(self, credential: str, kinds: tuple[str, ...]) -> None:
        """Clear the cache of one credential, which was revoked."""
        self._kept.pop(_mark(credential, kinds), None)

    def note_uses(self) -> None:
        """Store the times of the keys' last uses, outside of requests, so that none waits for a writer.

        Raises Unavailable.
        """
        used, self._used = self._used, {}
        if used:
            with self._store.begin_free(()) as unit:
                for key_id, at in used.items():
                    unit.touch_key(key_id, at)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Store uses in the background while the context is open."""
        task = asyncio.create_task(self._note(), name="key-uses")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _note(self) -> None:
        while True:
            await asyncio.sleep(NOTED_SECONDS)
            try:
                await anyio.to_thread.run_sync(self.note_uses)
            except Unavailable as error:
                structlog.get_logger().warning("key_uses_not_noted", error=error.message)

    # authorization

    def check(self, principal: Principal, action: str, resource: Resource) -> str:
        """Return the policy that permits. Forbidden names the one that does not."""
        if not self.required:
            return "authentication-is-off"
        return self._policies.check(principal, ACTIONS[action], resource).policy

    def check_list(self, principal: Principal, action: Action) -> str:
        """Permit a list of models: it omits those that the principal may not see.

        Forbidden if operator policies forbid it.
        """
        if not self.required:
            return action.policy
        if not reads_anything(principal):
            return self._policies.check(principal, action, Resource("Model")).policy
        if not self._policies.has_own:
            return action.policy
        owners = granted_owners(principal) or {""}
        decisions = [
            self._policies.decide(principal, action, Resource(action.kind, owner=owner)) for owner in sorted(owners)
        ]
        allowed = next((decision for decision in decisions if decision.allowed), None)
        if allowed is None and granted_owners(principal):
            self._policies.check(principal, action, Resource(action.kind, owner=min(owners)))
        return action.policy if allowed is None else allowed.policy

    def visible(self, principal: Principal) -> frozenset[str] | None:
        """Return the owners whose models the principal may read; None: all.

        Reads the store if the operator has added policies.
        """
        if self.sees_all(principal):
            return None
        if not self._policies.has_own:
            return granted_owners(principal)
        with self._store.read() as unit:
            owners = unit.owners()
        found = self._policies.visible_owners(principal, owners)
        return None if ANY in granted_owners(principal) and len(found) == len(owners) else found

    @property
    def has_own_policies(self) -> bool:
        """Whether the operator added policies, so that grants alone do not determine visibility."""
        return self._policies.has_own

    def can_see(self, principal: Principal, owner: str) -> bool:
        """Return whether the principal may read an owner's models."""
        return self.sees_all(principal) or owner in self._policies.visible_owners(principal, (owner,))

    def is_seen(self, principal: Principal, owner: str | None) -> bool:
        """Return whether the principal sees a model of this owner; None: there is no such model."""
        return owner is not None and self.can_see(principal, owner)

    def check_new(self, principal: Principal, action: Action) -> str:
        """Permit an action on a model unknown to the principal if they may do it to models of some owner.

        The endpoint checks the owner in the manifest, and then whether the name is taken. Raises Forbidden.
        """
        if not self.required:
            return "authentication-is-off"
        owners = granted_owners(principal) or {""}
        decisions = [
            self._policies.decide(principal, action, Resource("Model", owner=owner)) for owner in sorted(owners)
        ]
        allowed = next((decision for decision in decisions if decision.allowed), None)
        if allowed is None:
            return self._policies.check(principal, action, Resource("Model", owner=min(owners))).policy
        return allowed.policy

    def check_model(self, principal: Principal, action: Action, unit: Repository, name: str) -> Permission:
        """Permit an action on a model. A model of other owners is answered like a missing one."""
        owner = unit.owner_of(name)
        if not self.required:
            return Permission("authentication-is-off", name, owner or "")
        if owner is None and self.sees_all(principal):
            return Permission(action.policy)  # the endpoint's error names the missing model, and the known ones
        if owner is None or not self.is_seen(principal, owner):
            msg = f"model {name!r} is not known; `ipnext get models` lists those that {principal.text} may see"
            raise NotFound(msg)
        policy = self._policies.check(principal, action, Resource("Model", name, owner)).policy
        return Permission(policy, name, owner)

    def check_own(self, principal: Principal, action: Action, owner: str) -> Permission:
        """Permit an action on the object of an owner.

        If its models are hidden, the answer is that of a missing owner.
        """
        if not self.required:
            return Permission("authentication-is-off", owner=owner)
        if action.role is Role.VIEWER and not self.can_see(principal, owner):
            msg = f"owner {owner!r} is not known; `ipnext get owners` lists those that you may see"
            raise NotFound(msg)
        return Permission(self._policies.check(principal, action, Resource("Owner", owner, owner)).policy, owner=owner)

    def require_owner(self, principal: Principal, action: str, name: str, owner: str) -> None:
        """Check as `check_owner`, again in each unit of work of the request. Raises Forbidden."""
        _require(lambda who, _: self.check_owner(who, action, name, owner), principal)

    def require_model(self, principal: Principal, action: str, unit: Repository, name: str) -> None:
        """Check as `check_model`, again in each unit of work of the request. Raises NotFound or Forbidden."""
        _require(lambda who, unit: self.check_model(who, ACTIONS[action], unit, name), principal, unit)

    def check_owner(self, principal: Principal, action: str, name: str, owner: str) -> None:
        """Check an action on a model of an owner, such as the one in a manifest. Raises Forbidden."""
        if self.required:
            self._policies.check(principal, ACTIONS[action], Resource("Model", name, owner))

    def publishable(self, principal: Principal) -> Callable[[str, str], bool]:
        """Return the question whether the principal may publish a model, by its name and owner."""

        def may_publish(name: str, owner: str) -> bool:
            try:
                self.check_owner(principal, "models.publish", name, owner)
            except Forbidden:
                return False
            return True

        return may_publish

    def sees_all(self, principal: Principal) -> bool:
        """Return whether no model is hidden from the principal, whatever owners there are."""
        if not self.required:
            return True
        return ANY in granted_owners(principal) and not self._policies.has_own


def _require(check: Callable[[Principal, Any], object], principal: Principal, unit: Repository | None = None) -> None:
    """Call a check now, and in each unit of work of the request that acts."""

    def check_again(who: Principal, unit: Any) -> Mapping[str, str]:
        check(who, unit)
        return {}

    check_again(principal, unit)
    acting = ACTING.get()
    if acting is not None:
        acting.trail.checks.append(check_again)


def _ended(principal: Principal, *, is_revoked: bool) -> Unauthenticated:
    why = "was revoked" if is_revoked else "has expired"
    msg = f"{principal.text} {why}; ask an administrator for another one"
    if principal.kind == "ticket":
        msg = "this login link was used already, or has expired; `ipnext page` prints another one"
    return Unauthenticated(msg, ended=Principal(kind=principal.kind, id=principal.id, name=principal.name))


def granted_owners(principal: Principal) -> frozenset[str]:
    """Return the owners in a principal's grants: by the built-in policies it may read their models."""
    viewer = Role.VIEWER.rank
    return frozenset(grant.owner for grant in principal.grants if grant.region == ANY and grant.role.rank >= viewer)


def reads_anything(principal: Principal) -> bool:
    """Return whether a principal has more than role caller over anything.

    Callers request predictions and read nothing here.
    """
    return any(grant.role.rank >= Role.VIEWER.rank for grant in principal.grants)


def _mark(credential: str, kinds: tuple[str, ...]) -> str:
    """Return the cache key of a credential, which is not its text."""
    return hashlib.sha256(f"{kinds}{credential}".encode(errors="replace")).hexdigest()
