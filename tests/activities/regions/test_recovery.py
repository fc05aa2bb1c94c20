"""Recovery of a region that was lost.

Only differences are applied, in short units of work, whatever else is written meanwhile.
"""

import itertools
import shutil
import threading
from collections import Counter
from contextlib import closing, contextmanager
from types import SimpleNamespace

import pytest
from sqlalchemy import event
from temporalio.testing import ActivityEnvironment

from activities.regions import recovery as returning
from activities.regions.activities import DrainActivities
from activities.regions.failover import BATCH
from activities.regions.recovery import CALLS, PASSES, RegionRecovery
from ipnext.errors import InvalidInput, RegionUnreachable, Unavailable
from ipnext.infra.fake.infrastructure import MemoryInfrastructure
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.fleet import FleetSpec, SupplyItem
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.model.registry.registry import GenerationState, GraphNode, PartGraph
from ipnext.store.store import Store
from tests.waiting import PATIENCE_SECONDS

GRAPH = PartGraph(nodes=(GraphNode(name="p", part="p", inputs={"x": "request.x"}),), outputs={"y": "p.y"})
MODELS = 80
NAMES = tuple(f"m{number:03}" for number in range(MODELS))
EUROPE = "eu-west"

STATEMENTS = 25
"""Of a whole return, beside those of its batches: each pass reads marks, and the drain's end is recorded."""

STATEMENTS_OF_A_BATCH = 13
STATEMENTS_OF_A_UNIT = 8
"""Of one that writes: it holds up writers of its models, or of all."""


def table(region: str, to: str, sent: int, *known: int, model: str = "m", revision: int = 1) -> RouteTable:
    served = tuple(ServedGeneration(generation=number, graph=GRAPH, snapshots={"p": number}) for number in known)
    shares = (RouteShare(to=to, generation=sent, fraction=1.0),)
    return RouteTable(model=model, region=region, revision=revision, shares=shares, served=served)


def replica_set(model: str, region: str, *, replicas: int = 2) -> Deployment:
    key = DeploymentKey(model=model, part="p", region=region, hardware="cpu")
    held = AssignedSnapshot(snapshot=1, digest="d" * 64, uri="file:///d", generations=(1,))
    return Deployment(key=key, replicas=replicas, engine="torch", units=1, qps=100, holds=(held,))


class Gateways(MemoryInfrastructure):
    """Counts calls; `meanwhile` runs at each, `refuse` maps models to the error of their calls."""

    def __init__(self) -> None:
        super().__init__(("us-east", EUROPE))
        self.told, self.refuse, self.meanwhile = Counter(), {}, lambda: None

    def _remember(self, call, subject, refused) -> None:
        """No history: it would cost more than the work."""

    def route(self, table):
        self._said("route", table.model)
        super().route(table)

    def apply(self, deployment):
        self._said("apply", deployment.key.model)
        super().apply(deployment)

    def delete(self, key):
        self._said("delete", key.model)
        super().delete(key)

    def unroute(self, model, region):
        self._said("unroute", model)
        super().unroute(model, region)

    def _said(self, call, model):
        if model in self.refuse:
            raise self.refuse[model]
        self.told[call] += 1
        self.meanwhile()


@pytest.fixture(scope="module")
def filled(kit, tmp_path_factory, migrated):
    """A database with models that serve generation 1 in both regions; Europe was lost and is asked back."""
    house = kit.House(tmp_path_factory.mktemp("filled"), migrated)
    source = house.source(kit.SPARSE, kit.weights(1))
    part = {"name": "p", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
    house.apply_fleet()
    house.apply("template", parts=[part], graph=None, demand=[{"region": EUROPE, "qps": 10}])
    with house.store.begin() as unit:
        manifest = unit.model("template").manifest
        for name in NAMES:
            named = manifest.model_copy(update={"metadata": manifest.metadata.model_copy(update={"name": name})})
            unit.put_model(named, expected_version=None)
            change = unit.publish(name, {"p": source}, change_id=f"{name}-1")
            unit.set_generation_state(name, 1, GenerationState.SERVING)
            unit.update_model(name, serving_generation=1)
            unit.update_change(change.id, state=ChangeState.DONE)
            for region in ("us-east", EUROPE):
                unit.put_deployment(replica_set(name, region))
                unit.put_route(table(region, region, 1, 1, model=name))
        drain = unit.add_drain(EUROPE, disaster=True)
        unit.update_drain(drain.id, state=DrainState.RETURNING)
    house.close()
    return house.root / "ipnext.db"


@pytest.fixture
def fleet(filled, tmp_path):
    """That database, and gateways that know nothing."""
    shutil.copy(filled, tmp_path / "ipnext.db")
    with closing(Store.open(f"sqlite:///{tmp_path}/ipnext.db")) as store:
        yield SimpleNamespace(store=store, gateways=Gateways())


def bring_back(fleet):
    activities = DrainActivities(fleet.store, fleet.gateways, lambda: None, lambda *_: None)
    return ActivityEnvironment().run(activities.return_region, DrainInput(region=EUROPE))


def change_table(fleet, model, **change):
    """Store a later table, as a change does that runs while the region is lost."""
    with fleet.store.begin(model) as unit:
        found = unit.route(model, EUROPE)
        unit.put_route(found.model_copy(update={"revision": found.revision + 1, **change}))


def stored(fleet, *, region=EUROPE):
    with fleet.store.read() as unit:
        return {found.model: found for found in unit.routes() if found.region == region}


def agrees(fleet):
    """Whether the region has exactly what the store has of it."""
    tables = stored(fleet)
    with fleet.store.read() as unit:
        sets = {found.key: found for found in unit.deployments_in(EUROPE)}
    return (
        all(fleet.gateways.table(model, EUROPE) == found for model, found in tables.items())
        and fleet.gateways.observe(EUROPE).routes.keys() == tables.keys()
        and all(fleet.gateways.deployment(key) == found for key, found in sets.items())
    )


@contextmanager
def units(store):
    """Statements of each unit of work of the store: (writes, statements)."""
    found, open_units = [], {}

    def began(connection):
        open_units[id(connection)] = []

    def ran(connection, _cursor, statement, *_):
        open_units.setdefault(id(connection), []).append(statement)

    def ended(connection):
        statements = open_units.pop(id(connection), [])
        found.append((any(not s.startswith(("SELECT", "BEGIN")) for s in statements), len(statements)))

    hooks = {"begin": began, "before_cursor_execute": ran, "commit": ended, "rollback": ended}
    for name, hook in hooks.items():
        event.listen(store._engine, name, hook)
    yield found
    for name, hook in hooks.items():
        event.remove(store._engine, name, hook)


@pytest.mark.parametrize(("sent", "kept"), [(2, [1, 2]), (1, [1])])
def test_its_router_keeps_what_gateways_of_other_regions_send_there(house, monkeypatch, sent, kept):
    """Its processes are to hold generation 1 only. Generation 3 was known, and nobody sends to it."""
    own, other = table("us-east", "us-east", 1, 1, 2, 3), table("eu-west", "us-east", sent)
    facts = SimpleNamespace(model="m", tables={"us-east": own, "eu-west": other}, deployments={}, shadow=None)
    monkeypatch.setattr(returning, "served_generations", lambda *_: own.served[:1])
    state = RegionState(region="us-east", gateway_url="http://gateway", routes={"m": 4})
    monkeypatch.setattr(house.infrastructure, "observe", lambda _: state)

    told = RegionRecovery(house.store, house.infrastructure, "us-east")._table(facts, 1)

    assert ([found.generation for found in told.served], told.revision, told.shares) == (kept, 5, own.shares)


@pytest.mark.parametrize("ahead", [False, True], ids=["knows nothing", "is ahead of the store"])
def test_a_region_gets_all_of_it_in_few_statements_and_short_units(fleet, ahead):
    """A gateway that is ahead has tables that were never stored: the later ones that it gets are."""
    for name in NAMES if ahead else ():
        fleet.gateways.route(table(EUROPE, "us-east", 1, 1, model=name, revision=7))
    fleet.gateways.told.clear()

    with units(fleet.store) as found:
        seen = bring_back(fleet)

    assert seen.state is DrainState.RETURNED
    assert agrees(fleet)
    assert {held.revision for held in stored(fleet).values()} == {8 if ahead else 1}
    assert fleet.gateways.told == {"route": MODELS, "apply": MODELS}
    batches = -(-MODELS // BATCH)
    assert sum(count for _, count in found) <= STATEMENTS + STATEMENTS_OF_A_BATCH * batches
    assert max(count for writes, count in found if writes) <= STATEMENTS_OF_A_UNIT


def test_nothing_is_told_to_a_region_that_has_it(fleet):
    before = stored(fleet)
    for name in NAMES:
        fleet.gateways.apply(replica_set(name, EUROPE))
        fleet.gateways.route(before[name])
    fleet.gateways.told.clear()

    assert bring_back(fleet).state is DrainState.RETURNED

    assert fleet.gateways.told == {}
    assert stored(fleet) == before


def test_only_what_differs_is_told(fleet):
    tables = stored(fleet)
    for name in NAMES[3:]:
        fleet.gateways.apply(replica_set(name, EUROPE))
        fleet.gateways.route(tables[name])
    fleet.gateways.apply(replica_set(NAMES[0], EUROPE, replicas=1))
    fleet.gateways.route(table(EUROPE, "us-east", 1, 1, model=NAMES[1]))  # same revision, other content
    fleet.gateways.route(table(EUROPE, "us-east", 1, 1, model="unknown"))
    fleet.gateways.apply(replica_set("unknown", EUROPE))
    fleet.gateways.told.clear()

    assert bring_back(fleet).state is DrainState.RETURNED

    assert fleet.gateways.told == {"route": 3, "apply": 3, "unroute": 1, "delete": 1}
    assert agrees(fleet)


@pytest.mark.parametrize("calls", [1, 5])
def test_changes_of_all_models_during_its_calls_do_not_hold_a_region_up(fleet, calls):
    """A change stores a table at every call, or at every fifth one: then the last pass finds nothing that differs."""
    numbers = itertools.count()

    def change_another():
        if (number := next(numbers)) % calls == 0:
            change_table(fleet, NAMES[number // calls % MODELS])

    fleet.gateways.meanwhile = change_another

    assert bring_back(fleet).state is DrainState.RETURNED

    assert fleet.gateways.told["route"] <= MODELS * 2 * PASSES
    assert agrees(fleet) or calls == 1


def test_models_that_rest_are_told_once_though_another_one_changes_all_the_time(fleet):
    fleet.gateways.meanwhile = lambda: change_table(fleet, NAMES[7])

    assert bring_back(fleet).state is DrainState.RETURNED

    assert fleet.gateways.told["route"] <= MODELS + 2 * PASSES


def test_what_a_change_stores_as_the_region_counts_again_is_told_right_after(fleet, monkeypatch):
    counted = DrainActivities._count_again

    def meanwhile(self, *given):
        change_table(fleet, NAMES[0], shares=())
        with fleet.store.begin() as unit:
            unit.put_deployment(replica_set(NAMES[0], EUROPE, replicas=5))
            unit.delete_deployment(replica_set(NAMES[1], EUROPE).key)
        return counted(self, *given)

    monkeypatch.setattr(DrainActivities, "_count_again", meanwhile)

    assert bring_back(fleet).state is DrainState.RETURNED

    assert agrees(fleet)
    assert fleet.gateways.deployment(replica_set(NAMES[1], EUROPE).key) is None


def test_the_only_model_of_a_region_keeps_it_out_while_its_gateway_does_not_follow(fleet):
    with fleet.store.begin() as unit:
        for name in NAMES[1:]:
            unit.delete_routes(name)
            unit.delete_deployment(replica_set(name, EUROPE).key)
    fleet.gateways.refuse[NAMES[0]] = Unavailable("not confirmed")

    assert bring_back(fleet).message == "asked back, but not confirmed"


def test_what_drifted_as_the_region_counts_again_is_repaired(fleet, monkeypatch):
    """A change that ends while a region is lost records no repair: that is done as the region is back."""
    counted = DrainActivities._count_again

    def meanwhile(self, *given):
        left = AssignedSnapshot(snapshot=2, digest="e" * 64, uri="file:///e", generations=(2,))
        found = replica_set(NAMES[0], EUROPE)
        with fleet.store.begin(NAMES[0]) as unit:
            unit.put_deployment(found.model_copy(update={"holds": (*found.holds, left)}))
        return counted(self, *given)

    monkeypatch.setattr(DrainActivities, "_count_again", meanwhile)
    bring_back(fleet)

    with fleet.store.read() as unit:
        newest = {name: unit.changes(name, limit=1)[0].kind for name in NAMES}
    assert [name for name, kind in newest.items() if kind is ChangeKind.REPAIR] == [NAMES[0]]


@pytest.mark.parametrize("error", [Unavailable("not confirmed"), InvalidInput("refused")])
def test_a_model_whose_calls_fail_is_named_and_all_others_are_told(fleet, error):
    fleet.gateways.refuse[NAMES[3]] = error

    seen = bring_back(fleet)

    assert seen.state is DrainState.RETURNED
    assert seen.message == f"its supply counts again; not applied yet for {NAMES[3]}: {error.message}"
    assert fleet.gateways.observe(EUROPE).routes.keys() == set(NAMES) - {NAMES[3]}
    assert fleet.gateways.told == {"route": MODELS - 1, "apply": MODELS - 1}


def test_a_model_that_alone_is_left_and_fails_holds_no_region_up(fleet):
    fleet.gateways.refuse[NAMES[3]] = Unavailable("not confirmed")
    bring_back(fleet)
    with fleet.store.begin() as unit:
        drain = unit.add_drain(EUROPE, disaster=True)
        unit.update_drain(drain.id, state=DrainState.RETURNING)
    fleet.gateways.told.clear()

    assert bring_back(fleet).state is DrainState.RETURNED

    assert fleet.gateways.told == {}


@pytest.mark.parametrize("error", [RegionUnreachable("gone again"), Unavailable("the gateway does not follow")])
def test_a_region_whose_calls_all_fail_stays_out_and_what_it_has_is_kept(fleet, error):
    fleet.gateways.refuse = dict.fromkeys(NAMES[BATCH:], error)

    seen = bring_back(fleet)

    assert (seen.state, seen.message) == (DrainState.RETURNING, f"asked back, but {error.message}")
    assert fleet.gateways.told["route"] == BATCH
    fleet.gateways.refuse = {}
    assert bring_back(fleet).state is DrainState.RETURNED
    assert fleet.gateways.told["route"] == MODELS


def test_tables_are_pushed_side_by_side(fleet):
    together, first = threading.Barrier(CALLS, timeout=PATIENCE_SECONDS), iter(range(CALLS))

    def route(table):
        if next(first, None) is not None:
            together.wait()
        MemoryInfrastructure.route(fleet.gateways, table)

    fleet.gateways.route = route

    assert bring_back(fleet).state is DrainState.RETURNED
    assert agrees(fleet)


def test_the_return_of_a_region_that_has_left_the_fleet_ends(fleet):
    with fleet.store.begin() as unit:
        unit.put_fleet(one_region(), expected_version=None)
        unit.update_drain(unit.add_drain("mars", disaster=True).id, state=DrainState.RETURNING)
    activities = DrainActivities(fleet.store, fleet.gateways, lambda: None, lambda *_: None)

    seen = ActivityEnvironment().run(activities.return_region, DrainInput(region="mars"))

    assert (seen.state, seen.message) == (DrainState.RETURNED, "the region has left the fleet")
    with fleet.store.read() as unit:
        assert unit.drain("mars").finished_at is not None


def one_region():
    supply = SupplyItem(region="us-east", hardware="cpu", units=40, unit_cost=1)
    return FleetSpec(regions=("us-east",), rtt_ms=((1,),), hardware=("cpu",), supply=(supply,))
