"""Prometheus metrics of the control plane, read from the store and the regions at each request."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ipnext.api.authorization.caller import Visible
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import PlatformAdapters, Rooms
from ipnext.api.metrics.families import counter, gauge
from ipnext.api.metrics.freshness import freshness_metrics
from ipnext.api.metrics.planning import plan_metrics, replan_metrics
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.routes.models.filters import find_contradicted
from ipnext.api.routes.regions.regions import fleet_or_none, region_views
from ipnext.api.schema import NOT_MODIFIED
from ipnext.api.services.hidden_fields import filter_states, redact_fleet
from ipnext.api.services.region_states import States
from ipnext.api.workflow_engine.outbox import Outbox
from ipnext.model.api.resources import RegionView
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.store.repository import Repository

router = APIRouter(tags=["metrics"], route_class=GuardedRoute)

RECENT_HOURS = 24
"""Age of the ended changes that are counted."""

ENDED = 1000
"""Changes, the ones recorded last, among which durations are searched."""


@router.get(
    "/metrics",
    dependencies=[may("models.list")],
    summary="Prometheus metrics",
    response_class=Response,
    responses=NOT_MODIFIED,
)
async def metrics(request: Request, rooms: Rooms, visible: Visible) -> Response:
    """Text exposition: changes, models, plan, replans, supply, run durations.

    Base units; every name begins with `ipnext_`.
    """

    def make(states: States) -> bytes:
        registry = CollectorRegistry()
        registry.register(_Given(_families(rooms, states, visible)))
        return generate_latest(registry)

    return await rooms.shared.answer(request, ("metrics", visible), make, media_type=CONTENT_TYPE_LATEST)


def _families(rooms: PlatformAdapters, states: States, visible: frozenset[str] | None) -> list[Metric]:
    since = datetime.now(UTC) - timedelta(hours=RECENT_HOURS)
    with rooms.store.read(visible) as unit:
        fleet = fleet_or_none(unit)
        counts = unit.change_counts(since)
        return [
            *_change_metrics(counts),
            *_process_metrics(rooms, whole=visible is None),
            *_model_metrics(unit, states, most=rooms.settings.metrics_models),
            *plan_metrics(unit, fleet and redact_fleet(fleet, visible), whole=visible is None),
            *replan_metrics(unit),
            *_region_metrics(region_views(fleet, unit.units_running(), filter_states(states, unit, visible))),
            *_access_metrics(unit, rooms.settings.access_list_bytes, whole=visible is None),
        ]


class _Given(Collector):
    """Collector of finished families."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _change_metrics(counts: Mapping[ChangeState, int]) -> Iterator[Metric]:
    yield gauge(
        "changes",
        "Changes by state: all that are open, and those recorded in the last 24 hours that have ended.",
        ["state"],
        [([s.value], counts.get(s, 0)) for s in ChangeState],
    )
    unsubmitted = counts.get(ChangeState.RECORDED, 0)
    yield gauge("changes_unsubmitted", "Recorded changes that wait for the workflow engine.", [], [([], unsubmitted)])


def _model_metrics(unit: Repository, states: States, *, most: int) -> Iterator[Metric]:
    """Yield counts of the fleet, and series of each model if there are at most `most`."""
    models, recorded = unit.model_counts()
    gone = find_contradicted(unit, states)
    yield gauge("models", "Applied models.", [], [([], models)])
    yield gauge("models_ready", "Models whose newest wanted state serves.", [], [([], recorded - len(gone))])
    if models > most:
        return
    yield from freshness_metrics(unit.serving_snapshots_of_all(), datetime.now(UTC))
    found = unit.served_generations_of_all()
    ready = [([name], float(is_ready and name not in gone)) for name, is_ready, _ in found]
    yield gauge("model_ready", "1 if the model is ready.", ["model"], ready)
    serving = [([name], generation) for name, _, generation in found if generation is not None]
    yield gauge("serving_generation", "Generation that serves.", ["model"], serving)
    yield gauge(
        "run_duration_seconds",
        "From the record of the newest finished change of a kind to its end, among the 1000 changes recorded last.",
        ["model", "kind", "state"],
        unit.run_durations(among=ENDED).items(),
    )


def _access_metrics(unit: Repository, limit: int, *, whole: bool) -> Iterator[Metric]:
    """Yield the size of the access lists, for principals that see all models."""
    if not whole:
        return
    found = unit.access_bytes()
    yield gauge(
        "access_list_bytes",
        "Bytes of the access list of every region, by part: models, or valid keys and roles.",
        ["part"],
        [(["models"], found.models), (["callers"], found.callers)],
    )
    yield gauge("access_list_limit_bytes", "Limit of each part; beyond it applies are refused.", [], [([], limit)])


def _process_metrics(rooms: PlatformAdapters, *, whole: bool) -> Iterator[Metric]:
    """Yield figures of this process, for principals that see all models: they count changes and users of all owners."""
    if whole:
        yield gauge("event_streams", "Open streams of events.", [], [([], rooms.stream.subscribers)])
        yield from _outbox_metrics(rooms.outbox)


def _outbox_metrics(outbox: Outbox) -> Iterator[Metric]:
    """Yield figures of this process's outbox: each replica of the API submits."""
    yield gauge(
        "outbox_stuck_changes",
        "Changes and drains that Temporal does not take.",
        [],
        [([], len(outbox.stuck))],
    )
    yield counter(
        "outbox_refused_total",
        "Submissions that Temporal refused and that are tried again.",
        [],
        [([], outbox.refusals)],
    )


def _region_metrics(regions: Sequence[RegionView]) -> Iterator[Metric]:
    labels = ["region", "hardware"]
    supply = [([r.region, item.hardware], item) for r in regions for item in r.supply]
    yield gauge("supply_units", "Units that the fleet has.", labels, [(at, item.units) for at, item in supply])
    yield gauge("supply_used_units", "Units that deployments take.", labels, [(at, item.used) for at, item in supply])
    reachable = [([r.region], float(r.reachable)) for r in regions]
    yield gauge("region_reachable", "1 if the region's infrastructure answers.", ["region"], reachable)
    behind = [([r.region], r.access_behind_seconds or 0.0) for r in regions if r.reachable]
    yield gauge(
        "region_access_list_behind_seconds",
        "Time since the region has had a newer access list than the one that its router goes by.",
        ["region"],
        behind,
    )
    replicas = [([r.region, phase], count) for r in regions for phase, count in r.phases.items()]
    yield gauge("replicas", "Replicas by phase.", ["region", "phase"], replicas)
