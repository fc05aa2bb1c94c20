"""Freezes: apply, read, lift; let one change through."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query

from ipnext.access.actions import ACTIONS
from ipnext.api.authorization.caller import Asker, Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, DryRun, ExpectedVersion, Limit, RecordId, Rooms, User, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.services.check_overrides import check_overridable, pass_check
from ipnext.api.services.checks.manifest import check_storable
from ipnext.api.services.hidden_freezes import models_in_freezes, redact_freeze
from ipnext.errors import InvalidInput, NotFound, StaleWrite
from ipnext.freezes.calendar import FreezeCalendar
from ipnext.freezes.evaluation import ChangeScope, frozen, next_window, next_windows, open_window
from ipnext.model.api.resources import ListPage
from ipnext.model.lifecycle.changes.change import Change
from ipnext.model.manifest.freeze import (
    FreezableKind,
    FreezeManifest,
    FreezeNow,
    FreezeView,
    Frozen,
    Override,
    OverrideRequest,
)
from ipnext.model.value import Name
from ipnext.store.operations.change_scope import find_touched
from ipnext.store.paging import page_of
from ipnext.store.records import FreezeRecord
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1", tags=["freezes"], route_class=GuardedRoute)

SHOWN_WINDOWS = 5

FreezeName = Annotated[Name, Path(description="Name of the freeze.")]


@router.get("/freezes", dependencies=[may("fleet.read")], summary="List freezes")
def list_freezes(rooms: Rooms, visible: Visible, after: After = None, limit: Limit = 50) -> ListPage[FreezeView]:
    """By name, each with the window that is open now and the next ones.

    Those for models of other owners alone are left out. Principals that see the models of some owners get no texts that
    may name other models: the reason only of a freeze that binds their models, no annotations, no VCALENDAR.
    """
    shown: list[tuple[FreezeRecord, FreezeManifest]] = []
    with rooms.store.read() as unit:
        models = models_in_freezes(unit, visible)
        page = unit.freeze_page(after=after, limit=limit + 1)
        while True:  # so that no cursor names an omitted freeze
            redacted = ((record, redact_freeze(record.manifest, models)) for record in page.items)
            shown += [(record, manifest) for record, manifest in redacted if manifest is not None]
            if len(shown) > limit or page.next is None:
                break
            page = unit.freeze_page(after=page.next, limit=limit + 1)
    at = datetime.now(UTC)
    return view_page(
        page_of(
            shown[: limit + 1],
            limit,
            key=lambda found: found[0].manifest.name,
            value=lambda found: _view(found[0], at, shown=found[1]),
        )
    )


@router.get("/freezes/now", dependencies=[may("fleet.read")], summary="Ask whether a change would wait")
def frozen_now(
    model: Annotated[Name, Query(description="Name of the model.")],
    rooms: Rooms,
    asker: Asker,
    kind: Annotated[FreezableKind, Query(description="Kind of the change.")] = "publish",
) -> FreezeNow:
    """Whether a change of this model would wait now, until when and for which freezes; and when it would next."""
    at = datetime.now(UTC)
    with rooms.store.read() as unit:
        rooms.access.check_model(asker, ACTIONS["models.read"], unit, model)
        touched, calendars = find_touched(unit, model), calendars_of(unit)
    asked = ChangeScope(model, *touched, kind)
    bound, following = frozen(calendars, asked, at), next_window(calendars, asked, at)
    return FreezeNow(model=model, kind=kind, at=at, frozen=bound, next_window=following)


@router.get("/freezes/{name}", dependencies=[may("fleet.read")], summary="Read a freeze")
def read_freeze(name: FreezeName, rooms: Rooms, visible: Visible) -> FreezeView:
    """Read a freeze with the window that is open now and the next five."""
    with rooms.store.read() as unit:
        record = unit.find_freeze(name) if visible is not None else unit.freeze(name)
        models = models_in_freezes(unit, visible)
        shown = None if record is None else redact_freeze(record.manifest, models)
    if record is None or shown is None:
        msg = f"freeze {name!r} is not known; `ipnext get freezes` lists those for models that you may see"
        raise NotFound(msg)
    return _view(record, datetime.now(UTC), shown=shown)


@router.put("/freezes/{name}", dependencies=[may("freezes.change")], summary="Apply a freeze")
def apply_freeze(
    name: FreezeName,
    manifest: FreezeManifest,
    rooms: Rooms,
    user: User,
    expected_version: ExpectedVersion = None,
    dry_run: DryRun = False,
) -> FreezeView:
    """Create or replace a freeze. The same manifest twice changes nothing. Runs that wait ask again at once.

    A transition that has begun is not stopped by a freeze that comes later.
    """
    if manifest.name != name:
        msg = f"metadata.name: the path says {name!r}, the manifest {manifest.name!r}; make them agree"
        raise InvalidInput(msg, field="metadata.name", value=manifest.name, allowed=(name,))
    check_storable(manifest)
    calendar, at = FreezeCalendar(manifest), datetime.now(UTC)
    calendar.check(at)
    with rooms.store.begin() as unit:
        before = unit.find_freeze(name)
        if dry_run:
            return _answer_dry_run(calendar, before, at, expected_version)
        record = unit.put_freeze(manifest, expected_version=expected_version)
        unit.note_audit(
            object=("Freeze", name),
            before=before.manifest if before else None,
            after=manifest,
            reason=manifest.spec.reason,
        )
        if before is None or before.version != record.version:
            text = f"freeze {name}, version {record.version}, was applied by {user}: {manifest.spec.reason}"
            unit.add_event(None, "FreezeApplied", text)
    rooms.outbox.freezes_changed()
    return _view(record, at)


@router.delete("/freezes/{name}", dependencies=[may("freezes.change")], summary="Lift a freeze")
def delete_freeze(
    name: FreezeName,
    rooms: Rooms,
    user: User,
    expected_version: ExpectedVersion = None,
    reason: Annotated[str, Query(max_length=500, description="Why, for the audit.")] = "",
) -> FreezeView:
    """Take a freeze away: what waits for it alone goes on at once."""
    with rooms.store.begin() as unit:
        record = unit.delete_freeze(name, expected_version=expected_version)
        unit.note_audit(object=("Freeze", name), before=record.manifest, reason=reason or "lifted")
        unit.add_event(None, "FreezeLifted", f"freeze {name} was lifted by {user}" + (f": {reason}" if reason else ""))
    rooms.outbox.freezes_changed()
    return _view(record, datetime.now(UTC))


@router.post("/changes/{change_id}/override", dependencies=[may("models.override")], summary="Let a change through")
def override(change_id: RecordId, request: OverrideRequest, rooms: Rooms, user: User) -> Override:
    """Let one change pass every freeze, those that come later too, or with `check` one check of its validation.

    Given again, the first one stays. A change that the check has refused is carried out again: `again` is its id.
    """
    if request.check is not None:
        check_overridable(request.check, rooms.plugins)
    with rooms.store.read() as unit:
        model = unit.change(change_id).model
    with rooms.store.begin(model) as unit:
        change = unit.change(change_id)
        if request.check is None:
            given = override_freezes(unit, change, who=user, reason=request.reason)
            after: dict[str, object] = {"overrides": list(given.freezes)}
        else:
            given = pass_check(unit, change, request.check, who=user, reason=request.reason)
            after = {"check": given.check, "again": given.again}
        unit.note_audit(after=after, reason=request.reason, change_id=change_id)
    if request.check is None:
        rooms.outbox.freezes_changed()
    else:
        rooms.outbox.wake()
    return given


def override_freezes(unit: Repository, change: Change, *, who: str, reason: str) -> Override:
    """Override the freezes for a change, and record it once."""
    given = unit.freeze_override(change.id)
    if given is not None:
        return given
    passes = binding(unit, change.model, change.kind.value, datetime.now(UTC))
    made = unit.override_freezes(change.id, who=who, reason=reason, passes=passes)
    named = f" ({', '.join(made.freezes)})" if made.freezes else ""
    unit.add_event(
        change.model, "FreezeOverridden", f"{change.kind} {change.id} passes freezes{named}, by {who}: {reason}"
    )
    return made


def binding(unit: Repository, model: str, kind: str, at: datetime) -> Frozen | None:
    """Return the freezes that would block such a change of a model."""
    calendars = calendars_of(unit)
    if not calendars:
        return None
    return frozen(calendars, ChangeScope(model, *find_touched(unit, model), kind), at)


def calendars_of(unit: Repository) -> tuple[FreezeCalendar, ...]:
    """Return every freeze, ready for queries."""
    return tuple(FreezeCalendar(record.manifest) for record in unit.freezes())


def _answer_dry_run(
    calendar: FreezeCalendar, before: FreezeRecord | None, at: datetime, expected: int | None
) -> FreezeView:
    """Return the answer of a dry run: the given freeze under the version in force (0: none)."""
    version = 0 if before is None else before.version
    if expected is not None and expected != version:
        msg = f"expectedVersion: {expected} is not the version in force ({version}); read the freeze again"
        raise StaleWrite(msg)
    record = FreezeRecord(
        manifest=calendar.manifest,
        version=version,
        created_at=at if before is None else before.created_at,
        updated_at=at if before is None else before.updated_at,
    )
    return _view(record, at).model_copy(update={"dry_run": True})


def _view(record: FreezeRecord, at: datetime, *, shown: FreezeManifest | None = None) -> FreezeView:
    """Return a freeze and its windows; `shown` is its manifest as the principal may see it."""
    calendar = FreezeCalendar(record.manifest)
    return FreezeView(
        manifest=shown or record.manifest,
        version=record.version,
        created_at=record.created_at,
        updated_at=record.updated_at,
        in_force=open_window(calendar, at),
        next=next_windows(calendar, at, count=SHOWN_WINDOWS),
    )
