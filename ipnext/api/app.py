"""The application: routers, error handlers, the outbox in the background. Created once, at the composition root."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

import ipnext
from ipnext.access.policy import policies_of
from ipnext.api.authorization.access import Access
from ipnext.api.authorization.audit_entries import Recorder
from ipnext.api.authorization.authentication import Authentication
from ipnext.api.authorization.entry_budget import EntryBudget
from ipnext.api.authorization.machine_details import MachineDetails
from ipnext.api.authorization.persons import persons_of
from ipnext.api.dependencies import PlatformAdapters
from ipnext.api.errors import install_error_handlers
from ipnext.api.metrics import endpoint
from ipnext.api.requests.body_limit import ApiBodyBudget, BodyLimit
from ipnext.api.requests.guarded_route import AT_ONCE
from ipnext.api.requests.json_bodies import LARGE_AT_ONCE, JsonBodies
from ipnext.api.requests.origins import SourceCheck
from ipnext.api.requests.shared_answers import SharedAnswers
from ipnext.api.requests.stream import Stream
from ipnext.api.requests.turns import Turns
from ipnext.api.routes.access import audit, keys, proof, roles, sessions, temporal_ui
from ipnext.api.routes.models import controls, history, logs, models, owners, publications, repairs, stages, validators
from ipnext.api.routes.models.registry import artifacts, denials, profiles, snapshots, sources, webhooks
from ipnext.api.routes.page import health, overview, page
from ipnext.api.routes.regions import drains, fleet, freezes, plans, regions
from ipnext.api.schema import ERRORS, OF_PROBES, Api
from ipnext.api.services.region_observer import RegionObserver
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.api.workflow_engine.port import Lifecycle
from ipnext.api.workflow_engine.resubmission import Resubmission
from ipnext.api.workflow_engine.source_wakes import SourceWakes
from ipnext.artifacts.port import ArtifactStore
from ipnext.infra.port import Infrastructure
from ipnext.network.allowed_hosts import AllowedHosts
from ipnext.optimization_kinds import OptimizationKinds
from ipnext.platform.access.settings import read_access_settings
from ipnext.plugins import Plugins
from ipnext.settings import PlatformSettings
from ipnext.sources.kinds import SourceKinds
from ipnext.stages.kinds import StageKinds
from ipnext.store.store import Store

DESCRIPTION = """Registry, lifecycle, plans and serving metadata of IPnext.

Writes are idempotent: PUT takes `expectedVersion`, publish and rollback take a `changeId`. A change that was answered
with 202 is recorded and will be carried out, even while the workflow engine is down. Every other answer than a success
has a body with `code` and `message`, and where they help `field`, `value` and `allowed`.
"""


def create_app(
    store: Store,
    artifacts_store: ArtifactStore,
    infrastructure: Infrastructure,
    lifecycle: Lifecycle,
    settings: PlatformSettings,
    *,
    observer: RegionObserver | None = None,
) -> FastAPI:
    """Create the API over the given adapters. The caller closes them after the application has ended."""
    outbox, resubmission = Outbox(store, lifecycle), Resubmission(store, lifecycle)
    source_wakes = SourceWakes(store, lifecycle)
    observer = observer or RegionObserver(infrastructure)
    shared = SharedAnswers(observer.states, store.revision)

    async def show(visible: frozenset[str] | None, holder: str | None) -> str:
        return await overview.overview_mark(app.state.platform, visible, holder)

    stream = Stream(store, shared.look, shown=show)
    recorder = Recorder(store)
    access = _access_of(settings, store)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with outbox.running(), resubmission.running(), source_wakes.running(), access.running():
            yield
            await stream.close()
        await recorder.close()
        observer.close()

    app = Api(
        title="IPnext",
        version=ipnext.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.platform = PlatformAdapters(
        store,
        artifacts_store,
        infrastructure,
        lifecycle,
        outbox,
        observer,
        shared,
        stream,
        settings,
        Plugins(),
        access,
        read_access_settings(settings),
        source_wakes,
        SourceKinds(),
        OptimizationKinds(),
        StageKinds(settings.lifecycle),
    )
    install_error_handlers(app)
    app.state.requests = Turns(AT_ONCE)
    app.state.large_bodies = Turns(LARGE_AT_ONCE)
    app.add_middleware(JsonBodies, large=app.state.large_bodies)
    app.state.bodies = ApiBodyBudget(settings.api_body_budget_bytes)
    app.add_middleware(
        BodyLimit,
        seconds=settings.api_header_seconds,
        budget=app.state.bodies,
        authenticated=access.required,
    )
    app.state.recorder = recorder
    app.add_middleware(Authentication, access=access, recorder=recorder)
    app.add_middleware(MachineDetails, required=access.required)
    app.add_middleware(SourceCheck, allowed=AllowedHosts(settings.allowed_hosts, settings.allowed_origins))
    nouns = (
        models,
        publications,
        snapshots,
        sources,
        repairs,
        controls,
        history,
        logs,
        artifacts,
        profiles,
        plans,
        fleet,
        owners,
        freezes,
        regions,
        drains,
        overview,
        validators,
        stages,
        denials,
        keys,
        roles,
        sessions,
        proof,
        audit,
        temporal_ui,
    )
    for noun in nouns:
        app.include_router(noun.router, responses=ERRORS)
    app.include_router(drains.listing, responses=ERRORS)
    app.include_router(sources.listing, responses=ERRORS)
    app.include_router(snapshots.listing, responses=ERRORS)
    app.include_router(webhooks.router, responses=ERRORS)
    app.include_router(endpoint.router, responses=ERRORS)
    app.include_router(health.router, responses=OF_PROBES)
    app.include_router(page.router)
    app.mount("/web", page.assets(), name="web")
    return app


def _access_of(settings: PlatformSettings, store: Store) -> Access:
    """Return access control by keys, and by tokens if an identity provider is configured. Raises InvalidInput."""
    policies, required = policies_of(settings.policies_file), settings.authentication == "required"
    persons, entries = persons_of(settings, store), EntryBudget(settings.audit_entries_per_hour)
    if persons is None:
        return Access(store, policies, required=required, entries=entries)
    return Access(
        store,
        policies,
        required=required,
        tokens=persons.prove,
        prove_user=persons.prove_again,
        entries=entries,
    )
