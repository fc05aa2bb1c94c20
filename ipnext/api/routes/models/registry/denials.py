"""The deny-list: digests that no model may serve."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, Limit, Rooms, User, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.model.api.denials import DenialRequest, DenialView, DeniedSnapshotView
from ipnext.model.api.resources import ListPage
from ipnext.model.registry.denials import Denial
from ipnext.model.value import Sha256
from ipnext.platform.denials import carry_out_denials
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/denials", tags=["denials"], route_class=GuardedRoute)

SHOWN = 50
"""Snapshots of one denial."""
AT_ONCE = 50
"""Models that a request writes to; the reconciler goes on with the others."""

Digest = Annotated[Sha256, Path(description="SHA-256 of a snapshot, a file, or an image.")]


@router.get("", dependencies=[may("fleet.read")], summary="List denied digests")
def list_denials(rooms: Rooms, visible: Visible, after: After = None, limit: Limit = 50) -> ListPage[DenialView]:
    """Newest first."""
    with rooms.store.read() as unit:
        page = unit.denial_page(after=after, limit=limit)
    return view_page(page.map(lambda found: _view(found, (), shows_all=visible is None)))


@router.get("/{digest}", dependencies=[may("fleet.read")], summary="Read a denial")
def read_denial(digest: Digest, rooms: Rooms, visible: Visible) -> DenialView:
    """Read a denial, with the snapshots of visible models that it covers."""
    with rooms.store.read(visible=visible) as unit:
        return _describe(unit, unit.denial(digest), shows_all=visible is None)


@router.put("/{digest}", dependencies=[may("denials.change")], summary="Deny a digest")
def deny(digest: Digest, request: DenialRequest, rooms: Rooms, user: User) -> DenialView:
    """Deny a snapshot, all that have a file, or all that came in an image; and what was made from them.

    They are refused when they are published, validated and loaded. Models that serve one go back to a former
    generation. A digest that is denied already keeps its reason.
    """
    with rooms.store.begin() as unit:
        before = unit.find_digest_denial(digest)
        denial = unit.put_denial(digest, reason=request.reason, denied_by=user)
        if before is None:
            unit.note_audit(object=("Denial", digest), after={"digest": digest}, reason=request.reason)
            unit.add_event(None, "Denied", f"{denial.text} (by {user})")
    found = carry_out_denials(rooms.store, most=AT_ONCE)
    rooms.outbox.wake()
    with rooms.store.read() as unit:
        view = _describe(unit, unit.find_digest_denial(digest) or denial, shows_all=True)
        found = found.among(unit.models_denied(denial))
    return view.model_copy(update={"going_back": found.going_back, "staying": found.staying})


@router.delete("/{digest}", dependencies=[may("denials.change")], summary="End a denial")
def end_denial(
    digest: Digest,
    rooms: Rooms,
    user: User,
    reason: Annotated[str, Query(max_length=500, description="Why, for the audit.")] = "",
) -> DenialView:
    """Let a digest be published and loaded again. Generations that were left stay left."""
    with rooms.store.begin() as unit:
        denial = unit.end_denial(digest)
        unit.note_audit(object=("Denial", digest), before={"digest": digest, "reason": denial.reason}, reason=reason)
        unit.add_event(None, "DenialEnded", f"{digest:.16} is not denied any more, by {user}")
    carry_out_denials(rooms.store, most=AT_ONCE)
    return _view(denial, (), shows_all=True)


def _describe(unit: Repository, denial: Denial, *, shows_all: bool) -> DenialView:
    snapshots = tuple(DeniedSnapshotView(**each._asdict()) for each in unit.covered_by(denial, limit=SHOWN))
    return _view(denial, snapshots, shows_all=shows_all)


def _view(denial: Denial, snapshots: tuple[DeniedSnapshotView, ...], *, shows_all: bool) -> DenialView:
    return DenialView(
        digest=denial.digest,
        reason=denial.reason,
        denied_by=denial.denied_by if shows_all else None,
        denied_at=denial.denied_at,
        is_carried_out=denial.is_carried_out,
        snapshots=snapshots,
    )
