"""Owners: apply, read, delete; and the admission of their models."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path

from ipnext.access.keys import draw_key
from ipnext.api.authorization.caller import Asker, Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import (
    After,
    DryRun,
    ExpectedVersion,
    Limit,
    PlatformAdapters,
    Rooms,
    WantedLabels,
    view_page,
)
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.services.checks.manifest import check_storable
from ipnext.errors import Conflict, InvalidInput, NotFound, StaleWrite
from ipnext.model.access.owner import (
    CALLERS,
    DOLLARS,
    MODELS,
    REPLICAS,
    UNITS,
    OwnerManifest,
    OwnerMember,
    OwnerView,
    QuotaUse,
)
from ipnext.model.access.roles import RoleBinding
from ipnext.model.api.resources import ListPage
from ipnext.model.manifest.derived.owner_claims import Claims
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.value import Name
from ipnext.store.access.owners import member_grant
from ipnext.store.operations.access_quota import admit_callers
from ipnext.store.operations.quota_claims import admitted_claims
from ipnext.store.paging import Page
from ipnext.store.records import OwnerRecord, OwnerUse
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/owners", tags=["owners"], route_class=GuardedRoute)

NAMED_KEYS = 10
"""Keys that an error names."""

OwnerName = Annotated[Name, Path(description="Name of the owner.")]


@router.get("", dependencies=[may("owners.read")], summary="List owners")
def list_owners(
    rooms: Rooms, visible: Visible, labels: WantedLabels, after: After = None, limit: Limit = 50
) -> ListPage[OwnerView]:
    """By name, with their usage; those whose models the caller may not read are left out."""
    with rooms.store.read(visible) as unit:
        page = unit.owner_page(after=after, limit=limit, labels=dict(labels))
        return view_page(Page(_views(rooms, unit, page.items), page.next))


@router.get("/{owner}", dependencies=[may("owners.read")], summary="Read an owner")
def read_owner(owner: OwnerName, rooms: Rooms, visible: Visible) -> OwnerView:
    """Read an owner with its members, and the demand of its models next to its quotas."""
    with rooms.store.read() as unit:
        record = unit.find_owner(owner) if visible is not None else unit.owner(owner)
        if record is None:
            msg = f"owner {owner!r} is not known; `ipnext get owners` lists those that you may see"
            raise NotFound(msg)
        return _views(rooms, unit, (record,))[0]


@router.put("/{owner}", dependencies=[may("owners.manage")], summary="Apply an owner")
def apply_owner(
    owner: OwnerName,
    manifest: OwnerManifest,
    rooms: Rooms,
    asker: Asker,
    expected_version: ExpectedVersion = None,
    dry_run: DryRun = False,
) -> OwnerView:
    """Create or replace an owner. The same manifest twice changes nothing.

    `spec.members`, if it is given, takes the place of all roles over this owner's models, which are in force within
    5 s. A quota below what the models ask for already changes nothing that runs: `warnings` names it, and only what
    would ask for more is refused. A changed priority is in force with the next replan.
    """
    if manifest.name != owner:
        msg = f"metadata.name: the path says {owner!r}, the manifest {manifest.name!r}; make them agree"
        raise InvalidInput(msg, field="metadata.name", value=manifest.name, allowed=(owner,))
    check_storable(manifest)
    with rooms.store.begin() as unit:
        _check_kinds(unit, manifest)
        before = unit.find_owner(owner)
        if dry_run:
            return _answer_dry_run(rooms, unit, before, manifest, expected_version)
        former = _views(rooms, unit, (before,))[0].manifest if before else None
        record = unit.put_owner(manifest, expected_version=expected_version)
        if manifest.spec.members is not None:
            listed = unit.access_bytes().callers
            _set_members(unit, owner, manifest.spec.members, by=asker.text)
            admit_callers(unit, listed, field="spec.members", limit=rooms.settings.access_list_bytes)
        view = _views(rooms, unit, (record,))[0]
        unit.note_audit(object=("Owner", owner), owner=owner, before=former, after=view.manifest)
    rooms.access.forget()
    return view


@router.delete("/{owner}", dependencies=[may("owners.manage")], summary="Delete an owner")
def delete_owner(owner: OwnerName, rooms: Rooms, expected_version: ExpectedVersion = None) -> OwnerView:
    """Remove an owner with its quotas and its members' roles.

    409 while a model has it (`metadata.owner`), retired or not, or names it in `spec.access.callers`, and while it has
    valid API keys.
    """
    with rooms.store.begin() as unit:
        view = _views(rooms, unit, (unit.owner(owner),))[0]
        unit.delete_owner(owner, expected_version=expected_version)
        _check_no_keys(unit, owner)
        unit.remove_members(owner)
        unit.note_audit(object=("Owner", owner), owner=owner, before=view.manifest)
    rooms.access.forget()
    return view


def _check_no_keys(unit: Repository, owner: str) -> None:
    """Check that no key is over an owner: the next owner of that name would find it in force. Raises Conflict."""
    keys = unit.valid_keys_over(owner)
    if keys:
        named = ", ".join(f"{key.name} ({key.id})" for key in keys[:NAMED_KEYS])
        more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
        msg = f"owner {owner!r} still has API keys: {named}{more}; revoke them first (`ipnext keys revoke ID`)"
        raise Conflict(msg)


def admit(unit: Repository, manifest: ModelManifest, *, replicas: int, models: int, callers: int) -> Claims:
    """Check a model's manifest against the quotas of its owner; return its claims, to be written with it.

    Call it in the unit of work that stores the manifest: units that admit models of one owner run one after another.
    `replicas`, `models` and `callers` are the limits of an owner without such quotas. Raises QuotaExceeded, and
    InvalidInput if the owner has no object and the fleet requires one.
    """
    owner = manifest.metadata.owner
    unit.lock_owner(owner)
    if unit.find_owner(owner) is None and unit.fleet().spec.require_owners:
        msg = (
            f"metadata.owner: {owner!r} has no object of kind Owner, and the fleet requires one (spec.requireOwners); "
            "`ipnext get owners` lists those that there are"
        )
        raise InvalidInput(msg, field="metadata.owner", value=owner)
    return admitted_claims(unit, manifest, replicas=replicas, models=models, callers=callers)


def _set_members(unit: Repository, owner: str, members: Sequence[OwnerMember], *, by: str) -> None:
    unit.remove_members(owner, but=members)
    for member in members:
        unit.bind_role(
            RoleBinding(
                id=draw_key().id,
                subject=member.subject,
                grant=member_grant(owner, member),
                created_at=datetime.now(UTC),
                created_by=by,
            )
        )


def _check_kinds(unit: Repository, manifest: OwnerManifest) -> None:
    """Refuse quotas of hardware kinds that the fleet does not have; before the first fleet any kind is allowed."""
    try:
        hardware = unit.fleet().spec.hardware
    except NotFound:
        return
    for kind in manifest.spec.quotas.units:
        if kind not in hardware:
            field = f"spec.quotas.units.{kind}"
            msg = f"{field}: the fleet has no hardware kind {kind!r}; allowed: {', '.join(hardware)}"
            raise InvalidInput(msg, field=field, value=kind, allowed=hardware)


def _answer_dry_run(
    rooms: PlatformAdapters, unit: Repository, before: OwnerRecord | None, manifest: OwnerManifest, expected: int | None
) -> OwnerView:
    """Return the answer of a dry run: the given manifest under the version in force (0: none)."""
    version, at = (0 if before is None else before.version), datetime.now(UTC)
    if expected is not None and expected != version:
        msg = f"expectedVersion: {expected} is not the version in force ({version}); read the owner again"
        raise StaleWrite(msg)
    record = OwnerRecord(
        manifest=manifest,
        version=version,
        created_at=at if before is None else before.created_at,
        updated_at=at if before is None else before.updated_at,
    )
    (view,) = _views(rooms, unit, (record,))
    spec = view.manifest.spec
    if manifest.spec.members is not None:
        spec = spec.model_copy(update={"members": manifest.spec.members})
    shown = view.manifest.model_copy(update={"spec": spec})
    return view.model_copy(update={"manifest": shown, "dry_run": True})


def _views(rooms: PlatformAdapters, unit: Repository, records: Sequence[OwnerRecord]) -> tuple[OwnerView, ...]:
    """Return owners with their members and usage; the number of statements does not depend on the number of owners."""
    names = [record.name for record in records]
    members, uses = unit.owner_members(names), unit.owner_uses(names)
    budgets = _fleet_budgets(unit)
    settings = rooms.settings
    defaults = {
        REPLICAS: float(settings.owner_replicas),
        MODELS: float(settings.owner_models),
        CALLERS: float(settings.owner_callers),
    }
    return tuple(
        _view(
            record,
            members.get(record.name, ()),
            _usage(record.manifest, uses[record.name], defaults),
            models_without_budget=uses[record.name].without_budget,
            fleet_budget_per_hour=budgets.get(record.name),
        )
        for record in records
    )


def _fleet_budgets(unit: Repository) -> dict[str, float | None]:
    try:
        return {item.owner: item.budget_per_hour for item in unit.fleet().spec.owners}
    except NotFound:
        return {}


def _view(record: OwnerRecord, members: tuple[OwnerMember, ...], usage: tuple[QuotaUse, ...], **more: Any) -> OwnerView:
    spec = record.manifest.spec.model_copy(update={"members": members})
    return OwnerView(
        manifest=record.manifest.model_copy(update={"spec": spec}),
        version=record.version,
        created_at=record.created_at,
        updated_at=record.updated_at,
        usage=usage,
        **more,
        warnings=tuple(
            f"quotas.{line.quota}: {line.limit:g} is below the {line.used:g} that the models ask for; "
            "nothing that runs "
            "changes, and what asks for more is refused"
            for line in usage
            if line.is_exceeded
        ),
    )


def _usage(manifest: OwnerManifest, use: OwnerUse, defaults: Mapping[str, float]) -> tuple[QuotaUse, ...]:
    """Return every quota with a limit, a use or a placement. `defaults` are limits without a quota."""
    placed = {f"{UNITS}{kind}": units for kind, units in use.placed_units.items()}
    placed |= {DOLLARS: use.placed_cost, REPLICAS: float(use.placed_replicas)}
    limits = {**defaults, **manifest.spec.quotas.limits}
    names = sorted(limits.keys() | use.claimed.keys() | placed.keys())
    return tuple(
        QuotaUse(
            quota=name,
            used=round(use.claimed.get(name, 0.0), 9),
            limit=limits.get(name),
            placed=round(placed.get(name, 0.0), 9) if name in {DOLLARS, REPLICAS} or name.startswith(UNITS) else None,
        )
        for name in names
    )
