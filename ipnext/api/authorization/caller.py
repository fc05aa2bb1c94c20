"""The acting principal of a request, and the owners whose models it sees."""

import dataclasses
from typing import Annotated, Any

import anyio
from fastapi import Depends, Request

from ipnext.access.acting import ACTING, RequestAuthority
from ipnext.api.authorization.access import Access
from ipnext.api.authorization.credentials import bearer_of
from ipnext.errors import IPnextError
from ipnext.model.access.rights import Principal


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
    return await visible_owners(request.app.state.platform.access, principal_of(request))


async def visible_owners(access: Access, principal: Principal) -> frozenset[str] | None:
    """Return the owners whose models a principal may see; None: all. A look into the store is in a thread."""
    if not access.has_own_policies or access.sees_all(principal):
        return access.visible(principal)
    return await anyio.to_thread.run_sync(access.visible, principal)


Visible = Annotated[frozenset[str] | None, Depends(visible_of)]


async def is_operator(request: Request) -> bool:
    """Return whether the caller of a public path has proved that it operates the platform, by a key or a token.

    A wrong credential proves nothing, nor does any while the database does not answer.
    """
    access: Access = request.app.state.platform.access
    if not access.required:
        return True
    try:
        credential = bearer_of(request)
        if credential is None:
            return False
        found = access.recall(credential, ("key",))
        if found is None:
            found = await anyio.to_thread.run_sync(access.prove, credential)
    except IPnextError:
        return False
    return found.sees_machines


def act(request: Request, **known: Any) -> RequestAuthority:
    """Add fields of `RequestAuthority` to the request's, for the audit."""
    acting: RequestAuthority = dataclasses.replace(acting_of(request), **known)
    request.state.acting = acting
    ACTING.set(acting)
    return acting
