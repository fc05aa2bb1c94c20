"""Authentication of every request, authorization of every endpoint.

`Authentication` is middleware: it answers 401 to a request without a valid credential before its body is read. Each
endpoint names its action by `may(...)`, which answers 403, or 404 if the principal may not see the model. Its route
(`ipnext.api.requests.guarded_route`) checks that before it reads the body, too.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import unquote

import anyio
import structlog
from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ipnext.access.acting import ACTING, RequestAuthority, Trail
from ipnext.access.acting import acting as acting_as
from ipnext.access.actions import ACTIONS, Action
from ipnext.access.keys import LONGEST, is_key, parse_key, proves
from ipnext.access.policy import Policies, Resource
from ipnext.api.authorization.audit_entries import Recorder, operation_of
from ipnext.api.authorization.entry_budget import EntryBudget
from ipnext.api.errors import answer, error_body, headers_of
from ipnext.api.requests.guarded_route import SAFE_METHODS
from ipnext.api.requests.slots import holder_of
from ipnext.api.requests.stream import StreamListener
from ipnext.errors import Forbidden, IPnextError, NotFound, Unauthenticated, Unavailable
from ipnext.model.access.rights import ANY, Principal, Role
from ipnext.store.repository import Repository
from ipnext.store.store import Store

KEPT_SECONDS: Final = 2.0
"""Time for which a proved credential is not looked up again; a revocation is in force after it."""

KEPT: Final = 4096
NOTED_SECONDS: Final = 5.0
USED_EVERY: Final = timedelta(minutes=1)
PUBLIC: Final = frozenset(
    {
        *("/", "/docs", "/openapi.json", "/healthz", "/readyz"),
        *("/v1/sessions", "/v1/tickets/current", "/v1/login", "/v1/proof"),
    }
)
"""Paths that need no credential: the page's shell, the schema, probes, the login and the look at a ticket, which bring
their own, the options of logins, and the proof that a client requests before it sends its key."""
PUBLIC_FOLDER: Final = "/web/"
LOCAL: Final = Principal(kind="local", id="local", name="anybody", grants=())
"""Every caller, if authentication is off."""

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


@dataclasses.dataclass(frozen=True, slots=True)
class _Listening:
    """A principal that follows the stream of events."""

    access: Access
    principal: Principal

    @property
    def holder(self) -> str | None:
        """Its principal, if there is one."""
        return holder_of(self.principal)

    def sees(self, owner: str | None) -> bool:
        """Return whether it may read an owner's models.

        Events of the fleet may name any model: only principals that see all may read them.
        """
        if owner:
            return self.access.can_see(self.principal, owner)
        return owner is None or self.access.sees_all(self.principal)

    async def visible(self) -> frozenset[str] | None:
        """Return the owners whose models it sees; None: all."""
        return await _visible_owners(self.access, self.principal)

    def may_listen(self) -> bool:
        """Return whether its credential is still valid. True while the store does not answer."""
        try:
            return not self.access.required or self.access.is_still_valid(self.principal)
        except Unavailable:
            return True


def listener_of(access: Access, principal: Principal) -> StreamListener:
    """Return a principal as a listener of the stream."""
    return _Listening(access, principal)


class Authentication:
    """ASGI middleware: authenticates the caller, or answers 401 before any of the body is read."""

    def __init__(self, app: ASGIApp, access: Access, recorder: Recorder) -> None:
        self._app = app
        self._access = access
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on with its principal in `scope["state"]`."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client, trail = scope.get("client"), Trail(lambda: operation_of(scope))
        acting = RequestAuthority(LOCAL, client[0] if client else "", trail=trail)
        try:
            headers = _headers(scope)
            acting = dataclasses.replace(acting, said=read_claimed_user(headers))
            acting = dataclasses.replace(acting, principal=await self._principal(scope, headers))
            acting = dataclasses.replace(acting, authority=self._access if self._access.required else None)
        except IPnextError as error:
            await self._recorder.refused_credential(acting, error)
            await answer(error_body(error), error.http_status, headers_of(error))(scope, receive, send)
            return
        scope.setdefault("state", {})["acting"] = acting
        with acting_as(acting):
            await self._app(scope, receive, self._recorder.recording(scope, send))

    async def _principal(self, scope: Scope, headers: Mapping[str, str]) -> Principal:
        if not self._access.required or is_public(scope["path"]):
            return LOCAL
        credential, kinds = _bearer(headers), ("key",)
        if credential is None:
            credential, kinds = _cookie(scope, headers), ("session",)
            if credential is not None:
                check_own_page(scope["method"], headers)
        if credential is None:
            msg = (
                "this needs a credential: `Authorization: Bearer KEY`; the CLI and SDK take IPNEXT_API_KEY or what "
                "`ipnext login` and `ipnext dev` wrote down"
            )
            raise Unauthenticated(msg)
        found = self._access.recall(credential, kinds)
        if found is not None:
            return found
        return await anyio.to_thread.run_sync(lambda: self._access.prove(credential, kinds=kinds))


def granted_owners(principal: Principal) -> frozenset[str]:
    """Return the owners in a principal's grants: by the built-in policies it may read their models."""
    viewer = Role.VIEWER.rank
    return frozenset(grant.owner for grant in principal.grants if grant.region == ANY and grant.role.rank >= viewer)


def reads_anything(principal: Principal) -> bool:
    """Return whether a principal has more than role caller over anything.

    Callers request predictions and read nothing here.
    """
    return any(grant.role.rank >= Role.VIEWER.rank for grant in principal.grants)


def is_public(path: str) -> bool:
    """Return whether a path needs no credential."""
    return path in PUBLIC or path.startswith(PUBLIC_FOLDER)


def acting_of(request: Request) -> RequestAuthority:
    """Return the acting principal of this request."""
    acting: RequestAuthority = request.state.acting
    return acting


def principal_of(request: Request) -> Principal:
    """Return the principal of a request."""
    return acting_of(request).principal


Asker = Annotated[Principal, Depends(principal_of)]


async def visible_of(request: Request) -> frozenset[str] | None:
    """Return the owners whose models the request's principal may see; None: all."""
    return await _visible_owners(request.app.state.platform.access, principal_of(request))


async def _visible_owners(access: Access, principal: Principal) -> frozenset[str] | None:
    if not access.has_own_policies or access.sees_all(principal):
        return access.visible(principal)
    return await anyio.to_thread.run_sync(access.visible, principal)


Visible = Annotated[frozenset[str] | None, Depends(visible_of)]


def act(request: Request, **known: Any) -> RequestAuthority:
    """Add fields of `RequestAuthority` to the request's, for the audit."""
    acting: RequestAuthority = dataclasses.replace(acting_of(request), **known)
    request.state.acting = acting
    ACTING.set(acting)
    return acting


def read_claimed_user(headers: Mapping[str, str]) -> str:
    """Return the user that the caller claims to act for; not authenticated."""
    said = unquote(headers.get("x-ipnext-user", "")[:400])
    return "".join(letter for letter in said if letter.isprintable()).strip()[:100]


def _target(action: Action, path: Mapping[str, str]) -> tuple[str, str]:
    """Return kind and name of a request's object from its path. Endpoints may be more precise."""
    if "change_id" in path:
        return "Change", path["change_id"]
    named = {"Model": "name", "Owner": "owner"}.get(action.kind, "region")
    return action.kind, path.get(named, "")


def may(name: str, *, only_reads: bool = False) -> Any:
    """Make the dependency of an endpoint that checks an action, on the model, change or region of the path.

    `only_reads`: a POST that changes nothing, so that the audit has no entry of it.
    """
    action = ACTIONS[name]

    async def check(request: Request) -> None:
        if getattr(request.state, "permitted", None) is check:  # its route checked before it read the body
            return
        access: Access = request.app.state.platform.access
        path = request.path_params
        kind, about = _target(action, path)
        acting = act(request, action=action.name, kind=kind, name=about, model=path.get("name", "") if of_model else "")
        acting.trail.only_reads = only_reads
        if of_model and ("name" in path or "change_id" in path):
            found = await anyio.to_thread.run_sync(_check_model, request, access, action)
            acting.trail.checks.append(lambda who, unit: _model_permission(access, who, action, path, unit)._asdict())
        else:
            found = _shared_permission(access, acting.principal, action, path)
            acting.trail.checks.append(lambda who, _: _shared_permission(access, who, action, path)._asdict())
        act(request, **found._asdict())
        request.state.permitted = check

    of_model = action.kind == "Model"

    check.__name__ = f"may_{name.replace('.', '_')}"
    check.action = action  # type: ignore[attr-defined]
    return Depends(check)


def may_read_plan() -> Any:
    """Make the dependency that checks reading the plan of the path.

    The plan of one model is read like the model, that of the fleet like the fleet.
    """
    return Depends(_check_plan)


def _check_plan(request: Request) -> None:
    access: Access = request.app.state.platform.access
    principal, plan_id = principal_of(request), request.path_params["plan_id"]
    if access.sees_all(principal):
        return
    with request.app.state.platform.store.read() as unit:
        known, model = unit.scope_of_plan(plan_id)
        owner = unit.owner_of(model or "")
    if known and model is None:
        access.check(principal, "plans.read", Resource("Plan", plan_id))
    elif not access.is_seen(principal, owner):
        msg = f"no plan has the id {plan_id!r}"
        raise NotFound(msg)


_check_plan.action = ACTIONS["plans.read"]  # type: ignore[attr-defined]


def _check_model(request: Request, access: Access, action: Action) -> Permission:
    path, principal = request.path_params, principal_of(request)
    with request.app.state.platform.store.read() as unit:
        name = path.get("name", "")
        if action.name == "models.apply" and not access.is_seen(principal, unit.owner_of(name)):
            return Permission(access.check_new(principal, action), name)  # the unit that writes says whose it is
        return _model_permission(access, principal, action, path, unit)


def _model_permission(
    access: Access, principal: Principal, action: Action, path: Mapping[str, str], unit: Repository
) -> Permission:
    """Permit an action on the model, or the change, of a path, as it is in a unit of work.

    Raises NotFound or Forbidden.
    """
    name = path.get("name") or _model_of_change(access, principal, unit, path["change_id"])
    if name is None:
        return Permission(action.policy)  # the endpoint answers that there is no such change
    if action.name == "models.apply" and unit.owner_of(name) is None:
        return Permission(access.check_new(principal, action), name)
    return access.check_model(principal, action, unit, name)


def _shared_permission(access: Access, principal: Principal, action: Action, path: Mapping[str, str]) -> Permission:
    """Permit an action on an owner or region of a path, on a list, or on an object that all owners share."""
    if action.kind == "Owner" and "owner" in path:
        return access.check_own(principal, action, path["owner"])
    if action.kind in {"Model", "Owner"}:
        return Permission(access.check_list(principal, action))
    return Permission(access.check(principal, action.name, Resource(action.kind, path.get("region", ""))))


def _model_of_change(access: Access, principal: Principal, unit: Repository, change_id: str) -> str | None:
    """Return the model of a change. NotFound if it is missing, and in the same words if it is of another owner's model.

    Both need the same queries of the store, so that timing does not distinguish them either. None if it is missing and
    nothing is hidden from the principal.
    """
    change = unit.find_change(change_id)
    if change is None and access.sees_all(principal):
        return None
    owner = unit.owner_of("" if change is None else change.model)
    if change is None or not access.is_seen(principal, owner):
        msg = f"no change has the id {change_id!r}"
        raise NotFound(msg)
    return change.model


def bearer_of(request: Request) -> str | None:
    """Return the credential of a request's `Authorization`; None without one.

    Unauthenticated if the scheme is not Bearer.
    """
    return _bearer(_headers(request.scope))


def _headers(scope: Scope) -> Mapping[str, str]:
    """Return headers by name. Unauthenticated if there are two credentials: it would be ambiguous which one counts."""
    if sum(name.lower() == b"authorization" for name, _ in scope["headers"]) > 1:
        msg = "Authorization: a request has at most one"
        raise Unauthenticated(msg)
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _bearer(headers: Mapping[str, str]) -> str | None:
    """Return the credential of `Authorization`. Unauthenticated if the scheme is not Bearer."""
    given = headers.get("authorization")
    if given is None:
        return None
    scheme, _, credential = given.partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        msg = "Authorization: the scheme is Bearer, followed by an API key or a token"
        raise Unauthenticated(msg)
    return credential.strip()


def cookie_name(scope: Scope) -> str:
    """Return the name of the session's cookie.

    It contains the port, because browsers send a host's cookies to each of its ports.
    """
    server = scope.get("server")
    return f"ipnext_session_{server[1] if server else 0}"


def session_of(scope: Scope) -> str | None:
    """Return the session's cookie of a request."""
    return _cookie(scope, _headers(scope))


def _cookie(scope: Scope, headers: Mapping[str, str]) -> str | None:
    """Return the session's cookie. Cookies of other programs on this host are ignored."""
    wanted = cookie_name(scope)
    for pair in headers.get("cookie", "").split(";"):
        name, _, value = pair.partition("=")
        if name.strip() == wanted:
            return value.strip()
    return None


def check_own_page(method: str, headers: Mapping[str, str]) -> None:
    """Refuse a cookie that the API's own page does not send.

    Browsers also send it for pages on other ports of this host. The `Origin` was checked before. `none`: the user typed
    the address. Raises Unauthenticated.
    """
    site = headers.get("sec-fetch-site")
    if site not in {None, "same-origin", "none"}:
        msg = f"a page of another origin asks (Sec-Fetch-Site: {site}); a session is for the page of the API"
        raise Unauthenticated(msg)
    if method not in SAFE_METHODS and "origin" not in headers and site != "same-origin":
        msg = "a page's request that changes something names its origin; this one has neither Origin nor Sec-Fetch-Site"
        raise Unauthenticated(msg)


def _mark(credential: str, kinds: tuple[str, ...]) -> str:
    """Return the cache key of a credential, which is not its text."""
    return hashlib.sha256(f"{kinds}{credential}".encode(errors="replace")).hexdigest()
