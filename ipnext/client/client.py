"""The Python client of the API. Needs only the base dependencies; the CLI and notebooks use it.

Idempotent calls are retried for a moment while the API can't be reached. Errors are those of `ipnext.errors`, with the
server's text.
"""

import json
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import stamina

from ipnext.artifacts.hashing import chunks_of
from ipnext.artifacts.sources import ArtifactSource, DirectorySource, signature_of
from ipnext.client.credential import Credential, GatewayCredential
from ipnext.client.errors import error_of, no_answer
from ipnext.client.lists import Listing, params_of
from ipnext.client.upload import published_manifest
from ipnext.client.user import header_of, system_user
from ipnext.errors import DeadlineExceeded, Unavailable
from ipnext.model.access.artifact_use import CollectionView
from ipnext.model.access.audit import AuditEntry, AuditHead, Outcome
from ipnext.model.access.owner import OwnerManifest, OwnerView
from ipnext.model.access.rights import CreatedKey, KeyRequest, KeyView, RevokedKey, SessionView, Ticket
from ipnext.model.access.roles import LoginView, RoleRequest, RoleView
from ipnext.model.api.plugins import ValidatorView
from ipnext.model.api.resources import (
    MOST_ASKED,
    BlobQuery,
    ChangeView,
    EventView,
    FleetView,
    ListPage,
    MissingBlobs,
    ModelApplied,
    ModelView,
    MovesView,
    PlanSummary,
    PlanView,
    PublishPart,
    PublishRequest,
    Readiness,
    RegionView,
    RepairRequest,
    ReplanRequest,
    ReplanView,
    RollbackRequest,
    StatusExplanation,
    StoredSnapshot,
    TransitionView,
)
from ipnext.model.deployment.deployment import Replica
from ipnext.model.deployment.logs import DEFAULT_LINES, LogsView, ReplicaLog
from ipnext.model.fleet import FleetManifest, FleetSpec
from ipnext.model.lifecycle.controls import ControlAction, ControlAnswer, ControlRequest
from ipnext.model.lifecycle.drain import DrainRequest, DrainState, DrainView, ReturnRequest
from ipnext.model.lifecycle.messages import ReplanState, ValidationReport
from ipnext.model.lifecycle.replan_moves import MoverAction, ReplanProgress, SteerRequest
from ipnext.model.lifecycle.status import ConditionStatus, ConditionType
from ipnext.model.manifest.freeze import FreezeManifest, FreezeNow, FreezeView, Override, OverrideRequest
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import Manifest, parse_manifests
from ipnext.model.planning.plan import PlanDiff
from ipnext.model.registry.profile import Profile, ProfileView
from ipnext.model.registry.registry import ArtifactFile, Generation, Snapshot, SnapshotManifest
from ipnext.model.registry.signing import SignatureEnvelope
from ipnext.model.value import Value, WrittenValue
from ipnext.model.wire import decode
from ipnext.names import IDEMPOTENCY_HEADER, USER_HEADER
from ipnext.network.loopback import is_loopback
from ipnext.settings import client_settings

T = TypeVar("T")
Trigger = Literal["manual", "supply", "drain"]

_ORDER: tuple[type, ...] = (FleetManifest, OwnerManifest, FreezeManifest, ModelManifest)
"""Order of application: objects that others refer to come first."""

EXPORTED_AT_ONCE = 500
"""Entries of the audit."""

POLL_SECONDS = 0.2
SERVER_SIDE = ("file://", "s3://")
"""Sources that the server reads itself."""


class Client:
    """Client of one API. Safe to use from several threads; close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str | None = None,
        timeout_seconds: float | None = None,
        transport: httpx.BaseTransport | None = None,
        *,
        user: str | None = None,
        api_key: str | None = None,
    ) -> None:
        """Connect to the API at `base_url`.

        `timeout_seconds` limits one answer, waiting for a rollout has its own limit.

        The defaults are IPNEXT_API_URL (http://127.0.0.1:8700) and IPNEXT_TIMEOUT_SECONDS (30), as for the CLI.
        InvalidInput names a variable with an invalid value. `user` is recorded in the audit; default IPNEXT_USER, or
        the user of the system. `api_key` is a key or token; default IPNEXT_API_KEY, or the credential that `ipnext dev`
        or `ipnext login` stored for this address.
        """
        settings = client_settings()
        base_url = str(settings.api_url) if base_url is None else base_url
        timeout_seconds = settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        user = user or settings.user
        self._credential = Credential(str(base_url), given=api_key, settings=settings)
        self.trusted: ssl.SSLContext | bool = (
            True if settings.ca_file is None else ssl.create_default_context(cafile=str(settings.ca_file))
        )
        """CA certificates by which API and gateways are verified."""
        self._url = str(base_url).rstrip("/")
        loopback = is_loopback(urlsplit(self._url).hostname or "")
        self._http = httpx.Client(
            base_url=self._url,
            timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            transport=transport,
            headers={USER_HEADER: header_of(user or system_user())},
            auth=self._credential,
            verify=self.trusted,
            trust_env=not loopback,  # a proxy from the environment can't reach this machine's loopback
        )
        self._retry = stamina.RetryingCaller(attempts=4, wait_initial=0.1, wait_max=1.0, wait_jitter=0.1, timeout=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    # manifests

    def apply(
        self, manifest: str | Manifest, *, dry_run: bool = False
    ) -> tuple[ModelApplied | FleetView | FreezeView | OwnerView, ...]:
        """Apply YAML text (one or more documents, fleets first) or one manifest. Raises InvalidInput before sending."""
        manifests = parse_manifests(manifest) if isinstance(manifest, str) else (manifest,)
        ordered = sorted(manifests, key=lambda m: _ORDER.index(type(m)))
        return tuple(self._apply_one(each, dry_run=dry_run) for each in ordered)

    def _apply_one(self, manifest: Manifest, *, dry_run: bool) -> ModelApplied | FleetView | FreezeView | OwnerView:
        if isinstance(manifest, ModelManifest):
            return self.put_model(manifest, dry_run=dry_run)
        if isinstance(manifest, OwnerManifest):
            return self.put_owner(manifest, dry_run=dry_run)
        if isinstance(manifest, FreezeManifest):
            return self.put_freeze(manifest, dry_run=dry_run)
        return self.put_fleet(manifest, dry_run=dry_run)

    def put_model(
        self, manifest: ModelManifest, *, expected_version: int | None = None, dry_run: bool = False
    ) -> ModelApplied:
        """Create or replace a model's manifest. StaleWrite unless `expected_version` (0: none) is in force."""
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        path, key = f"/v1/models/{manifest.name}", uuid4().hex
        return self._call("PUT", path, ModelApplied, body=manifest, params=params, key=key)

    def put_fleet(
        self, fleet: FleetManifest | FleetSpec, *, expected_version: int | None = None, dry_run: bool = False
    ) -> FleetView:
        """Create or replace the fleet."""
        if isinstance(fleet, FleetSpec):
            fleet = FleetManifest(api_version="ipnext/v1", kind="Fleet", spec=fleet)
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        return self._put("/v1/fleet", fleet, FleetView, params=params)

    def models(
        self,
        *,
        owner: str | None = None,
        ready: bool | None = None,
        search: str | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> Listing[ModelView]:
        """List models that are not retired, by name: of an owner, ready or not, with `search` in their name.

        As for every list, pages are read during the iteration; `limit` is the most items, None: all.
        """
        params = params_of(owner=owner, ready=ready, search=search)
        return self._list("/v1/models", ModelView, limit, after=after, **params)

    def model(self, name: str) -> ModelView:
        """Return one model with its status. Raises NotFound."""
        return self._get(f"/v1/models/{name}", ModelView)

    def delete(self, name: str) -> ChangeView:
        """Retire a model."""
        return self._call("DELETE", f"/v1/models/{name}", ChangeView)

    def explain(self, name: str) -> StatusExplanation:
        """Explain why a model is in its desired state, or not."""
        return self._get(f"/v1/models/{name}/explanation", StatusExplanation)

    def logs(
        self,
        name: str,
        part: str | None = None,
        *,
        region: str | None = None,
        replica: int | None = None,
        tail: int = DEFAULT_LINES,
        after: Iterable[ReplicaLog] = (),
    ) -> LogsView:
        """Return the output of a model's replicas, the last `tail` lines of each log; ended replicas included.

        `after` are logs of an earlier answer: then only later output is returned, of these and of others that run.
        Raises NotFound if there is no such model, part, region or log, or if the infrastructure keeps none.
        """
        params = dict(params_of(part=part, region=region, replica=replica, tail=tail))
        params |= {"after": [log.cursor for log in after]}
        return self._call("GET", f"/v1/models/{name}/logs", LogsView, params=params)

    # changes

    def publish(
        self,
        model: str,
        parts: Mapping[str, Path | str],
        *,
        change_id: str | None = None,
        override_freeze: str | None = None,
        on_upload: Callable[[ArtifactFile], None] | None = None,
    ) -> ChangeView:
        """Publish snapshots.

        Part -> local snapshot or checkpoint directory, or a file:// or s3:// uri that the server reads. Files that the
        server lacks are uploaded first. The same `change_id` twice is one change. With the reason `override_freeze`,
        which is recorded in the audit, it passes every freeze.
        """
        published = {source: self._publish_part(model, source, on_upload) for source in dict.fromkeys(parts.values())}
        given = {part: published[source] for part, source in parts.items()}
        request = PublishRequest(change_id=change_id or uuid4().hex, parts=given, override_freeze=override_freeze)
        return self._call("POST", f"/v1/models/{model}/publish", ChangeView, body=request)

    def rollback(self, model: str, *, generation: int | None = None, change_id: str | None = None) -> ChangeView:
        """Roll back to a generation that has served; default: the newest other one."""
        request = RollbackRequest(change_id=change_id or uuid4().hex, generation=generation)
        return self._call("POST", f"/v1/models/{model}/rollback", ChangeView, body=request)

    def repair(self, model: str, *, change_id: str | None = None) -> ChangeView:
        """Repair a model: move users and replicas that were left on another generation back to the serving one."""
        request = RepairRequest(change_id=change_id or uuid4().hex)
        return self._call("POST", f"/v1/models/{model}/repair", ChangeView, body=request)

    def pause(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Pause a model's changes: a running one stops at its next step; rollbacks and retirements pass."""
        return self._control(model, ControlAction.PAUSE, reason)

    def resume(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Resume a model's changes. Conflict if nothing is paused."""
        return self._control(model, ControlAction.RESUME, reason)

    def approve(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Approve the wave that waits for an approval. Conflict if none waits."""
        return self._control(model, ControlAction.APPROVE, reason)

    def promote(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Skip the remaining bake times and approvals; gates and capacity stay in force.

        Conflict if no run moves traffic.
        """
        return self._control(model, ControlAction.PROMOTE, reason)

    def abort(self, model: str, *, reason: str = "") -> ControlAnswer:
        """Stop the running change and revert its moves. Conflict if none runs."""
        return self._control(model, ControlAction.ABORT, reason)

    def _control(self, model: str, action: ControlAction, reason: str) -> ControlAnswer:
        body, path = ControlRequest(reason=reason), f"/v1/models/{model}/{action.value}"
        return self._call("POST", path, ControlAnswer, body=body, key=uuid4().hex)

    def change(self, change_id: str) -> ChangeView:
        """Return one change."""
        return self._get(f"/v1/changes/{change_id}", ChangeView)

    def changes(self, model: str | None = None, *, limit: int | None = 50) -> Listing[ChangeView]:
        """List the changes of a model, or of all, newest first."""
        path = "/v1/changes" if model is None else f"/v1/models/{model}/changes"
        return self._list(path, ChangeView, limit)

    def wait_change(
        self,
        change_id: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ChangeView], None] | None = None,
    ) -> ChangeView:
        """Wait for a change's end, with any outcome. `on_update` gets each new state. DeadlineExceeded.

        If the platform executes the change again, because a region was lost during it, that change is awaited and
        returned.
        """
        last: ChangeView | None = None
        deadline = time.monotonic() + timeout_seconds
        for _ in _until(timeout_seconds):
            change = self._glance(lambda: self.change(change_id))
            if change is not None and change != last and on_update is not None:
                on_update(change)
            last = change or last
            if last is not None and last.state.final:
                left = max(0.0, deadline - time.monotonic())
                return last if last.again is None else self.wait_change(last.again, left, on_update)
        state = "unknown" if last is None else last.state.value
        msg = f"change {change_id} is {state} after {timeout_seconds:g} s; it goes on without you"
        raise DeadlineExceeded(msg)

    def wait_ready(
        self,
        model: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ModelView], None] | None = None,
    ) -> ModelView:
        """Wait until the newest desired state of a model serves. DeadlineExceeded names the reason if it does not."""
        return self.wait_condition(model, ConditionType.READY, timeout_seconds=timeout_seconds, on_update=on_update)

    def wait_condition(
        self,
        model: str,
        kind: ConditionType,
        status: ConditionStatus = "True",
        *,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ModelView], None] | None = None,
    ) -> ModelView:
        """Wait until a condition of a model has a status.

        DeadlineExceeded names the conditions that are not true, and why.
        """
        last: ModelView | None = None
        for _ in _until(timeout_seconds):
            view = self._glance(lambda: self.model(model))
            if view is not None and view != last and on_update is not None:
                on_update(view)
            last = view or last
            if last is not None and last.status.is_met(kind, status):
                return last
        why = "; ".join(
            f"{c.type}: {c.reason} {c.message}" for c in (last.status.conditions if last else ()) if c.status != "True"
        )
        ready = (kind, status) == (ConditionType.READY, "True")
        what = "is not ready" if ready else f"has not {kind}={status}"
        msg = (
            f"model {model!r} {what} after {timeout_seconds:g} s ({why or 'nothing was published'}); "
            f"try `ipnext explain {model}`"
        )
        raise DeadlineExceeded(msg)

    # history

    def generations(self, model: str, *, limit: int | None = None) -> Listing[Generation]:
        """List a model's generations, newest first."""
        return self._list(f"/v1/models/{model}/generations", Generation, limit)

    def snapshots(self, model: str, *, part: str | None = None, limit: int | None = None) -> Listing[Snapshot]:
        """List a model's snapshots by part, the newest of each part first."""
        return self._list(f"/v1/models/{model}/snapshots", Snapshot, limit, **params_of(part=part))

    def snapshot(self, model: str, part: str, number: int) -> Snapshot:
        """Return one snapshot. Raises NotFound."""
        return self._get(f"/v1/models/{model}/snapshots/{part}/{number}", Snapshot)

    def profiles(self, model: str, part: str, snapshot: int, *, limit: int | None = None) -> Listing[ProfileView]:
        """List the measurements of a snapshot's replicas, newest first."""
        return self._list(f"/v1/models/{model}/snapshots/{part}/{snapshot}/profiles", ProfileView, limit)

    def put_profile(self, model: str, part: str, snapshot: int, profile: Profile) -> ProfileView:
        """Store a measurement of a snapshot; an equal one changes nothing."""
        path = f"/v1/models/{model}/snapshots/{part}/{snapshot}/profiles"
        return self._put(path, profile, ProfileView, params={})

    def report(self, model: str, generation: int) -> ValidationReport:
        """Return the validation report of a generation."""
        return self._get(f"/v1/models/{model}/reports/{generation}", ValidationReport)

    def transitions(self, model: str, *, limit: int | None = 20) -> Listing[TransitionView]:
        """List a model's transitions, newest first."""
        return self._list(f"/v1/models/{model}/transitions", TransitionView, limit)

    def events(self, model: str | None = None, *, limit: int | None = 100) -> Listing[EventView]:
        """List the events of a model, or of all, newest first."""
        path = "/v1/events" if model is None else f"/v1/models/{model}/events"
        return self._list(path, EventView, limit)

    # owners

    def put_owner(
        self, owner: OwnerManifest, *, expected_version: int | None = None, dry_run: bool = False
    ) -> OwnerView:
        """Create or replace an owner. StaleWrite unless `expected_version` (0: none) is in force."""
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        return self._put(f"/v1/owners/{owner.name}", owner, OwnerView, params=params)

    def owners(self, *, limit: int | None = None) -> Listing[OwnerView]:
        """List owners with their usage, by name."""
        return self._list("/v1/owners", OwnerView, limit)

    def owner(self, name: str) -> OwnerView:
        """Return one owner with its members, and its usage next to its quotas. NotFound."""
        return self._get(f"/v1/owners/{name}", OwnerView)

    def delete_owner(self, name: str, *, expected_version: int | None = None) -> OwnerView:
        """Delete an owner, its quotas and its members' roles. Conflict while it has models; NotFound; StaleWrite."""
        params = params_of(expectedVersion=expected_version)
        return self._call("DELETE", f"/v1/owners/{name}", OwnerView, params=params, repeatable=False)

    # freezes

    def put_freeze(
        self, freeze: FreezeManifest, *, expected_version: int | None = None, dry_run: bool = False
    ) -> FreezeView:
        """Create or replace a freeze. StaleWrite unless `expected_version` (0: none) is in force."""
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        return self._put(f"/v1/freezes/{freeze.name}", freeze, FreezeView, params=params)

    def freezes(self, *, limit: int | None = None) -> Listing[FreezeView]:
        """List freezes, by name."""
        return self._list("/v1/freezes", FreezeView, limit)

    def freeze(self, name: str) -> FreezeView:
        """Return one freeze with its next windows. NotFound."""
        return self._get(f"/v1/freezes/{name}", FreezeView)

    def delete_freeze(self, name: str, *, reason: str | None = None, expected_version: int | None = None) -> FreezeView:
        """Lift a freeze: changes that wait for it alone continue at once. The reason is recorded in the audit.

        NotFound; StaleWrite.
        """
        params = params_of(expectedVersion=expected_version, reason=reason)
        return self._call("DELETE", f"/v1/freezes/{name}", FreezeView, params=params, repeatable=False)

    def frozen_now(self, model: str, *, kind: str = "publish") -> FreezeNow:
        """Return whether a freeze would block a change of a model now, until when and why; and when it would next."""
        return self._call("GET", "/v1/freezes/now", FreezeNow, params={"model": model, "kind": kind})

    def override_freezes(self, change_id: str, reason: str) -> Override:
        """Let one change pass every freeze. The reason is recorded in the audit."""
        body = OverrideRequest(reason=reason)
        return self._call("POST", f"/v1/changes/{change_id}/override", Override, body=body)

    def audit(
        self,
        *,
        who: str | None = None,
        action: str | None = None,
        about: str | None = None,
        outcome: Outcome | None = None,
        since: datetime | None = None,
        limit: int | None = 100,
    ) -> Listing[AuditEntry]:
        """List the audit, newest first.

        `who`: id or name of a principal; `action`: one, or `models.*`; `about`: an object or model.
        """
        at = None if since is None else since.isoformat()
        given = {"who": who, "action": action, "object": about, "outcome": outcome, "since": at}
        return self._list("/v1/audit", AuditEntry, limit, **given)

    def audit_head(self) -> AuditHead:
        """Return sequence and hash of the newest audit entry.

        An anchor for later verifications, if it is kept elsewhere.
        """
        return self._get("/v1/audit/head", AuditHead)

    def export_audit(self, *, after: int = 0) -> Iterator[Mapping[str, Any]]:
        """Yield the entries in the order of the chain, for `ipnext.model.access.audit_chain.verify`."""
        following: str | None = str(after)
        while following is not None:
            params = params_of(after=following, limit=EXPORTED_AT_ONCE, oldestFirst=True)
            page = json.loads(self._retry(Unavailable, self._send, "GET", "/v1/audit", params=params))
            yield from page["items"]
            following = page.get("next")

    # access

    def who_am_i(self) -> SessionView:
        """Return the principal of this client. Unauthenticated."""
        return self._get("/v1/sessions/current", SessionView)

    def login_options(self) -> LoginView:
        """Return the login options for users. Needs no credential. NotFound if the API has no identity provider."""
        return decode(LoginView, self._retry(Unavailable, self._send, "GET", "/v1/login", auth=None))

    def grant_role(self, request: RoleRequest) -> RoleView:
        """Bind a role to a group or user of the identity provider.

        The same grant again returns the existing binding.
        """
        return self._call("POST", "/v1/roles", RoleView, body=request)

    def roles(self, *, limit: int | None = 50) -> Listing[RoleView]:
        """List role bindings, newest first."""
        return self._list("/v1/roles", RoleView, limit)

    def revoke_role(self, binding_id: str) -> RoleView:
        """Remove a role binding. NotFound."""
        return self._call("DELETE", f"/v1/roles/{binding_id}", RoleView, repeatable=False)

    def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create an API key; `key` is its text, which the API returns only once.

        Conflict if a valid key has the name.
        """
        return self._call("POST", "/v1/keys", CreatedKey, body=request, repeatable=False)

    def keys(self, *, limit: int | None = 50) -> Listing[KeyView]:
        """List API keys, newest first, revoked ones included; without secrets."""
        return self._list("/v1/keys", KeyView, limit)

    def revoke_key(self, key_id: str, *, wait: bool = False, timeout_seconds: float = 30.0) -> RevokedKey:
        """Revoke an API key and the logins made with it; with `wait`, until no region takes it.

        NotFound; DeadlineExceeded.
        """
        revoked = self._call("DELETE", f"/v1/keys/{key_id}", RevokedKey)
        return self.wait_revoked(key_id, timeout_seconds) if wait and revoked.regions_behind else revoked

    def wait_revoked(self, key_id: str, timeout_seconds: float = 30.0) -> RevokedKey:
        """Wait until every region goes by an access list without a revoked key.

        DeadlineExceeded names those that do not.
        """
        last: RevokedKey | None = None
        for _ in _until(timeout_seconds):
            last = self._glance(lambda: self._get(f"/v1/keys/{key_id}/revocation", RevokedKey)) or last
            if last is not None and not last.regions_behind:
                return last
        where = "unknown" if last is None else ", ".join(last.regions_behind)
        msg = f"key {key_id} is revoked, and after {timeout_seconds:g} s may still be taken in these regions: {where}"
        raise DeadlineExceeded(msg)

    def make_ticket(self) -> Ticket:
        """Make a ticket that logs a browser in with the grants of this client's key, once."""
        return self._call("POST", "/v1/tickets", Ticket, repeatable=False)

    # plans and fleet

    def replan(
        self,
        *,
        trigger: Trigger = "manual",
        dry_run: bool = False,
        max_moves: int | None = None,
        wait: bool = False,
        timeout_seconds: float = 600.0,
        replan_id: str | None = None,
    ) -> ReplanView:
        """Plan the whole fleet again; with `wait`, until the moved models have finished.

        `dry_run`: the plan is computed and stored, without further effect. `max_moves` is the most replicas that are
        started. The same `replan_id` twice is one replan. DeadlineExceeded; Unavailable if no plan was found.
        """
        body = ReplanRequest(replan_id=replan_id or uuid4().hex, trigger=trigger, dry_run=dry_run, max_moves=max_moves)
        replan = self._call("POST", "/v1/replans", ReplanView, body=body)
        return self.wait_replan(replan.id, timeout_seconds) if wait else replan

    def steer_replan(self, action: MoverAction, *, reason: str = "") -> ReplanProgress:
        """Pause or resume the moves of replans, or cancel the running replan: Conflict if none runs."""
        body = SteerRequest(action=action, reason=reason)
        return self._call("POST", "/v1/replans/steer", ReplanProgress, body=body, key=uuid4().hex)

    def moves(self) -> MovesView:
        """Return the pause of the moves, the replan that moves models now, and the number of waiting replans."""
        return self._get("/v1/moves", MovesView)

    def replan_status(self, replan_id: str) -> ReplanView:
        """Return the state of a replan."""
        return self._get(f"/v1/replans/{replan_id}", ReplanView)

    def replans(self, *, limit: int | None = 20) -> Listing[ReplanView]:
        """List replans, newest first."""
        return self._list("/v1/replans", ReplanView, limit)

    def wait_replan(
        self,
        replan_id: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ReplanView], None] | None = None,
    ) -> ReplanView:
        """Wait for a replan's end. `on_update` gets each new state. Unavailable if it failed; DeadlineExceeded."""
        last: ReplanView | None = None
        for _ in _until(timeout_seconds):
            found = self._glance(lambda: self.replan_status(replan_id))
            if found is not None and found != last and on_update is not None:
                on_update(found)
            last = found or last
            if last is None or not last.state.final:
                continue
            if last.state is ReplanState.FAILED:
                msg = f"the replan failed: {last.reason.value}: {last.message}"
                raise Unavailable(msg)
            return last
        where = "unknown" if last is None else last.state.value
        msg = f"replan {replan_id} is {where} after {timeout_seconds:g} s; it goes on without you"
        raise DeadlineExceeded(msg)

    def plans(self, *, limit: int | None = 20, fleet_only: bool = False) -> Listing[PlanSummary]:
        """List plans, newest first; `fleet_only`: without those of one model."""
        return self._list("/v1/plans", PlanSummary, limit, **params_of(fleetOnly=fleet_only))

    def plan(self, plan_id: str) -> PlanView:
        """Return one plan with its problem; NotFound if only its entry is kept."""
        return self._get(f"/v1/plans/{plan_id}", PlanView)

    def plan_summary(self, plan_id: str) -> PlanSummary:
        """Return one plan without its documents, which may be megabytes."""
        return self._get(f"/v1/plans/{plan_id}/summary", PlanSummary)

    def plan_diff(self, plan_id: str) -> PlanDiff:
        """Return a plan's changes against the plan before it."""
        return self._get(f"/v1/plans/{plan_id}/diff", PlanDiff)

    def fleet(self) -> FleetView:
        """Return the fleet as applied."""
        return self._get("/v1/fleet", FleetView)

    def regions(self, *, limit: int | None = None) -> Listing[RegionView]:
        """List regions with supply, counts of replicas and requests, and the replicas that do not answer."""
        return self._list("/v1/regions", RegionView, limit)

    def replicas(self, region: str, *, model: str | None = None, limit: int | None = None) -> Listing[Replica]:
        """List the replicas that a region reports, by id. NotFound; Unavailable if the region does not answer."""
        return self._list(f"/v1/regions/{region}/replicas", Replica, limit, **params_of(model=model))

    def validators(self) -> tuple[ValidatorView, ...]:
        """Return the built-in validators and plug-ins, refused ones included."""
        return self._get("/v1/validators", tuple[ValidatorView, ...])

    def drain(self, region: str, *, disaster: bool = False, force: bool = False, reason: str = "") -> DrainView:
        """Take a region out of service; `disaster`: it is lost. Conflict if no other region would remain.

        If a drain is under way, that one is returned. `wait_drain` waits for its end, `wait_routed` until its traffic
        is rerouted.
        """
        body = DrainRequest(disaster=disaster, force=force, reason=reason)
        return self._call("POST", f"/v1/regions/{region}/drain", DrainView, body=body)

    def undrain(self, region: str, *, reason: str = "") -> DrainView:
        """Bring a region back into service. NotFound if it is not drained."""
        return self._call("POST", f"/v1/regions/{region}/return", DrainView, body=ReturnRequest(reason=reason))

    def drain_status(self, region: str) -> DrainView:
        """Return the newest drain of a region. NotFound before the first."""
        return self._get(f"/v1/regions/{region}/drain", DrainView)

    def drains(self, region: str | None = None, *, limit: int | None = 20) -> Listing[DrainView]:
        """List the drains of a region, or of all, newest first, those that are over included."""
        return self._list("/v1/drains", DrainView, limit, **params_of(region=region))

    def wait_drain(
        self, region: str, timeout_seconds: float = 600.0, on_update: Callable[[DrainView], None] | None = None
    ) -> DrainView:
        """Wait until a region is drained, or back in service. Unavailable if the drain is refused; DeadlineExceeded."""
        settled = (DrainState.DRAINED, DrainState.RETURNED)
        return self._wait_region(region, settled, timeout_seconds, on_update)

    def wait_routed(self, region: str, timeout_seconds: float = 600.0) -> DrainView:
        """Wait until the traffic of a lost region is rerouted.

        Unavailable if the drain is refused; DeadlineExceeded.
        """
        settled = (DrainState.DRAINING, DrainState.DRAINED, DrainState.RETURNED)
        return self._wait_region(region, settled, timeout_seconds, None)

    def _wait_region(
        self,
        region: str,
        settled: tuple[DrainState, ...],
        timeout_seconds: float,
        on_update: Callable[[DrainView], None] | None,
    ) -> DrainView:
        last: DrainView | None = None
        for _ in _until(timeout_seconds):
            found = self._glance(lambda: self.drain_status(region))
            if found is not None and found != last and on_update is not None:
                on_update(found)
            last = found or last
            if last is not None and last.state is DrainState.REFUSED:
                msg = f"the drain of {region} is refused: {last.cause.value}: {last.message}"
                raise Unavailable(msg)
            if last is not None and last.state in settled:
                return last
        where = "unknown" if last is None else last.state.value
        msg = f"region {region} is {where} after {timeout_seconds:g} s; it goes on without you"
        raise DeadlineExceeded(msg)

    def gateway_auth(self, region: RegionView) -> httpx.Auth:
        """Return the credential for a region's gateway.

        It is that of the API, if the gateway requires one and the operator named its address.
        """
        return GatewayCredential(self._credential, region)

    def collect_artifacts(self, *, dry_run: bool = False) -> CollectionView:
        """Remove unreferenced items of the artifact store, or with `dry_run` show them."""
        return self._call("GET" if dry_run else "POST", "/v1/artifacts/collect", CollectionView)

    def readiness(self) -> Readiness:
        """Return whether the API is up, and the state of its dependencies."""
        return self._get("/readyz", Readiness)

    # inside

    def _publish_part(
        self, model: str, source: Path | str, on_upload: Callable[[ArtifactFile], None] | None
    ) -> PublishPart:
        if isinstance(source, str) and source.startswith(SERVER_SIDE):
            return PublishPart(uri=source)
        directory = Path(source)
        files = DirectorySource(directory, roots=(directory,))
        manifest = published_manifest(files, directory)
        missing = self._missing(manifest)
        for file in {f.sha256: f for f in manifest.files if f.sha256 in missing}.values():
            if on_upload is not None:
                on_upload(file)
            self._retry(Unavailable, self._upload, model, files, file)
        envelope = signature_of(files, manifest)
        stored = self._call("POST", "/v1/artifacts/snapshots", StoredSnapshot, body=manifest, params={"model": model})
        if envelope is not None:
            self._retry(Unavailable, self._sign, stored.digest, envelope)
        return PublishPart(digest=stored.digest)

    def _missing(self, manifest: SnapshotManifest) -> frozenset[str]:
        digests = tuple(sorted({file.sha256 for file in manifest.files}))
        found: set[str] = set()
        for start in range(0, len(digests), MOST_ASKED):
            query = BlobQuery(digests=digests[start : start + MOST_ASKED])
            found.update(self._call("POST", "/v1/artifacts/missing", MissingBlobs, body=query).missing)
        return frozenset(found)

    def _upload(self, model: str, source: ArtifactSource, file: ArtifactFile) -> None:
        headers = {"content-type": "application/octet-stream", "content-length": str(file.size_bytes)}
        with source.open(file.path) as stream:
            path = f"/v1/artifacts/blobs/{file.sha256}"
            self._send("PUT", path, content=chunks_of(stream), headers=headers, params={"model": model})

    def _sign(self, digest: str, envelope: SignatureEnvelope) -> None:
        headers = {"content-type": "application/json"}
        self._send("PUT", f"/v1/artifacts/snapshots/{digest}/signature", content=envelope.content, headers=headers)

    def _list(
        self, path: str, kind: type[T], limit: int | None, *, after: str | None = None, **params: Any
    ) -> Listing[T]:
        def page(size: int, following: str | None) -> ListPage[T]:
            given = params_of(limit=size, after=following or after, **params)
            return self._get(path, ListPage[kind], **given)  # type: ignore[valid-type]

        return Listing(page, limit)

    def _get(self, path: str, kind: type[T], **params: Any) -> T:
        return self._call("GET", path, kind, params=params)

    def _put(self, path: str, body: Value | WrittenValue, kind: type[T], *, params: Mapping[str, Any]) -> T:
        return self._call("PUT", path, kind, body=body, params=params)

    def _call(  # noqa: PLR0913 - the options of one call
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: Value | WrittenValue | None = None,
        params: Mapping[str, Any] | None = None,
        repeatable: bool = True,
        key: str | None = None,
    ) -> T:
        content = None if body is None else body.model_dump_json(by_alias=True, exclude_none=True).encode()
        headers = {} if content is None else {"content-type": "application/json"}
        if key is not None:
            headers[IDEMPOTENCY_HEADER] = key
        options = {"content": content, "headers": headers, "params": params}
        if repeatable:
            answer = self._retry(Unavailable, self._send, method, path, **options)
        else:
            answer = self._send(method, path, **options)
        return decode(kind, answer)

    def _send(self, method: str, path: str, **options: Any) -> bytes:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise no_answer(self._url, error) from error
        if answer.is_error:
            raise error_of(answer, self._url)
        return answer.content

    def _glance(self, look: Callable[[], T]) -> T | None:
        """Read a state; None if that fails for a moment, such as during a restart of the API."""
        try:
            return look()
        except (Unavailable, DeadlineExceeded):
            return None


def _until(timeout_seconds: float) -> Iterator[None]:
    """Yield now and every POLL_SECONDS until the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(POLL_SECONDS, left))
