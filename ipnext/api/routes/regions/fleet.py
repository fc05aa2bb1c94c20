"""The fleet: regions, hardware, supply, owners."""

from datetime import UTC, datetime

from fastapi import APIRouter

from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import DryRun, ExpectedVersion, Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.services.checks.fleet import check_agents, check_dropped_regions
from ipnext.api.services.checks.manifest import check_fleet_serves
from ipnext.api.services.hidden_fields import redact_fleet
from ipnext.errors import NotFound, StaleWrite
from ipnext.model.api.resources import FleetView
from ipnext.model.fleet import FleetManifest
from ipnext.store.records import FleetRecord
from ipnext.store.repository import Repository

router = APIRouter(prefix="/v1/fleet", tags=["fleet"], route_class=GuardedRoute)


@router.get("", dependencies=[may("fleet.read")], summary="Read the fleet")
def read_fleet(rooms: Rooms, visible: Visible) -> FleetView:
    """Read the fleet as applied, with the budgets of the owners that the caller may see. 404 before the first apply."""
    with rooms.store.read() as unit:
        view = _view(unit.fleet())
    return view.model_copy(update={"spec": redact_fleet(view.spec, visible)})


@router.put("", dependencies=[may("fleet.apply")], summary="Apply the fleet's manifest")
def apply_fleet(
    manifest: FleetManifest, rooms: Rooms, expected_version: ExpectedVersion = None, dry_run: DryRun = False
) -> FleetView:
    """Create or replace the fleet. What an applied model names or uses may not go; a new region needs an agent.

    A changed fleet asks for a replan by itself (`IPNEXT_REPLAN_ON_SUPPLY`), in the same unit of work; several changes
    within `IPNEXT_REPLAN_DELAY_SECONDS` ask for one.
    """
    settings = rooms.settings
    basis = _check_models(rooms, manifest)
    with rooms.store.begin() as unit:
        if unit.manifests_basis() != basis:
            check_fleet_serves(manifest.spec, tuple(r.manifest for r in unit.models() if not r.retired))
        before = _find(unit)
        former = before.spec if before else None
        check_agents(manifest.spec, former, _served_regions(rooms))
        check_dropped_regions(unit, manifest.spec, former)
        if dry_run:
            return _answer_dry_run(before, manifest, expected_version)
        record = unit.put_fleet(manifest.spec, expected_version=expected_version)
        unit.note_audit(before=former, after=manifest.spec)
        changed = before is None or before.version != record.version
        if changed and settings.replan_on_supply and unit.plan_in_force_id() is not None:
            unit.add_supply_replan(record.version, delay_seconds=settings.replan_delay_seconds)
    rooms.outbox.wake()
    return _view(record)


def _served_regions(rooms: Rooms) -> tuple[str, ...]:
    """Return the regions with an agent; no agent is called."""
    return rooms.infrastructure.regions()


def _check_models(rooms: Rooms, manifest: FleetManifest) -> tuple[int, int]:
    """Check the fleet against all models before the unit that writes it: thousands of manifests take seconds to parse.

    Returns the basis that shows whether any of them has changed since.
    """
    with rooms.store.read() as unit:
        basis, models = unit.manifests_basis(), unit.models()
    check_fleet_serves(manifest.spec, tuple(record.manifest for record in models if not record.retired))
    return basis


def _find(unit: Repository) -> FleetRecord | None:
    try:
        return unit.fleet()
    except NotFound:
        return None


def _answer_dry_run(before: FleetRecord | None, manifest: FleetManifest, expected: int | None) -> FleetView:
    """Return the answer of a dry run: the given spec under the version in force (0: none)."""
    version = 0 if before is None else before.version
    if expected is not None and expected != version:
        msg = f"expectedVersion: {expected} is not the version in force ({version}); read the fleet again"
        raise StaleWrite(msg)
    at = datetime.now(UTC) if before is None else before.updated_at
    return FleetView(spec=manifest.spec, version=version, updated_at=at)


def _view(record: FleetRecord) -> FleetView:
    return FleetView(spec=record.spec, version=record.version, updated_at=record.updated_at)
