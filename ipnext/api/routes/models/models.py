"""Models: apply, read, explain, retire."""

from uuid import uuid4

from fastapi import APIRouter, Request, Response

from ipnext import names
from ipnext.api.authorization.caller import Asker, Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import DryRun, ExpectedVersion, IdempotencyKey, ModelName, Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.routes.models.filters import WantedModels, find_models
from ipnext.api.routes.models.owners import admit
from ipnext.api.schema import NOT_MODIFIED
from ipnext.api.services.checks.manifest import (
    check_against_fleet,
    check_plugins,
    check_runs_no_code,
    check_signers,
    check_storable,
    field_changes,
)
from ipnext.api.services.checks.retirement import check_not_retiring, note_restored
from ipnext.api.services.checks.sources import check_readable, watch_sources
from ipnext.api.services.explanation import explanation_of
from ipnext.api.services.generation_stats import answers_of
from ipnext.api.services.model_facts import model_facts, throughputs_of
from ipnext.api.services.region_states import States
from ipnext.api.services.status import model_view
from ipnext.api.workflow_engine.port import change_view
from ipnext.errors import Conflict, InvalidInput, NotFound, StaleWrite
from ipnext.model.api.resources import ChangeView, ListPage, ModelApplied, ModelView, StatusExplanation
from ipnext.model.fleet import FleetSpec
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.freshness import view_freshness
from ipnext.model.manifest.derived.profiled import check_measured
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.settings.engine_allowances import EngineAllowances
from ipnext.model.value import digest_of
from ipnext.settings import PlatformSettings
from ipnext.sources.access import reach_of
from ipnext.store.operations.access_quota import admit_entry
from ipnext.store.operations.artifact_quota import admit_documents, allowance_of
from ipnext.store.operations.change_end import note_waiting
from ipnext.store.records import ModelRecord
from ipnext.store.repository import Repository
from ipnext.store.unit_of_work import bytes_of, document, utc_now

MARK_LENGTH = 12
"""Hexadecimal digits of a request's key in the id of the change that it records."""

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=GuardedRoute)


@router.get(
    "",
    dependencies=[may("models.list")],
    summary="List models",
    response_model=ListPage[ModelView],
    responses=NOT_MODIFIED,
)
async def list_models(request: Request, rooms: Rooms, wanted: WantedModels, visible: Visible) -> Response:
    """Models that are not retired, by name, with their status.

    `ready` compares what is recorded, corrected by what the regions report now: a model whose replicas do not answer is
    listed with `ready=false`. A page may hold fewer than `limit` models although another one follows.
    """

    def make(states: States) -> bytes:
        with rooms.store.read(visible) as unit:
            found = find_models(unit, states, wanted)
        page = ListPage[ModelView](items=tuple(model_view(each, states) for each in found.items), next=found.next)
        return page.model_dump_json(by_alias=True).encode()

    return await rooms.shared.answer(request, ("models", wanted, visible), make)


@router.get("/{name}", dependencies=[may("models.read")], summary="Read a model")
def read_model(name: ModelName, rooms: Rooms) -> ModelView:
    """Manifest, version, status and how its generations answer.

    As recorded, corrected by what the regions report now.
    """
    with rooms.store.read() as unit:
        facts = model_facts(unit, name)
        rates = throughputs_of(unit, [facts])[name]
        serving = unit.serving_snapshots(name)
    now, states = utc_now(), rooms.observer.states()
    more = {
        "answers": answers_of(name, facts.record.serving_generation, states),
        "throughput": rates,
        "freshness": tuple(view_freshness(each, now) for each in serving),
    }
    return model_view(facts, states).model_copy(update=more)


@router.put("/{name}", dependencies=[may("models.apply")], summary="Apply a model's manifest")
def apply_model(  # noqa: PLR0913, PLR0917 - the parameters of the request
    name: ModelName,
    manifest: ModelManifest,
    rooms: Rooms,
    asker: Asker,
    expected_version: ExpectedVersion = None,
    dry_run: DryRun = False,
    key: IdempotencyKey = "",
) -> ModelApplied:
    """Create or replace a manifest. The same manifest twice changes nothing.

    A retired model is brought back, and waits for a publish. If the change to this manifest has ended without success,
    the same manifest again is tried again, as a new change. A request that is repeated with its `Idempotency-Key` gets
    the change that it recorded.

    Demand regions and hardware kinds must exist in the fleet. A manifest that takes its owner beyond a quota is refused
    (`QuotaExceeded`), with the figure used now and the limit. Where the model serves, or is on its way to serve, a
    changed spec is also a change of kind `apply`, which plans again and moves traffic safely.
    """
    if manifest.name != name:
        msg = f"metadata.name: the path says {name!r}, the manifest {manifest.name!r}; make them agree"
        raise InvalidInput(msg, field="metadata.name", value=manifest.name, allowed=(name,))
    rooms.access.require_owner(asker, "models.apply", name, manifest.metadata.owner)
    check_storable(manifest)
    check_runs_no_code(manifest, _allowances(rooms.settings))
    check_signers(manifest)
    check_plugins(manifest, rooms.plugins)
    rooms.optimization_kinds.check(manifest.spec.optimization)
    rooms.stage_kinds.check(manifest.spec)
    reach = reach_of(asker, rooms.settings)
    sources = watch_sources(manifest, rooms.source_kinds, reach)
    with rooms.store.begin(name) as unit:
        before, mark = unit.find_model(name), _mark_request(key, manifest)
        repeated = _find_repeated(unit, name, mark) if mark and not dry_run else None
        if before is not None and repeated is not None:
            recorded = change_view(repeated, rooms.lifecycle)
            found = _view_applied(before, before, before.manifest, change=recorded)
            return found.model_copy(update={"restored": False})
        check_against_fleet(manifest, _fleet(unit))
        check_readable(unit, manifest, sources, rooms.source_kinds, rooms.settings)
        check_not_retiring(unit, before)
        check_measured(manifest, unit.profiles_of(name, before.serving_generation) if before else {})
        claims = admit(
            unit,
            manifest,
            replicas=rooms.settings.owner_replicas,
            models=rooms.settings.owner_models,
            callers=rooms.settings.owner_callers,
        )
        admit_entry(unit, manifest, limit=rooms.settings.access_list_bytes)
        allowance = allowance_of(unit, manifest.metadata.owner, default=rooms.settings.artifact_bytes)
        admit_documents(unit, allowance, _more_bytes(unit, before, manifest), field="spec")
        if dry_run:
            _check_version(before, expected_version)
            return _view_applied(before, before, manifest, dry_run=True)
        record = unit.put_model(manifest, expected_version=expected_version)
        grants_end = before is not None and (
            before.retired or before.manifest.metadata.owner != manifest.metadata.owner
        )
        unit.put_sources(name, sources, grants_end=grants_end)
        unit.claim(name, claims)
        change = _apply_change(unit, before, record, mark)
        if before is not None and before.retired:
            note_restored(unit, name)
        unit.note_audit(
            owner=manifest.metadata.owner,
            before=before.manifest if before else None,
            after=manifest,
            change_id=change.id if change else None,
        )
    rooms.outbox.wake()
    rooms.source_wakes.wake()
    view = None if change is None else change_view(change, rooms.lifecycle)
    return _view_applied(before, record, manifest, change=view)


@router.delete("/{name}", dependencies=[may("models.retire")], status_code=202, summary="Retire a model")
def retire_model(name: ModelName, rooms: Rooms) -> ChangeView:
    """Take a model out of serving and free its capacity. Asked again while it runs, it is the same change."""
    with rooms.store.begin(name) as unit:
        record = unit.model(name)
        under_way = unit.open_kinds(name).get(ChangeKind.RETIRE)
        running = None if under_way is None else unit.change(under_way)
        if running is None and record.retired:
            msg = f"model {name!r} is retired already; apply its manifest to bring it back"
            raise Conflict(msg)
        change = running or unit.add_change(name, ChangeKind.RETIRE, change_id=uuid4().hex)
        unit.note_audit(change_id=change.id, before={"generation": record.serving_generation})
    rooms.outbox.wake()
    return change_view(change, rooms.lifecycle)


@router.get("/{name}/explanation", dependencies=[may("models.read")], summary="Explain a model's state")
def explain_model(name: ModelName, rooms: Rooms) -> StatusExplanation:
    """One chain from the deployment to the cause, one reason of the closed list, and what to do about it."""
    states = rooms.observer.states()
    with rooms.store.read() as unit:
        return explanation_of(unit, model_facts(unit, name), states)


def _allowances(settings: PlatformSettings) -> EngineAllowances:
    return EngineAllowances(settings.engine_arguments_allow, settings.engine_environment_allow)


def _fleet(unit: Repository) -> FleetSpec:
    try:
        return unit.fleet().spec
    except NotFound as error:
        msg = "there is no fleet yet: apply a Fleet manifest first (`ipnext apply -f fleet.yaml`)"
        raise Conflict(msg) from error


def _more_bytes(unit: Repository, before: ModelRecord | None, manifest: ModelManifest) -> int:
    """Return the growth of the owner's documents in bytes; a new owner gets all documents of the model."""
    if before is None:
        return bytes_of(document(manifest))
    more = bytes_of(document(manifest)) - bytes_of(document(before.manifest))
    is_new = before.manifest.metadata.owner != manifest.metadata.owner
    return more + unit.document_bytes(manifest.name) if is_new else more


def _check_version(record: ModelRecord | None, expected: int | None) -> None:
    version = 0 if record is None else record.version
    if expected is not None and expected != version:
        msg = f"expectedVersion: {expected} is not the version in force ({version}); read the model again"
        raise StaleWrite(msg)


def _apply_change(unit: Repository, before: ModelRecord | None, record: ModelRecord, mark: str) -> Change | None:
    """Return the change that moves a model to its spec.

    A new one, unless one for this revision is open or has succeeded.
    """
    if before is None or before.retired:
        return None
    if before.generation == record.generation:
        return _apply_again(unit, record, mark)
    if record.serving_generation is None and not unit.open_kinds(record.name):
        return None
    return _record_apply(unit, record, mark)


def _mark_request(key: str, manifest: ModelManifest) -> str:
    """Return the mark of a request with an `Idempotency-Key`: of the key, and of the manifest. Empty without a key."""
    return f"{_shorten(key)}-{_shorten(document(manifest))}" if key else ""


def _shorten(value: object) -> str:
    return digest_of(value)[:MARK_LENGTH]


def _find_repeated(unit: Repository, name: str, mark: str) -> Change | None:
    """Return the change that a request with this mark has recorded, however that ended.

    Nothing that came after it is undone: not a retirement, nor another manifest. Conflict if the key came with another
    manifest.
    """
    key, _, _ = mark.partition("-")
    change = unit.marked_apply(name, f"{key}-")
    if change is not None and not change.id.endswith(f".{mark}"):
        msg = f"Idempotency-Key: change {change.id!r} has this key with another manifest; choose another key"
        raise Conflict(msg)
    return change


def _apply_again(unit: Repository, record: ModelRecord, mark: str) -> Change | None:
    """Return the change of the revision in the store.

    Another one if that ended without success and the model is behind.
    """
    known = unit.applies(record.name, revision=record.generation)
    newest = next(iter(known), None)
    is_behind = record.serving_generation is not None and record.observed_generation < record.generation
    has_failed = newest is None or (newest.state.final and newest.state is not ChangeState.DONE)
    if not (is_behind and has_failed):
        return newest
    return _record_apply(unit, record, mark or (str(_next_sequence(unit, record)) if known else ""))


def _record_apply(unit: Repository, record: ModelRecord, mark: str) -> Change:
    """Record the change; its id follows from the revision, and from `mark` if there is one."""
    name, revision = record.name, record.generation
    change_id = names.marked_apply_id(name, revision, mark) if mark else names.apply_id(name, revision)
    change = unit.add_change(name, ChangeKind.APPLY, change_id=change_id)
    note_waiting(unit, change)
    return change


def _next_sequence(unit: Repository, record: ModelRecord) -> int:
    newest = unit.changes(record.name, limit=1)
    return newest[0].sequence + 1 if newest else 1


def _view_applied(
    before: ModelRecord | None,
    record: ModelRecord | None,
    manifest: ModelManifest,
    *,
    change: ChangeView | None = None,
    dry_run: bool = False,
) -> ModelApplied:
    fields = field_changes(None if before is None else before.manifest, manifest)
    return ModelApplied(
        model=manifest.name,
        version=0 if record is None else record.version,
        generation=0 if record is None else record.generation,
        changed=bool(fields),
        restored=before is not None and before.retired,
        dry_run=dry_run,
        fields=fields,
        change=change,
    )
