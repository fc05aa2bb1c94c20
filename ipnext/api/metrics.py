"""Prometheus metrics of the control plane, read from the store and the regions when they are asked for."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ipnext.api.facts import ModelFacts, all_facts
from ipnext.api.metric_families import counter, gauge
from ipnext.api.outbox import Outbox
from ipnext.api.plan_metrics import plan_metrics, replan_metrics
from ipnext.api.platform import Rooms
from ipnext.api.regions import fleet_or_none, region_views
from ipnext.api.status import States, model_status
from ipnext.model.lifecycle import Change, ChangeState
from ipnext.model.resource import RegionView

router = APIRouter(tags=["metrics"])


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(rooms: Rooms) -> Response:
    """Text exposition: changes, models, plan, replans, supply, run durations. Base units; every name begins with `ipnext_`."""
    with rooms.store.read() as unit:
        facts = all_facts(unit)
        fleet, deployments = fleet_or_none(unit), unit.deployments()
        unsubmitted = unit.count_unsubmitted()
        planning = [*plan_metrics(unit, fleet), *replan_metrics(unit)]
    states = rooms.observer.states()
    families = [
        *_change_metrics([c for each in facts for c in each.changes], unsubmitted),
        *_outbox_metrics(rooms.outbox),
        *_model_metrics(facts, states),
        *planning,
        *_region_metrics(region_views(fleet, deployments, states)),
    ]
    registry = CollectorRegistry()
    registry.register(_Given(families))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _Given(Collector):
    """Gives out families that are made already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def _change_metrics(changes: Sequence[Change], unsubmitted: int) -> Iterator[Metric]:
    states = Counter(change.state for change in changes)
    yield gauge(
        "changes", "Recent changes of each model, by state.", ["state"], [([s.value], states[s]) for s in ChangeState]
    )
    yield gauge("changes_unsubmitted", "Recorded changes that wait for the workflow engine.", [], [([], unsubmitted)])
    newest: dict[tuple[str, str, str], float] = {}
    for change in sorted(changes, key=lambda c: c.sequence):
        if change.finished_at is not None:
            seconds = (change.finished_at - change.created_at).total_seconds()
            newest[change.model, change.kind.value, change.state.value] = seconds
    yield gauge(
        "run_duration_seconds",
        "From the record of the newest finished change of a kind to its end.",
        ["model", "kind", "state"],
        newest.items(),
    )


def _outbox_metrics(outbox: Outbox) -> Iterator[Metric]:
    """Of this process: each replica of the API submits."""
    yield gauge(
        "outbox_stuck_changes", "Changes that Temporal refuses or does not take.", [], [([], len(outbox.stuck))]
    )
    yield counter(
        "outbox_refused_total",
        "Submissions that Temporal refused and that are tried again.",
        [],
        [([], outbox.refusals)],
    )


def _model_metrics(facts: Sequence[ModelFacts], states: States) -> Iterator[Metric]:
    statuses = [model_status(each, states) for each in facts]
    yield gauge("models", "Applied models.", [], [([], len(statuses))])
    yield gauge("models_ready", "Models whose newest wanted state serves.", [], [([], sum(s.ready for s in statuses))])
    yield gauge("model_ready", "1 where the model is ready.", ["model"], [([s.model], s.ready) for s in statuses])
    yield gauge(
        "serving_generation",
        "Generation that serves.",
        ["model"],
        [([s.model], s.serving_generation) for s in statuses if s.serving_generation is not None],
    )


def _region_metrics(regions: Sequence[RegionView]) -> Iterator[Metric]:
    labels = ["region", "hardware"]
    supply = [([r.region, item.hardware], item) for r in regions for item in r.supply]
    yield gauge("supply_units", "Units that the fleet has.", labels, [(at, item.units) for at, item in supply])
    yield gauge("supply_used_units", "Units that deployments take.", labels, [(at, item.used) for at, item in supply])
    reachable = [([r.region], float(r.reachable)) for r in regions]
    yield gauge("region_reachable", "1 where the region's infrastructure answers.", ["region"], reachable)
    replicas = Counter((r.region, replica.phase.value) for r in regions for replica in r.replicas)
    yield gauge("replicas", "Replicas by phase.", ["region", "phase"], replicas.items())
