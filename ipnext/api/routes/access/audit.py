"""The audit: pages of its entries, and its head."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query

from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, Limit, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.errors import InvalidInput
from ipnext.model.access.audit import AuditEntry, AuditHead, AuditName, Outcome
from ipnext.model.api.resources import ListPage
from ipnext.store.access.audit import AuditFilter

router = APIRouter(prefix="/v1/audit", tags=["audit"], route_class=GuardedRoute)


@router.get("", dependencies=[may("audit.read")], summary="Read the audit", response_model_exclude_none=True)
def read_audit(  # noqa: PLR0913, PLR0917 - the filters of the list
    rooms: Rooms,
    after: After = None,
    limit: Limit = 100,
    who: Annotated[AuditName | None, Query(description="Only entries of this principal: its id or its name.")] = None,
    action: Annotated[
        AuditName | None, Query(description="Only this action, such as `models.publish`; `models.*`: all of models.")
    ] = None,
    about: Annotated[
        AuditName | None, Query(alias="object", description="Only entries about the object or model of this name.")
    ] = None,
    outcome: Annotated[Outcome | None, Query(description="Only entries of this outcome.")] = None,
    since: Annotated[datetime | None, Query(description="Only entries from this time on, with its zone.")] = None,
    oldest_first: Annotated[bool, Query(alias="oldestFirst", description="In the order of the chain.")] = False,
) -> ListPage[AuditEntry]:
    """Newest first, or in the order of the chain; pages by sequence. A field without a value is absent."""
    if since is not None and since.tzinfo is None:
        msg = f"since: {since.isoformat()} has no time zone; allowed: a time such as 2026-12-01T00:00:00Z"
        raise InvalidInput(msg, field="since", value=since.isoformat())
    wanted = AuditFilter(who=who, action=action, object=about, outcome=outcome, since=since)
    with rooms.store.read() as unit:
        return view_page(unit.audit_page(wanted, after=after, limit=limit, oldest_first=oldest_first))


@router.get("/head", dependencies=[may("audit.read")], summary="Read the audit's head")
def read_audit_head(rooms: Rooms) -> AuditHead:
    """Sequence and hash of the newest entry.

    Kept elsewhere it is an anchor: a later verification finds what was cut off.
    """
    with rooms.store.read() as unit:
        return unit.audit_head()
