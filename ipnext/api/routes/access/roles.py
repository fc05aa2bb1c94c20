"""Role bindings of people and groups: grant, list, revoke; and the login options of clients."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path

from ipnext.access.keys import draw_key
from ipnext.api.authorization.caller import Asker
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, Limit, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.routes.access.keys import check_grant
from ipnext.errors import NotFound
from ipnext.model.access.rights import Grant, KeyId
from ipnext.model.access.roles import LoginView, RoleBinding, RoleRequest, RoleView, role_view
from ipnext.model.api.resources import ListPage
from ipnext.store.operations.access_quota import admit_callers

router = APIRouter(prefix="/v1", tags=["access"], route_class=GuardedRoute)


@router.post("/roles", dependencies=[may("roles.manage")], status_code=201, summary="Grant a role")
def grant_role(request: RoleRequest, rooms: Rooms, asker: Asker) -> RoleView:
    """Bind a role to a group or user. The same grant again answers the binding that there is. In force within 5 s."""
    check_grant(request)
    binding = RoleBinding(
        id=draw_key().id,
        subject=request.subject,
        grant=Grant(role=request.role, owner=request.owner, region=request.region),
        created_at=datetime.now(UTC),
        created_by=asker.text,
    )
    with rooms.store.begin() as unit:
        listed = unit.access_bytes().callers
        bound = unit.bind_role(binding)
        admit_callers(unit, listed, field="subject", limit=rooms.settings.access_list_bytes)
        unit.note_audit(object=("Role", bound.id), after=role_view(bound))
    rooms.access.forget()
    return role_view(bound)


@router.get("/roles", dependencies=[may("roles.manage")], summary="List role bindings")
def list_roles(rooms: Rooms, after: After = None, limit: Limit = 50) -> ListPage[RoleView]:
    """Newest first."""
    with rooms.store.read() as unit:
        page = unit.role_binding_page(after=after, limit=limit)
    return view_page(page.map(role_view))


@router.delete("/roles/{binding_id}", dependencies=[may("roles.manage")], summary="Revoke a role")
def revoke_role(
    binding_id: Annotated[KeyId, Path(description="Id of the binding, as the list shows it.")], rooms: Rooms
) -> RoleView:
    """Remove a binding; in force everywhere within 5 s, for open streams too."""
    with rooms.store.begin() as unit:
        binding = unit.unbind_role(binding_id)
        unit.note_audit(object=("Role", binding_id), before=role_view(binding))
    rooms.access.forget()
    return role_view(binding)


@router.get("/login", summary="Ask how to log in")
async def login(rooms: Rooms) -> LoginView:
    """Read the identity provider and the client of the device flow; needs no credential. 404 if none is configured."""
    settings = rooms.settings
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        msg = "no identity provider is configured (IPNEXT_OIDC_ISSUER); `ipnext login --key` takes an API key"
        raise NotFound(msg)
    if settings.oidc_client_id is None:
        msg = "the API names no client for logins (IPNEXT_OIDC_CLIENT_ID); `ipnext login --key` takes a key or token"
        raise NotFound(msg)
    return LoginView(
        issuer=settings.oidc_issuer,
        client_id=settings.oidc_client_id,
        scopes=settings.oidc_scopes,
        audience=settings.oidc_audience,
    )
