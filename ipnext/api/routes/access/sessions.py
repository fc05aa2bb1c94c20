"""Logins of the page: a key, or a one-time ticket, becomes a session in a cookie that scripts can't read."""

from datetime import UTC, datetime, timedelta
from typing import Final

from fastapi import APIRouter, Request, Response

from ipnext.access.keys import draw_key, parse_key
from ipnext.api.authorization.caller import Asker, act
from ipnext.api.authorization.credentials import bearer_of, cookie_name, session_of
from ipnext.api.dependencies import Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.routes.access.keys import NO_STORE
from ipnext.api.schema import OF_SHARED
from ipnext.errors import Forbidden, Unauthenticated
from ipnext.model.access.rights import ApiKey, KeyKind, Principal, SessionView, Ticket, TicketView, audited_key
from ipnext.platform.admin import BY_DEV
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1", tags=["access"], route_class=GuardedRoute)

SESSION_LASTS: Final = timedelta(hours=12)
TICKET_LASTS: Final = timedelta(minutes=10)


@router.post("/sessions", status_code=201, summary="Log a browser in", responses=OF_SHARED)
def log_in(request: Request, response: Response, rooms: Rooms) -> SessionView:
    """Give out a session for the key or ticket of `Authorization`, in a cookie.

    A ticket is good once; 401 for others.
    """
    credential = _login_credential(request)
    asker = rooms.access.prove(credential, kinds=("key", "ticket"))
    if asker.kind == "user":
        msg = "a token of the identity provider is sent with each request; it can't become a session"
        raise Unauthenticated(msg)
    act(request, principal=asker, action="sessions.begin", policy="credentials-log-in")
    with rooms.store.begin() as unit:
        parent = _parent(unit, asker, credential)
        key, text = draw_credential(asker, "session", SESSION_LASTS)
        unit.add_key(key, parent=parent)
        unit.note_audit(object=("Session", key.id), after=audited_key(key))
    response.set_cookie(
        cookie_name(request.scope),
        text,
        max_age=int(SESSION_LASTS.total_seconds()),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )
    response.headers.update(NO_STORE)
    return SessionView(name=key.name, kind="session", grants=key.grants, expires_at=key.expires_at)


@router.get("/sessions/current", summary="Ask who is logged in")
def who_am_i(asker: Asker) -> SessionView:
    """Read the principal of the request, and its grants."""
    return SessionView(name=asker.name, kind=asker.kind, grants=asker.grants, expires_at=asker.expires_at)


@router.delete("/sessions/current", status_code=204, summary="Log a browser out")
def log_out(request: Request, asker: Asker, rooms: Rooms) -> Response:
    """End the session of the request's cookie. 403 for a key: `DELETE /v1/keys/{id}` revokes it."""
    act(request, action="sessions.end", policy="sessions-end-themselves")
    if asker.kind != "session":
        msg = f"{asker.text} is no session; `ipnext keys revoke` ends a key"
        raise Forbidden(msg, policy="sessions-end-themselves")
    with rooms.store.begin() as unit:
        unit.revoke_key(asker.id)
        unit.note_audit(object=("Session", asker.id))
    rooms.access.forget_credential(session_of(request.scope) or "", ("session",))
    answer = Response(status_code=204)
    answer.delete_cookie(cookie_name(request.scope), path="/")
    return answer


@router.post("/tickets", status_code=201, summary="Make a link that logs a browser in", responses=OF_SHARED)
def make_ticket(request: Request, rooms: Rooms, asker: Asker, response: Response) -> Ticket:
    """Give out a ticket with the caller's own grants, good once and for ten minutes.

    `/#ticket=...` of the page takes it.
    """
    act(request, action="tickets.create", policy="keys-make-tickets")
    if asker.kind != "key":
        msg = f"a ticket is made with an API key; {asker.text} is none"
        raise Forbidden(msg, policy="keys-make-tickets")
    key, text = draw_credential(asker, "ticket", TICKET_LASTS)
    with rooms.store.begin() as unit:
        unit.add_key(key, parent=asker.id)
        unit.note_audit(object=("Ticket", key.id), after=audited_key(key))
    response.headers.update(NO_STORE)
    assert key.expires_at is not None  # noqa: S101 - a ticket always ends
    return Ticket(ticket=text, expires_at=key.expires_at)


@router.get("/tickets/current", summary="Ask whose login link it is", responses=OF_SHARED)
def look_at_ticket(request: Request, response: Response, rooms: Rooms) -> TicketView:
    """Name the key of the ticket of `Authorization`, which stays good: the page asks before it logs anybody in.

    401 for others.
    """
    asker = rooms.access.prove(_login_credential(request), kinds=("ticket",))
    with rooms.store.read() as unit:
        ticket = unit.find_key(asker.id)
    if asker.kind != "ticket" or ticket is None:
        msg = "this is no ticket of `ipnext page`"
        raise Unauthenticated(msg)
    response.headers.update(NO_STORE)
    return TicketView(
        name=ticket.name,
        grants=ticket.grants,
        expires_at=ticket.expires_at,
        by_platform=ticket.created_by == BY_DEV,
    )


def _login_credential(request: Request) -> str:
    """Return the credential of a login. Raises Unauthenticated."""
    credential = bearer_of(request)
    if credential is None:
        msg = "a login needs `Authorization: Bearer`, followed by an API key or a ticket of `ipnext page`"
        raise Unauthenticated(msg)
    return credential


def draw_credential(asker: Principal, kind: KeyKind, lasts: timedelta) -> tuple[ApiKey, str]:
    """Draw a session or ticket that acts for a principal, with its text."""
    new, now = draw_key(), datetime.now(UTC)
    key = ApiKey(
        id=new.id,
        name=asker.name,
        kind=kind,
        digest=new.digest,
        proof_key=new.proof_key,
        grants=asker.grants,
        created_at=now,
        created_by=asker.text,
        expires_at=now + lasts,
    )
    return key, new.text


def _parent(unit: Repository, asker: Principal, credential: str) -> str:
    """Return the key on whose behalf the session acts. A ticket is used up, once, even by simultaneous requests."""
    if asker.kind != "ticket":
        return asker.id
    ticket = unit.find_key(parse_key(credential).id)
    parent = unit.parent_of_key(asker.id)
    if ticket is None or parent is None or not ticket.is_valid(datetime.now(UTC)):
        msg = "this login link was used already, or has expired; `ipnext page` prints another one"
        raise Unauthenticated(msg)
    unit.revoke_key(ticket.id)
    return parent
