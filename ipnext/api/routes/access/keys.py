"""API keys: create, list, revoke. The secret is in the answer that creates a key, and nowhere else."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Response

from ipnext.access.keys import draw_key
from ipnext.api.authorization.caller import Asker
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, Limit, PlatformAdapters, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.errors import InvalidInput, NotFound
from ipnext.model.access.rights import (
    ANY,
    ApiKey,
    CreatedKey,
    Grant,
    KeyId,
    KeyRequest,
    KeyView,
    RevokedKey,
    Role,
    audited_key,
    key_view,
)
from ipnext.model.access.roles import RoleRequest
from ipnext.model.api.resources import ListPage
from ipnext.store.operations.access_quota import admit_callers

OneKey = Annotated[KeyId, Path(description="Id of the key: the text before the dot, without `ipnext_`.")]

router = APIRouter(prefix="/v1/keys", tags=["access"], route_class=GuardedRoute)

NO_STORE = {"Cache-Control": "no-store"}


@router.post("", dependencies=[may("keys.manage")], status_code=201, summary="Create an API key")
def create_key(request: KeyRequest, rooms: Rooms, asker: Asker, response: Response) -> CreatedKey:
    """Create a key with one role. `key` is given out this once; 409 if a valid key has the name."""
    check_grant(request)
    drawn, now = draw_key(), datetime.now(UTC)
    lasts = request.expires_in_seconds
    key = ApiKey(
        id=drawn.id,
        name=request.name,
        kind="key",
        digest=drawn.digest,
        proof_key=drawn.proof_key,
        grants=(Grant(role=request.role, owner=request.owner, region=request.region),),
        created_at=now,
        created_by=asker.text,
        expires_at=None if lasts is None else now + timedelta(seconds=lasts),
    )
    with rooms.store.begin() as unit:
        listed = unit.access_bytes().callers
        unit.add_key(key)
        admit_callers(unit, listed, field="name", limit=rooms.settings.access_list_bytes)
        unit.note_audit(object=("Key", key.id), after=audited_key(key))
    response.headers.update(NO_STORE)
    return CreatedKey(**key_view(key).model_dump(), key=drawn.text)


@router.get("", dependencies=[may("keys.manage")], summary="List API keys")
def list_keys(rooms: Rooms, after: After = None, limit: Limit = 50) -> ListPage[KeyView]:
    """Newest first, revoked and expired ones too; without secrets."""
    with rooms.store.read() as unit:
        page = unit.key_page(after=after, limit=limit)
    return view_page(page.map(key_view))


@router.delete("/{key_id}", dependencies=[may("keys.manage")], summary="Revoke an API key")
def revoke_key(key_id: OneKey, rooms: Rooms) -> RevokedKey:
    """End a key, and the sessions that were logged in with it.

    It is in force within 5 s everywhere but in `regionsBehind` that stay there.
    """
    with rooms.store.begin() as unit:
        before = unit.find_key(key_id)
        key = unit.revoke_key(key_id)
        unit.note_audit(object=("Key", key_id), before=audited_key(before) if before else None, after=audited_key(key))
    rooms.access.forget()
    return _view_revoked(rooms, key)


@router.get("/{key_id}/revocation", dependencies=[may("keys.manage")], summary="How far a revocation has come")
def revocation(key_id: OneKey, rooms: Rooms) -> RevokedKey:
    """Name the regions that may still take a revoked key. 404 if the key is not revoked."""
    with rooms.store.read() as unit:
        key = unit.find_key(key_id)
    if key is None or key.revoked_at is None:
        msg = f"no revoked key has the id {key_id!r}; `ipnext keys list` shows them"
        raise NotFound(msg)
    return _view_revoked(rooms, key)


def _view_revoked(rooms: PlatformAdapters, key: ApiKey) -> RevokedKey:
    """Return a revoked key with the regions that have not acknowledged a list without it.

    Regions have no sessions and tickets.
    """
    behind: tuple[str, ...] = ()
    if key.revocation is not None:
        with rooms.store.read() as unit:
            without = unit.regions_without_key(key.revocation)
        behind = tuple(region for region in rooms.infrastructure.regions() if region not in without)
    return RevokedKey(**key_view(key).model_dump(), regions_behind=behind)


def check_grant(request: KeyRequest | RoleRequest) -> None:
    """Refuse a grant without effect. Raises InvalidInput."""
    if ANY not in {request.region, request.owner}:
        msg = "region: a role over one region is about no owner's models; give owner or region, not both"
        raise InvalidInput(msg, field="region", value=request.region, allowed=(ANY,))
    if request.region != ANY and request.role not in {Role.VIEWER, Role.OPERATOR}:
        msg = f"role: over a region there are viewer and operator, not {request.role.value}"
        raise InvalidInput(msg, field="role", value=request.role.value, allowed=(Role.VIEWER, Role.OPERATOR))
