"""No activity that works on many models raises for one of them, or for one region: it names it, and does the others."""

from types import SimpleNamespace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.planning import drift, move_window
from activities.planning.move_window import MoverActivities
from activities.regions import activities as drains
from activities.regions import failover, parsed_sets, reconciliation, recovery
from activities.regions.activities import DrainActivities
from activities.regions.reconciliation import ReconciliationActivities
from ipnext.errors import Forbidden, InvalidInput, IPnextError, Unavailable
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import Done, StageInput
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.model.lifecycle.regions.reconciliation import RegionAsked
from ipnext.model.lifecycle.replans.moves import MoveTurn
from ipnext.model.registry.registry import GenerationState, GraphNode, PartGraph
from ipnext.store.repository import Repository

BAD, MODELS = "m1", ("m0", "m1", "m2", "m3")
OTHERS = tuple(model for model in MODELS if model != BAD)
EAST, EUROPE = "us-east", "eu-west"
GRAPH = PartGraph(nodes=(GraphNode(name="p", part="p", inputs={"x": "request.x"}),), outputs={"y": "p.y"})
PART = {"name": "p", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}

ERRORS = (
    InvalidInput("shares.to: region 'ap' is not in the agent's peers file", field="shares.to", value="ap"),
    IPnextError("the agent answered 500: oops"),
    Forbidden("this component may not route"),
    KeyError("dense"),
    ValueError("not JSON"),
)


@pytest.fixture(params=ERRORS, ids=lambda error: type(error).__name__)
def error(request):
    return request.param


class Refusing(MemoryInfrastructure):
    """Calls for a model, or of a region, raise an error."""

    def __init__(self) -> None:
        super().__init__((EAST, EUROPE))
        self.of_model, self.of_region = {}, {}

    def _check(self, call, model, region):
        error = self.of_model.get((call, model)) or self.of_region.get((call, region))
        if error is not None:
            raise error

    def observe(self, region, models=None):
        self._check("observe", None, region)
        return super().observe(region, models)

    def route(self, table):
        self._check("route", table.model, table.region)
        super().route(table)

    def apply(self, deployment):
        self._check("apply", deployment.key.model, deployment.key.region)
        super().apply(deployment)

    def unroute(self, model, region):
        self._check("unroute", model, region)
        super().unroute(model, region)

    def delete(self, key):
        self._check("delete", key.model, key.region)
        super().delete(key)


def key(model, region):
    return DeploymentKey(model=model, part="p", region=region, hardware="cpu")


def table(model, region, *shares, revision=1, generations=(1,)):
    served = tuple(ServedGeneration(generation=number, graph=GRAPH, snapshots={"p": number}) for number in generations)
    found = tuple(RouteShare(to=to, generation=generation, fraction=part) for to, generation, part in shares)
    return RouteTable(model=model, region=region, revision=revision, shares=found, served=served)


@pytest.fixture(scope="module")
def fleet_database(kit, migrated, tmp_path_factory):
    """Models that serve generation 1 in two regions; half of each model's users in the east are sent to Europe."""
    house = kit.House(tmp_path_factory.mktemp("fleet"), migrated)
    house.apply_fleet()
    source = house.source(kit.SPARSE, kit.weights(1))
    for model in MODELS:
        house.apply(model, parts=[PART], graph=None, demand=[{"region": EAST, "qps": 10}])
        with house.store.begin() as unit:
            change = unit.publish(model, {"p": source}, change_id=f"{model}-1")
            unit.update_change(change.id, state=ChangeState.DONE)
            unit.set_generation_state(model, 1, GenerationState.SERVING)
            unit.update_model(model, serving_generation=1)
            held = AssignedSnapshot(snapshot=1, digest="d" * 64, uri="file:///d", generations=(1,))
            for region in (EAST, EUROPE):
                own = {"engine": "torch", "units": 1, "qps": 100, "holds": (held,)}
                unit.put_deployment(Deployment(key=key(model, region), replicas=2, **own))
            unit.put_route(table(model, EAST, (EAST, 1, 0.5), (EUROPE, 1, 0.5)))
            unit.put_route(table(model, EUROPE, (EUROPE, 1, 1.0)))
    house.close()
    return house.root / "ipnext.db"


class Fleet:
    """The activities over a copy of the database."""

    def __init__(self, house) -> None:
        self.store, self.infrastructure = house.store, Refusing()

    def lose(self, state=DrainState.DRAINING):
        with self.store.begin() as unit:
            drain = unit.add_drain(EUROPE, disaster=True)
            if state is not DrainState.RECORDED:
                unit.update_drain(drain.id, state=state)

    def drain(self):
        with self.store.read() as unit:
            return unit.drain(EUROPE)

    def run(self, name, argument):
        activities = (
            *DrainActivities(self.store, self.infrastructure, lambda: None, lambda *_: None).all(),
            *ReconciliationActivities(self.store, self.infrastructure).all(),
            *DeploymentActivities(self.store, self.infrastructure).all(),
        )
        (found,) = (each for each in activities if each.__name__ == name)
        return ActivityEnvironment().run(found, argument)

    def around(self):
        """Models whose users are sent to the east alone, by the store."""
        with self.store.read() as unit:
            tables = {model: unit.route(model, EAST) for model in MODELS}
        return tuple(model for model, found in tables.items() if {share.to for share in found.shares} == {EAST})


@pytest.fixture
def fleet(kit, fleet_database, tmp_path, monkeypatch):
    monkeypatch.setattr(failover, "FIRST_BATCH", 2)
    house = kit.House(tmp_path, fleet_database)
    yield Fleet(house)
    house.close()


def fail_for(monkeypatch, where, name, error, *, of=lambda found: found):
    """Let a function raise if its argument concerns the bad model."""
    real = getattr(where, name)

    def failing(first, *more, **named):
        found = of((first, *more))
        if found == BAD or (isinstance(found, list | tuple) and BAD in found):
            raise error
        return real(first, *more, **named)

    monkeypatch.setattr(where, name, failing)


@pytest.fixture(params=["route", "read", "compute", "store"])
def break_failover(request, fleet, monkeypatch, error):
    """Let one step of the failover fail for one model."""
    if request.param == "route":
        fleet.infrastructure.of_model["route", BAD] = error
    elif request.param == "read":
        fail_for(monkeypatch, failover, "read_routed", error, of=lambda given: tuple(given[1]))
    elif request.param == "compute":
        fail_for(monkeypatch, failover, "tables_around", error, of=lambda given: given[0].model)
    else:
        tables = lambda given: tuple(each.model for each in given[1])  # noqa: E731
        fail_for(monkeypatch, Repository, "put_routes", error, of=tables)


@pytest.mark.usefixtures("break_failover")
def test_a_failover_sends_all_others_around_and_names_the_model(fleet):
    fleet.lose(DrainState.RECORDED)

    seen = fleet.run("route_around", DrainInput(region=EUROPE))

    assert fleet.around() == OTHERS
    assert (seen.state, seen.misrouted > 0) == (DrainState.DRAINING, True)
    assert f"not done, and tried again: {BAD}" in fleet.drain().message
    assert fleet.drain().replan_id is not None


def test_a_failover_tries_the_model_again(fleet, error):
    fleet.infrastructure.of_model["route", BAD] = error
    fleet.lose(DrainState.RECORDED)
    fleet.run("route_around", DrainInput(region=EUROPE))
    fleet.infrastructure.of_model.clear()

    fleet.run("route_around", DrainInput(region=EUROPE))

    assert fleet.around() == MODELS
    assert "tried again" not in fleet.drain().message


@pytest.mark.parametrize("call", ["observe", "route"])
def test_a_failover_survives_a_region_whose_calls_all_fail(fleet, error, call):
    fleet.infrastructure.of_region[call, EAST] = error
    fleet.lose(DrainState.RECORDED)

    seen = fleet.run("route_around", DrainInput(region=EUROPE))

    assert (seen.state, fleet.around()) == (DrainState.DRAINING, ())
    assert "tried again" in fleet.drain().message


def test_a_drain_is_looked_at_though_the_demand_of_a_model_cannot_be_read(fleet, error, monkeypatch):
    fail_for(monkeypatch, Repository, "demands", error, of=lambda given: tuple(given[1]))
    fleet.lose()

    seen = fleet.run("look_at_drain", DrainInput(region=EUROPE))

    sent = len(OTHERS) * 10 * 0.5
    assert (seen.misrouted, seen.models_left, seen.traffic_left_qps) == (2 * len(MODELS), len(MODELS), sent)


@pytest.fixture(params=["route", "apply", "read", "compute", "decode", "repair"])
def break_return(request, fleet, monkeypatch, error):
    """Let one step of a region's restoration fail for one model."""
    if request.param in {"route", "apply"}:
        fleet.infrastructure.of_model[request.param, BAD] = error
    elif request.param == "read":
        fail_for(monkeypatch, recovery, "read_routed", error, of=lambda given: tuple(given[1]))
    elif request.param == "compute":
        fail_for(monkeypatch, recovery, "may_have_drifted", error, of=lambda given: given[0].model)
    elif request.param == "decode":
        document = lambda given: BAD if BAD in given[1] else None  # noqa: E731
        fail_for(monkeypatch, recovery, "decode_frozen", error, of=document)
    else:
        with fleet.store.begin(BAD) as unit:
            unit.put_route(table(BAD, EAST, (EAST, 2, 1.0), revision=2, generations=(1, 2)))
        fail_for(monkeypatch, drains, "record_repair", error, of=lambda given: given[1])


@pytest.mark.usefixtures("break_return")
def test_a_region_is_restored_for_all_others_and_names_the_model(fleet):
    fleet.lose(DrainState.RETURNING)

    seen = fleet.run("return_region", DrainInput(region=EUROPE))

    assert seen.state is DrainState.RETURNED
    assert BAD in seen.message
    assert all(fleet.infrastructure.table(model, EUROPE) is not None for model in OTHERS)
    assert all(fleet.infrastructure.deployment(key(model, EUROPE)) is not None for model in OTHERS)


def test_a_region_that_refuses_all_stays_out(fleet, error):
    fleet.infrastructure.of_region["observe", EUROPE] = error
    fleet.lose(DrainState.RETURNING)

    seen = fleet.run("return_region", DrainInput(region=EUROPE))

    assert (seen.state, seen.message.startswith("asked back, but ")) == (DrainState.RETURNING, True)


@pytest.mark.parametrize("call", ["route", "apply"])
def test_a_region_is_reconciled_for_all_others(fleet, error, call):
    fleet.infrastructure.of_model[call, BAD] = error

    seen = fleet.run("reconcile_region", RegionAsked(region=EAST))

    assert (seen.reachable, set(seen.failed)) == (True, {BAD})
    assert all(fleet.infrastructure.deployment(key(model, EAST)) is not None for model in OTHERS)
    assert all(fleet.infrastructure.table(model, EAST) is not None for model in OTHERS)


def test_a_model_that_cannot_be_read_keeps_what_its_region_has(fleet, error, monkeypatch):
    fleet.run("reconcile_region", RegionAsked(region=EAST))
    fail_for(monkeypatch, parsed_sets, "_parse_set", error, of=lambda given: BAD if BAD in given[0] else None)
    seen = fleet.run("reconcile_region", RegionAsked(region=EAST))

    assert (seen.reachable, set(seen.failed)) == (True, {BAD})
    assert fleet.infrastructure.deployment(key(BAD, EAST)).replicas == 2
    assert fleet.infrastructure.table(BAD, EAST) is not None


@pytest.mark.parametrize("step", ["repair", "withdraw"])
def test_repairs_of_all_others_are_recorded(fleet, error, monkeypatch, step):
    for model in OTHERS:
        with fleet.store.begin(model) as unit:
            unit.put_route(table(model, EAST, (EAST, 2, 1.0), revision=2, generations=(1, 2)))
    if step == "withdraw":
        with fleet.store.begin(BAD) as unit:
            unit.update_model(BAD, serving_generation=None)
        fleet.infrastructure.of_model["unroute", BAD] = error
    else:
        with fleet.store.begin(BAD) as unit:
            unit.put_route(table(BAD, EAST, (EAST, 2, 1.0), revision=2, generations=(1, 2)))
        fail_for(monkeypatch, reconciliation, "record_repair", error, of=lambda given: given[1])

    recorded = fleet.run("record_repairs", Done())

    assert (recorded.repairs, set(recorded.failed)) == (len(OTHERS), {BAD})


def test_repairs_are_recorded_though_a_model_of_a_region_that_is_back_cannot_be_read(fleet, error, monkeypatch):
    fleet.lose(DrainState.RETURNED)
    for model in MODELS:
        with fleet.store.begin(model) as unit:
            unit.put_route(table(model, EAST, (EAST, 2, 1.0), revision=2, generations=(1, 2)))
    fail_for(monkeypatch, drift, "describe_astray", error, of=lambda given: tuple(each.model for each in given[0]))

    recorded = fleet.run("record_repairs", Done())

    assert (recorded.repairs, set(recorded.failed)) == (len(OTHERS), {BAD})


@pytest.mark.parametrize(("name", "call"), [("withdraw_model", "unroute"), ("release_model", "delete")])
def test_a_retirement_goes_on_in_all_other_regions_and_is_tried_again(fleet, error, name, call):
    for region in (EAST, EUROPE):
        fleet.run("reconcile_region", RegionAsked(region=region))
    with fleet.store.begin(BAD) as unit:
        change = unit.add_change(BAD, ChangeKind.RETIRE, change_id="retirement")
        unit.update_change(change.id, state=ChangeState.RUNNING)
    fleet.infrastructure.of_region[call, EUROPE] = error
    stage = StageInput(model=BAD, change_id=change.id, kind=ChangeKind.RETIRE, generation=0)

    with pytest.raises(Unavailable, match=f"region '{EUROPE}'.*trying again"):
        fleet.run(name, stage)

    has = fleet.infrastructure
    left = has.table(BAD, EAST) if call == "unroute" else has.deployment(key(BAD, EAST)).replicas
    assert not left


@pytest.fixture
def moving(fleet, monkeypatch):
    """A plan by which all models wait to move; there is room for all of them."""
    with fleet.store.begin("plan") as unit:
        unit.list_moves("plan", MODELS)
    monkeypatch.setattr(Repository, "placement", lambda _, model: SimpleNamespace(model=model, plan_id="plan"))
    monkeypatch.setattr(move_window, "fits", lambda *_: True)
    monkeypatch.setattr(move_window, "_room_of", lambda _, found: found)

    def record(_, model, _kind, *, change_id, plan_id):
        return SimpleNamespace(id=change_id, model=model, plan_id=plan_id, state=ChangeState.RECORDED)

    monkeypatch.setattr(Repository, "add_change", record)
    return fleet


@pytest.mark.parametrize("step", ["placement", "add_change", "submit"])
def test_all_other_models_are_asked_to_move(moving, error, monkeypatch, step):
    submitted = []

    def submit(change):
        if step == "submit" and change.model == BAD:
            raise error
        submitted.append(change.model)

    if step != "submit":
        fail_for(monkeypatch, Repository, step, error, of=lambda given: given[1])
    turn = MoveTurn(plan_id="plan", window=len(MODELS), asking=True)
    ActivityEnvironment().run(MoverActivities(moving.store, submit).move_models, turn)

    with moving.store.read() as unit:
        failed = {found.model for found in unit.newest_failures("plan", limit=9)}
    assert sorted(submitted) == sorted(OTHERS)
    assert failed == (set() if step == "submit" else {BAD})
