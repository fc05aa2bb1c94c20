"""Sending the traffic around a lost region while models are being retired."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from activities.regions import failover as surviving
from activities.regions.failover import RegionFailover
from ipnext.errors import Unavailable
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from tests.activities.planning.test_parts import BASE, publish, serve


def table(model: str) -> RouteTable:
    return RouteTable(
        model=model, region="eu", revision=2, shares=(RouteShare(to="eu", generation=1, fraction=1.0),), served=()
    )


class Regions:
    def __init__(self) -> None:
        self.told = []

    def observe(self, region, _models):
        return RegionState(region=region, gateway_url="http://gateway", routes={})

    def route(self, found):
        self.told.append(("route", found.model))

    def unroute(self, model, region):
        self.told.append(("unroute", model, region))


class Written:
    """A store in which these models are being retired when it is read, and when it is written.

    `stored` has the revisions of the tables that changes wrote in between; None: removed.
    """

    def __init__(self, read: set[str], write: set[str], models=("a", "b"), busy=frozenset(), stored=None) -> None:
        self.retiring, self.put, self.models, self.busy = {"read": read, "write": write}, [], models, busy
        self.stored = stored or {}

    def _repository(self, when, scope=None):
        return SimpleNamespace(
            scope=scope,
            models_routed_to=lambda _: self.models,
            retiring_models=lambda: frozenset(self.retiring[when]),
            revisions_of=self._revisions,
            put_routes=lambda found: self.put.extend(table.model for table in found),
        )

    def _revisions(self, models):
        now = {model: self.stored.get(model, 2) for model in models}
        return {(model, "eu"): revision for model, revision in now.items() if revision is not None}

    @contextmanager
    def read(self):
        yield self._repository("read")

    @contextmanager
    def begin(self, model):
        yield self._repository("write", frozenset({model}))

    @contextmanager
    def begin_free(self, models):
        yield self._repository("write", frozenset(models) - self.busy)


@pytest.fixture
def sent(monkeypatch):
    def facts(_, models):
        return [SimpleNamespace(model=m, tables={"eu": table(m)}, lost=frozenset({"us"}), serving=1) for m in models]

    monkeypatch.setattr(surviving, "read_routed", facts)
    monkeypatch.setattr(surviving, "tables_around", lambda found, *_: [table(found.model)])

    def run(*, read=(), write=(), busy=(), stored=None):
        regions, written = Regions(), Written(set(read), set(write), busy=frozenset(busy), stored=stored)
        RegionFailover(written, regions).send_around("us")
        return sorted(regions.told), written.put

    return run


def test_every_model_is_sent_around(sent):
    assert sent() == ([("route", "a"), ("route", "b")], ["a", "b"])


def test_a_model_that_is_being_retired_is_not(sent):
    assert sent(read={"a"}, write={"a"}) == ([("route", "b")], ["b"])


def test_one_whose_retirement_began_meanwhile_is_forgotten_again(sent):
    assert sent(write={"a"}) == ([("route", "a"), ("route", "b"), ("unroute", "a", "eu")], ["b"])


def test_a_model_that_another_unit_writes_is_kept_after_all_others(sent):
    assert sent(busy={"a"}) == ([("route", "a"), ("route", "b")], ["b", "a"])


def test_a_busy_model_whose_retirement_began_is_forgotten_again(sent):
    told = [("route", "a"), ("route", "b"), ("unroute", "a", "eu")]
    assert sent(write={"a"}, busy={"a"}) == (told, ["b"])


@pytest.mark.parametrize("busy", [(), ("a",)])
def test_one_whose_retirement_began_and_ended_meanwhile_is_forgotten_again(sent, busy):
    told = [("route", "a"), ("route", "b"), ("unroute", "a", "eu")]
    assert sent(stored={"a": None}, busy=busy) == (told, ["b"])


def test_a_table_that_a_change_wrote_meanwhile_stays_and_its_model_is_sent_once_more(sent):
    told, put = sent(stored={"a": 3})
    assert put == ["b"]
    assert told.count(("route", "a")) == 2
    assert told.count(("route", "b")) == 1


def test_tables_of_the_first_models_are_pushed_and_kept_before_later_ones_are_read(monkeypatch):
    happened, count = [], 8 + 64 + 3
    written, regions = Written(set(), set(), models=tuple(f"m{number:02}" for number in range(count))), Regions()

    def facts(_, models):
        happened.append(("read", len(models), len(regions.told), len(written.put)))
        return [SimpleNamespace(model=m, tables={"eu": table(m)}, lost=frozenset({"us"}), serving=1) for m in models]

    monkeypatch.setattr(surviving, "read_routed", facts)
    monkeypatch.setattr(surviving, "tables_around", lambda found, *_: [table(found.model)])
    sent = RegionFailover(written, regions).send_around("us")
    assert happened == [("read", 8, 0, 0), ("read", 64, 8, 8), ("read", 3, 72, 72)]
    assert (sent.tables, sent.models) == (count, count)


def test_a_gateway_that_does_not_answer_is_tried_once_a_batch_and_no_more(monkeypatch):
    class Silent(Regions):
        def route(self, found):
            super().route(found)
            raise Unavailable("no answer")

    written, regions = Written(set(), set(), models=tuple(f"m{number:02}" for number in range(20))), Silent()
    monkeypatch.setattr(
        surviving,
        "read_routed",
        lambda _, models: [
            SimpleNamespace(model=m, tables={"eu": table(m)}, lost=frozenset(), serving=1) for m in models
        ],
    )
    monkeypatch.setattr(surviving, "tables_around", lambda found, *_: [table(found.model)])
    sent = RegionFailover(written, regions).send_around("us")
    assert (sent.unreachable, sent.tables, written.put) == (("eu",), 0, [])
    assert len(regions.told) == 8


@pytest.fixture
def spare(house, kit):
    """Users of the east are answered there; the west holds the model, too, for users of other regions.

    Its gateway has a later table than the stored one: a release that began removed the generation from its router.
    """
    serve(house, kit, BASE)
    with house.store.begin("ranker") as unit:
        there, here = unit.routes("ranker")
        if there.region != "eu-west":
            there, here = here, there
        kept = unit.put_route(there.model_copy(update={"shares": (), "revision": there.revision + 1}))
    house.infrastructure.route(kept.model_copy(update={"served": (), "revision": kept.revision + 1}))
    with house.store.begin() as unit:
        unit.add_drain("us-east", disaster=True)
    return kept


def test_a_router_that_users_come_to_learns_again_what_a_release_took_from_it(house, spare):
    sent = RegionFailover(house.store, house.infrastructure).send_around("us-east")
    west = house.infrastructure.table("ranker", "eu-west")
    assert [found.generation for found in west.served] == [1]
    assert (west.shares, west.revision) == ((), spare.revision + 2)
    assert (sent.tables, sent.unanswered) == (2, ())
    with house.store.read() as unit:
        stored = {table.region: table for table in unit.routes("ranker")}
    assert [share.to for share in stored["us-east"].shares] == ["eu-west"]
    assert stored["eu-west"] == west


def test_no_table_is_stored_of_a_model_that_is_retired_while_its_tables_are_pushed(house, spare):
    def retire(found):
        house.infrastructure.route(found)
        with house.store.begin("ranker") as unit:
            unit.delete_routes("ranker")
            unit.update_model("ranker", serving_generation=None, target_generation=None, retired=True)

    gateways = SimpleNamespace(observe=house.infrastructure.observe, route=retire, unroute=house.infrastructure.unroute)
    assert RegionFailover(house.store, gateways).send_around("us-east").tables == 0
    with house.store.read() as unit:
        assert unit.routes("ranker") == ()
    assert house.infrastructure.table("ranker", spare.region) is None, "its gateway was told again"


def test_users_keep_the_serving_generation_while_the_last_processes_are_to_swap_from_it(house, kit):
    """A wave has told all processes of the remaining region to swap; they still fetch the new generation."""
    serve(house, kit, BASE)
    publish(house, kit, 2, BASE)
    with house.store.begin("ranker") as unit:
        for found in (found for found in unit.deployments("ranker") if found.key.region == "eu-west"):
            holds = tuple(one.model_copy(update={"generations": (2,)}) for one in found.holds)
            unit.put_deployment(found.model_copy(update={"holds": holds, "own": {2: found.replicas}, "swap": True}))
        west = next(table for table in unit.routes("ranker") if table.region == "eu-west")
        both = (*west.served, *(one.model_copy(update={"generation": 2}) for one in west.served))
        unit.put_route(west.model_copy(update={"served": both, "revision": west.revision + 1}))
    with house.store.begin() as unit:
        unit.add_drain("us-east", disaster=True)
    RegionFailover(house.store, house.infrastructure).send_around("us-east")
    with house.store.read() as unit:
        shares = {share for table in unit.routes("ranker") for share in table.shares}
    assert {(share.to, share.generation) for share in shares} == {("eu-west", 1)}
