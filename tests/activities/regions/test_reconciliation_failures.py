"""A model that fails holds up the reconciliation of no other one."""

import threading

import pytest
from temporalio.testing import ActivityEnvironment

from activities.regions import reconciliation
from activities.regions.reconciliation import ReconciliationActivities
from ipnext.errors import Conflict, IPnextError, RegionUnreachable, RouteFailed
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.regions.reconciliation import RegionAsked, RegionReconciled
from ipnext.model.registry.registry import GenerationState, PartGraph
from tests.waiting import PATIENCE_SECONDS

EAST = "us-east"
MODELS = ("first", "second")


GRAPH = PartGraph.model_validate(
    {"nodes": [{"name": "dense", "part": "dense", "inputs": {"x": "request.x"}}], "outputs": {"y": "dense.y"}}
)


def key(model):
    return DeploymentKey(model=model, part="dense", region=EAST, hardware="cpu")


def table(model, generation):
    """Send users to a generation; the revision has its number."""
    served = (ServedGeneration(generation=generation, graph=GRAPH, snapshots={"dense": generation}),)
    shares = (RouteShare(to=EAST, generation=generation, fraction=1.0),)
    return RouteTable(model=model, region=EAST, revision=generation, shares=shares, served=served)


@pytest.fixture
def stored(house):
    """Both models serve generation 1 in the store; the region has nothing of either."""
    for model in MODELS:
        house.apply(model)
        change = house.publish(model, 1)
        held = AssignedSnapshot(part=None, snapshot=1, digest="d" * 64, uri="file:///d", generations=(1,), signers=None)
        own = {"engine": "torch", "units": 1, "qps": 100, "memory_bytes": 1, "holds": (held,)}
        with house.store.begin(model) as unit:
            unit.update_change(change.id, state=ChangeState.DONE)
            unit.set_generation_state(model, 1, GenerationState.SERVING)
            unit.update_model(model, serving_generation=1)
            unit.put_deployment(Deployment(key=key(model), replicas=2, **own))
            unit.put_route(table(model, 1))
    return house


@pytest.fixture
def reconcile(stored):
    """One pass over the region."""
    activities = ReconciliationActivities(stored.store, stored.infrastructure)
    return lambda: ActivityEnvironment().run(activities.reconcile_region, RegionAsked(region=EAST))


@pytest.fixture
def fail(stored, monkeypatch):
    """Let a kind of call fail for the first model."""

    def begin(call, error):
        real = getattr(stored.infrastructure, call)

        def failing(found):
            if (found.model if call == "route" else found.key.model) == MODELS[0]:
                raise error
            real(found)

        monkeypatch.setattr(stored.infrastructure, call, failing)

    return begin


@pytest.mark.parametrize("call", ["apply", "route"])
@pytest.mark.parametrize("error", [RouteFailed("refused"), Conflict("refused")], ids=["unavailable", "conflict"])
def test_a_model_whose_call_fails_is_reported_and_the_next_ones_are_told(stored, reconcile, fail, call, error):
    fail(call, error)

    seen = reconcile()

    assert (seen.reachable, dict(seen.failed)) == (True, {"first": "refused"})
    assert stored.infrastructure.deployment(key("second")).replicas == 2
    assert stored.infrastructure.table("second", EAST).revision == 1


def test_a_gateway_without_a_table_gets_it_although_replicas_fail(stored, reconcile, fail):
    fail("apply", Conflict("no such hardware"))

    reconcile()

    assert stored.infrastructure.table("first", EAST).revision == 1, "other regions may answer its users"


def test_a_region_that_stops_to_answer_ends_the_pass(reconcile, fail):
    fail("apply", RegionUnreachable("gone"))

    assert reconcile() == RegionReconciled(region=EAST, reachable=False)


def test_a_model_whose_repair_fails_keeps_no_other_from_its_repair(stored, monkeypatch):
    for model in MODELS:
        with stored.store.begin(model) as unit:
            unit.put_route(table(model, 2))
    real = reconciliation.record_repair

    def failing(repository, model):
        if model == MODELS[0]:
            msg = "another writer was first"
            raise IPnextError(msg)
        return real(repository, model)

    monkeypatch.setattr(reconciliation, "record_repair", failing)
    activities = ReconciliationActivities(stored.store, stored.infrastructure)

    recorded = ActivityEnvironment().run(activities.record_repairs, Done())

    assert (recorded.models, dict(recorded.failed)) == (("second",), {"first": "another writer was first"})


def test_a_silent_region_is_called_once_for_all_unserved_models_after_repairs_are_recorded(stored, monkeypatch):
    with stored.store.begin() as unit:
        unit.put_route(table("first", 2))
        for model in ("third", "fourth"):
            unit.put_model(unit.model("second").manifest.model_copy(update=named(unit, model)), expected_version=None)
            unit.put_route(table(model, 1))
    called = []

    def silent(model, region):
        with stored.store.read() as unit:
            called.append((region, [change.kind for change in unit.changes("first", limit=1)]))
        msg = f"{region} does not answer {model}"
        raise RegionUnreachable(msg)

    monkeypatch.setattr(stored.infrastructure, "unroute", silent)
    activities = ReconciliationActivities(stored.store, stored.infrastructure)

    recorded = ActivityEnvironment().run(activities.record_repairs, Done())

    assert recorded.models == ("first",)
    assert called == [("eu-west", [ChangeKind.REPAIR])]


def named(unit, model):
    metadata = unit.model("second").manifest.metadata
    return {"metadata": metadata.model_copy(update={"name": model})}


@pytest.fixture
def many(stored):
    """As many models in the region as calls run side by side."""
    for number in range(reconciliation.CALLS - len(MODELS)):
        model = f"more{number}"
        with stored.store.begin() as unit:
            unit.put_model(unit.model("second").manifest.model_copy(update=named(unit, model)), expected_version=None)
            unit.update_model(model, serving_generation=1)
            unit.put_deployment(unit.deployment(key("second")).model_copy(update={"key": key(model)}))
            unit.put_route(table(model, 1))
    return stored


@pytest.mark.parametrize("call", ["apply", "route"])
def test_replica_sets_and_tables_are_sent_side_by_side(many, reconcile, monkeypatch, call):
    """All calls meet, or none returns."""
    meeting, real = threading.Barrier(reconciliation.CALLS), getattr(many.infrastructure, call)

    def met(found):
        meeting.wait(PATIENCE_SECONDS)
        real(found)

    monkeypatch.setattr(many.infrastructure, call, met)

    seen = reconcile()

    assert (dict(seen.failed), seen.applied, seen.routed) == ({}, reconciliation.CALLS, reconciliation.CALLS)


def test_a_region_that_stops_to_answer_is_not_called_for_all_its_models(many, reconcile, monkeypatch):
    called = []

    def away(found):
        called.append(found.key)
        msg = "gone"
        raise RegionUnreachable(msg)

    monkeypatch.setattr(reconciliation, "CALLS", 2)
    monkeypatch.setattr(many.infrastructure, "apply", away)

    assert reconcile() == RegionReconciled(region=EAST, reachable=False)
    assert len(called) <= 2
