"""The Python client of the API. Needs the base dependencies only; the CLI and notebooks use it.

Calls that may be repeated are repeated for a moment while the API can't be reached. Errors are those of
`ipnext.errors`, with the server's text.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import stamina
from pydantic import TypeAdapter

from ipnext.artifacts.checked import chunks_of
from ipnext.artifacts.sources import DirectorySource, Source
from ipnext.client_errors import error_of, no_answer
from ipnext.client_upload import checked_snapshot
from ipnext.errors import DeadlineExceeded, Unavailable
from ipnext.model.fleet import FleetManifest, FleetSpec
from ipnext.model.lifecycle import ReplanState, ValidationReport
from ipnext.model.manifest import ModelManifest, parse_manifests
from ipnext.model.plan import PlanDiff
from ipnext.model.registry import ArtifactFile, Generation, Snapshot, SnapshotManifest
from ipnext.model.resource import (
    BlobQuery,
    ChangeView,
    EventView,
    Explanation,
    FleetView,
    MissingBlobs,
    ModelApplied,
    ModelView,
    PlanSummary,
    PlanView,
    PublishPart,
    PublishRequest,
    Readiness,
    RegionView,
    ReplanRequest,
    ReplanView,
    RollbackRequest,
    StoredSnapshot,
    TransitionView,
)
from ipnext.model.value import Value, Written
from ipnext.settings import client_settings

T = TypeVar("T")
Trigger = Literal["manual", "supply", "drain"]

POLL_SECONDS = 0.2
SERVER_SIDE = ("file://", "s3://")
"""Sources that the server reads itself."""


class Client:
    """One API. Safe to use from several threads; close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str | None = None,
        timeout_seconds: float | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """The API at `base_url`; `timeout_seconds` bounds one answer, waiting for a rollout has its own limit.

        What is not given is IPNEXT_API_URL (http://127.0.0.1:8700) and IPNEXT_TIMEOUT_SECONDS (30), as for the CLI.
        InvalidInput names a variable that holds no such value.
        """
        if base_url is None or timeout_seconds is None:
            settings = client_settings()
            base_url = str(settings.api_url) if base_url is None else base_url
            timeout_seconds = settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        self._url = str(base_url).rstrip("/")
        loopback = urlsplit(self._url).hostname in {"127.0.0.1", "localhost", "::1"}
        self._http = httpx.Client(
            base_url=self._url,
            timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            transport=transport,
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
        self, manifest: str | ModelManifest | FleetManifest, *, dry_run: bool = False
    ) -> tuple[ModelApplied | FleetView, ...]:
        """Apply YAML text (one or more documents, fleets first) or one manifest. Raises InvalidInput before sending."""
        manifests = parse_manifests(manifest) if isinstance(manifest, str) else (manifest,)
        ordered = sorted(manifests, key=lambda m: isinstance(m, ModelManifest))
        return tuple(
            self.put_model(m, dry_run=dry_run) if isinstance(m, ModelManifest) else self.put_fleet(m, dry_run=dry_run)
            for m in ordered
        )

    def put_model(
        self, manifest: ModelManifest, *, expected_version: int | None = None, dry_run: bool = False
    ) -> ModelApplied:
        """Create or replace a model's manifest. StaleWrite unless `expected_version` (0: none) is in force."""
        params = _params(expectedVersion=expected_version, dryRun=dry_run)
        return self._put(f"/v1/models/{manifest.name}", manifest, ModelApplied, params=params)

    def put_fleet(
        self, fleet: FleetManifest | FleetSpec, *, expected_version: int | None = None, dry_run: bool = False
    ) -> FleetView:
        """Create or replace the fleet."""
        if isinstance(fleet, FleetSpec):
            fleet = FleetManifest(api_version="ipnext/v1", kind="Fleet", spec=fleet)
        params = _params(expectedVersion=expected_version, dryRun=dry_run)
        return self._put("/v1/fleet", fleet, FleetView, params=params)

    def models(self) -> tuple[ModelView, ...]:
        """Every model that is not retired."""
        return self._get("/v1/models", tuple[ModelView, ...])

    def model(self, name: str) -> ModelView:
        """One model with its status. Raises NotFound."""
        return self._get(f"/v1/models/{name}", ModelView)

    def delete(self, name: str) -> ChangeView:
        """Retire a model."""
        return self._call("DELETE", f"/v1/models/{name}", ChangeView)

    def explain(self, name: str) -> Explanation:
        """Why a model is, or is not, where its owner wants it."""
        return self._get(f"/v1/models/{name}/explanation", Explanation)

    # changes

    def publish(
        self,
        model: str,
        parts: Mapping[str, Path | str],
        *,
        change_id: str | None = None,
        on_upload: Callable[[ArtifactFile], None] | None = None,
    ) -> ChangeView:
        """Publish snapshots: part -> local snapshot directory, or a file:// or s3:// uri that the server reads.

        Files that the server lacks are uploaded first. The same `change_id` twice is one change.
        """
        given = {part: self._published(source, on_upload) for part, source in parts.items()}
        request = PublishRequest(change_id=change_id or uuid4().hex, parts=given)
        return self._call("POST", f"/v1/models/{model}/publish", ChangeView, body=request)

    def rollback(self, model: str, *, generation: int | None = None, change_id: str | None = None) -> ChangeView:
        """Go back to a generation that has served; without one, to the newest other."""
        request = RollbackRequest(change_id=change_id or uuid4().hex, generation=generation)
        return self._call("POST", f"/v1/models/{model}/rollback", ChangeView, body=request)

    def change(self, change_id: str) -> ChangeView:
        """One change."""
        return self._get(f"/v1/changes/{change_id}", ChangeView)

    def changes(self, model: str, *, limit: int = 50) -> tuple[ChangeView, ...]:
        """A model's changes, newest first."""
        return self._get(f"/v1/models/{model}/changes", tuple[ChangeView, ...], limit=limit)

    def wait_change(
        self,
        change_id: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ChangeView], None] | None = None,
    ) -> ChangeView:
        """Wait for a change's end, whatever it is. `on_update` sees each new state. DeadlineExceeded."""
        last: ChangeView | None = None
        for _ in _until(timeout_seconds):
            change = self._glance(lambda: self.change(change_id))
            if change is not None and change != last and on_update is not None:
                on_update(change)
            last = change or last
            if last is not None and last.state.final:
                return last
        state = "unknown" if last is None else last.state.value
        msg = f"change {change_id} is {state} after {timeout_seconds:g} s; it goes on without you"
        raise DeadlineExceeded(msg)

    def wait_ready(
        self,
        model: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ModelView], None] | None = None,
    ) -> ModelView:
        """Wait until the newest wanted state of a model serves. DeadlineExceeded says why it does not."""
        last: ModelView | None = None
        for _ in _until(timeout_seconds):
            view = self._glance(lambda: self.model(model))
            if view is not None and view != last and on_update is not None:
                on_update(view)
            last = view or last
            if last is not None and last.status.ready:
                return last
        why = "; ".join(
            f"{c.type}: {c.reason} {c.message}" for c in (last.status.conditions if last else ()) if c.status != "True"
        )
        msg = f"model {model!r} is not ready after {timeout_seconds:g} s ({why or 'nothing was published'}); try `ipnext explain {model}`"
        raise DeadlineExceeded(msg)

    # history

    def generations(self, model: str) -> tuple[Generation, ...]:
        """A model's generations, newest first."""
        return self._get(f"/v1/models/{model}/generations", tuple[Generation, ...])

    def snapshots(self, model: str) -> tuple[Snapshot, ...]:
        """A model's snapshots."""
        return self._get(f"/v1/models/{model}/snapshots", tuple[Snapshot, ...])

    def report(self, model: str, generation: int) -> ValidationReport:
        """The validation report of a generation."""
        return self._get(f"/v1/models/{model}/reports/{generation}", ValidationReport)

    def transitions(self, model: str, *, limit: int = 20) -> tuple[TransitionView, ...]:
        """A model's transitions, newest first."""
        return self._get(f"/v1/models/{model}/transitions", tuple[TransitionView, ...], limit=limit)

    def events(self, model: str | None = None, *, limit: int = 100) -> tuple[EventView, ...]:
        """Events of a model, or of all, newest first."""
        path = "/v1/events" if model is None else f"/v1/models/{model}/events"
        return self._get(path, tuple[EventView, ...], limit=limit)

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

        `dry_run`: the plan is computed and stored, and nothing else. `max_moves`: replicas started at most. The same
        `replan_id` twice is one replan. DeadlineExceeded; Unavailable where no plan could be had.
        """
        body = ReplanRequest(replan_id=replan_id or uuid4().hex, trigger=trigger, dry_run=dry_run, max_moves=max_moves)
        replan = self._call("POST", "/v1/replans", ReplanView, body=body)
        return self.wait_replan(replan.id, timeout_seconds) if wait else replan

    def replan_status(self, replan_id: str) -> ReplanView:
        """Where a replan stands."""
        return self._get(f"/v1/replans/{replan_id}", ReplanView)

    def replans(self, *, limit: int = 20) -> tuple[ReplanView, ...]:
        """Replans, newest first."""
        return self._get("/v1/replans", tuple[ReplanView, ...], limit=limit)

    def wait_replan(
        self,
        replan_id: str,
        timeout_seconds: float = 600.0,
        on_update: Callable[[ReplanView], None] | None = None,
    ) -> ReplanView:
        """Wait for a replan's end. `on_update` sees each new state. Unavailable where it failed; DeadlineExceeded."""
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

    def plans(self, *, limit: int = 20, fleet_only: bool = False) -> tuple[PlanSummary, ...]:
        """Plans, newest first; `fleet_only`: without those of one model."""
        params = _params(limit=limit, fleetOnly=fleet_only)
        return self._get("/v1/plans", tuple[PlanSummary, ...], **params)

    def plan(self, plan_id: str) -> PlanView:
        """One plan with its problem; NotFound where only its line is kept."""
        return self._get(f"/v1/plans/{plan_id}", PlanView)

    def plan_summary(self, plan_id: str) -> PlanSummary:
        """One plan without its documents, which may be megabytes."""
        return self._get(f"/v1/plans/{plan_id}/summary", PlanSummary)

    def plan_diff(self, plan_id: str) -> PlanDiff:
        """What a plan changes against the plan before it."""
        return self._get(f"/v1/plans/{plan_id}/diff", PlanDiff)

    def fleet(self) -> FleetView:
        """The fleet as applied."""
        return self._get("/v1/fleet", FleetView)

    def regions(self) -> tuple[RegionView, ...]:
        """Regions with supply, replicas and traffic."""
        return self._get("/v1/regions", tuple[RegionView, ...])

    def readiness(self) -> Readiness:
        """Is the API up, and what of its surroundings is."""
        return self._get("/readyz", Readiness)

    # inside

    def _published(self, source: Path | str, on_upload: Callable[[ArtifactFile], None] | None) -> PublishPart:
        if isinstance(source, str) and source.startswith(SERVER_SIDE):
            return PublishPart(uri=source)
        directory = Path(source)
        files = DirectorySource(directory, roots=(directory,))
        manifest = checked_snapshot(files)
        missing = self._missing(manifest)
        for file in {f.sha256: f for f in manifest.files if f.sha256 in missing}.values():
            if on_upload is not None:
                on_upload(file)
            self._retry(Unavailable, self._upload, files, file)
        stored = self._call("POST", "/v1/artifacts/snapshots", StoredSnapshot, body=manifest)
        return PublishPart(digest=stored.digest)

    def _missing(self, manifest: SnapshotManifest) -> frozenset[str]:
        digests = tuple(sorted({file.sha256 for file in manifest.files}))
        answer = self._call("POST", "/v1/artifacts/missing", MissingBlobs, body=BlobQuery(digests=digests))
        return frozenset(answer.missing)

    def _upload(self, source: Source, file: ArtifactFile) -> None:
        headers = {"content-type": "application/octet-stream", "content-length": str(file.size_bytes)}
        with source.open(file.path) as stream:
            self._send("PUT", f"/v1/artifacts/blobs/{file.sha256}", content=chunks_of(stream), headers=headers)

    def _get(self, path: str, kind: type[T], **params: Any) -> T:
        return self._call("GET", path, kind, params=params)

    def _put(self, path: str, body: Value | Written, kind: type[T], *, params: Mapping[str, Any]) -> T:
        return self._call("PUT", path, kind, body=body, params=params)

    def _call(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: Value | Written | None = None,
        params: Mapping[str, Any] | None = None,
        repeatable: bool = True,
    ) -> T:
        content = None if body is None else body.model_dump_json(by_alias=True, exclude_none=True).encode()
        headers = {} if content is None else {"content-type": "application/json"}
        options = {"content": content, "headers": headers, "params": params}
        if repeatable:
            answer = self._retry(Unavailable, self._send, method, path, **options)
        else:
            answer = self._send(method, path, **options)
        return TypeAdapter(kind).validate_json(answer)

    def _send(self, method: str, path: str, **options: Any) -> bytes:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise no_answer(self._url, error) from error
        if answer.is_error:
            raise error_of(answer, self._url)
        return answer.content

    def _glance(self, look: Callable[[], T]) -> T | None:
        """A look that may fail for a moment, as while the API starts anew."""
        try:
            return look()
        except (Unavailable, DeadlineExceeded):
            return None


def _until(timeout_seconds: float) -> Iterator[None]:
    """One turn now and one every POLL_SECONDS until the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        yield
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(POLL_SECONDS, left))


def _params(**given: Any) -> Mapping[str, Any]:
    """Query parameters without the absent ones; booleans as JSON writes them."""
    return {k: str(v).lower() if isinstance(v, bool) else v for k, v in given.items() if v is not None}
