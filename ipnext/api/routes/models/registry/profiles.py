"""Profiles of snapshots: measurements of replicas."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path

from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import After, Limit, ModelName, Rooms, view_page
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.errors import InvalidInput, NotFound
from ipnext.model.api.resources import ListPage
from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.derived.profiled import throughput_of
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.profile import LatencyTarget, Profile, ProfileView, StoredProfile
from ipnext.model.throughput import amount
from ipnext.model.value import Name
from ipnext.store.operations.artifact_quota import admit_documents, allowance_of
from ipnext.store.operations.quota_claims import admit_measured
from ipnext.store.repository import Repository

router = APIRouter(
    prefix="/v1/models/{name}/snapshots/{part}/{number}/profiles", tags=["profiles"], route_class=GuardedRoute
)

PartName = Annotated[Name, Path(description="Name of the part.")]
SnapshotNumber = Annotated[int, Path(ge=1, lt=2**31, description="Number of a snapshot of the part.")]

WORTH_A_REPLAN = 0.05
"""Share by which a profile must change a replica's throughput to trigger a replan."""

CLOCKS_DIFFER = timedelta(minutes=5)
"""A measurement may be this far ahead of the API's clock: one from the future would count for ever."""


@router.get("", dependencies=[may("models.read")], summary="List a snapshot's profiles")
def list_profiles(
    name: ModelName, part: PartName, number: SnapshotNumber, rooms: Rooms, after: After = None, limit: Limit = 50
) -> ListPage[ProfileView]:
    """Newest first, each with what it says at the part's latency target today."""
    with rooms.store.read() as unit:
        manifest = unit.model(name).manifest
        page = unit.profile_page(name, part, number, after=after, limit=limit)
        return view_page(page.map(lambda found: _view(unit, manifest, found)))


@router.put("", dependencies=[may("models.profile")], summary="Record a measurement of a snapshot")
def put_profile(name: ModelName, part: PartName, number: SnapshotNumber, profile: Profile, rooms: Rooms) -> ProfileView:
    """Keep a profile. The same one again changes nothing.

    Where the part's hardware has `profile: true` and the model serves, a profile that changes a replica's throughput by
    more than 5 % asks for a replan. One by which the model needs more than a quota of its owner leaves is refused
    (`QuotaExceeded`).
    """
    if profile.measured_at > datetime.now(UTC) + CLOCKS_DIFFER:
        msg = (
            f"measured_at: {profile.measured_at.isoformat()} lies in the future; set the clock of the measuring machine"
        )
        raise InvalidInput(msg, field="measured_at", value=profile.measured_at.isoformat())
    with rooms.store.begin() as unit:
        record = unit.model(name)
        _option(_part(record.manifest, part), profile.hardware)
        serving = record.serving_generation
        before = _rate(unit, record.manifest, serving, part, profile.hardware)
        known = {found.id for found in unit.profiles(name, part, number)}
        had = unit.document_bytes(name)
        stored = unit.add_profile(name, part, number, profile)
        allowance = allowance_of(unit, record.manifest.metadata.owner, default=rooms.settings.artifact_bytes)
        admit_documents(unit, allowance, unit.document_bytes(name) - had, field="profile", counted=True)
        admit_measured(unit, record, replicas=rooms.settings.owner_replicas)
        unit.note_audit(object=("Profile", stored.id), after=profile)
        after = _rate(unit, record.manifest, serving, part, profile.hardware)
        replan_id = f"profile-{stored.id[:24]}"
        changed = after is not None and (before is None or abs(after - before) > WORTH_A_REPLAN * before)
        if changed and serving and stored.id not in known:
            unit.add_replan(replan_id, "profile")
        if stored.id not in known:
            _tell(unit, record.manifest, stored, before, after)
        view = _view(unit, record.manifest, stored, replan_id=_known_replan(unit, replan_id))
    rooms.outbox.wake()
    return view


def _tell(
    unit: Repository, manifest: ModelManifest, stored: StoredProfile, before: float | None, after: float | None
) -> None:
    told = "no number" if before is None else amount(before, manifest.spec.unit)
    now = "no number" if after is None else amount(after, manifest.spec.unit)
    spoilt = "; the engine served others meanwhile" if stored.spoilt else ""
    found = throughput_of(_part(manifest, stored.part), stored)
    seen = f"measured {amount(found.rate(manifest.spec.unit), manifest.spec.unit)}" + (
        "" if found.met else ", which misses its target"
    )
    message = (
        f"{stored.part} on {stored.hardware}, snapshot {stored.snapshot}: {seen}; plans take {now} a replica, "
        f"{told} before"
    )
    unit.add_event(stored.model, "Profiled", message + spoilt, detail={"profile": stored.id})


def _known_replan(unit: Repository, replan_id: str) -> str | None:
    try:
        return unit.replan(replan_id).id
    except NotFound:
        return None


def _view(
    unit: Repository, manifest: ModelManifest, stored: StoredProfile, *, replan_id: str | None = None
) -> ProfileView:
    part = next((found for found in manifest.spec.parts if found.name == stored.part), None)
    option = next((o for o in part.hardware if o.kind == stored.hardware), None) if part else None
    whole = part or manifest.spec.hosted_parts[0].model_copy(update={"latency_target": None})
    serving = unit.model(manifest.name).serving_generation
    in_use = unit.profiles_of(manifest.name, serving).get((stored.part, stored.hardware))
    return ProfileView(
        profile=stored,
        target=whole.latency_target or LatencyTarget(),
        found=throughput_of(whole, stored),
        unit=manifest.spec.unit,
        counts=bool(option and option.profile and in_use is not None and in_use.id == stored.id),
        replan_id=replan_id,
    )


def _rate(unit: Repository, manifest: ModelManifest, generation: int | None, part: str, hardware: str) -> float | None:
    """Return the throughput of a replica that plans assume now."""
    return _option(_part(unit.as_measured(manifest, generation), part), hardware).rate


def _part(manifest: ModelManifest, name: str) -> PartSpec:
    found = next((part for part in manifest.spec.hosted_parts if part.name == name), None)
    if found is None:
        allowed = tuple(part.name for part in manifest.spec.hosted_parts)
        msg = f"part: the manifest of {manifest.name!r} has no part {name!r}; allowed: {', '.join(allowed)}"
        raise InvalidInput(msg, field="part", value=name, allowed=allowed)
    return found


def _option(part: PartSpec, hardware: str) -> HardwareOption:
    found = next((option for option in part.hardware if option.kind == hardware), None)
    if found is None:
        allowed = tuple(option.kind for option in part.hardware)
        msg = f"hardware: part {part.name!r} does not run on {hardware!r}; allowed: {', '.join(allowed)}"
        raise InvalidInput(msg, field="hardware", value=hardware, allowed=allowed)
    return found
