"""Gateways follow one by one: none sends to a region whose router does not know the generation."""

from collections.abc import Collection
from contextlib import contextmanager
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from activities.runtime.lease import ActivityHeartbeats, felt
from activities.transition import traffic_shift as routing
from ipnext.errors import FenceLost, Unavailable
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.regions.drain import Drain
from ipnext.model.registry.registry import GraphNode, PartGraph

M = "ranker"
NOW = datetime(2026, 3, 29, tzinfo=UTC)
GRAPH = PartGraph(nodes=(GraphNode(name="p", part="p", inputs={"x": "request.x"}),), outputs={"y": "p.y"})


def served(*generations: int) -> tuple[ServedGeneration, ...]:
    return tuple(ServedGeneration(generation=number, graph=GRAPH, snapshots={"p": number}) for number in generations)


def share(to: str, generation: int) -> RouteShare:
    return RouteShare(to=to, generation=generation, fraction=1.0)


class Regions:
    """Gateways in memory; those in `away` do not answer, those `ahead` have applied a table that is not stored."""

    def __init__(self, *away: str, ahead: Collection[str] = ()) -> None:
        self.away, self.ahead, self.tables, self.told = away, ahead, {}, []

    def observe(self, region: str, models: Collection[str] | None = None) -> RegionState:
        assert models == [M]
        if region in self.away:
            raise Unavailable(region)
        return RegionState(region=region, gateway_url="http://gateway", routes={M: 1 + (region in self.ahead)})

    def route(self, table: RouteTable) -> None:
        self.tables[table.region] = table
        self.told.append((table.region, tuple(found.to for found in table.shares)))


def facts_of(tables: dict[str, RouteTable], *, lost: Collection[str] = (), demand: float = 10.0) -> SimpleNamespace:
    """A model of one part `p`, with so many requests/s of users of each region."""
    return SimpleNamespace(
        model=M,
        shadow=None,
        demand=dict.fromkeys(tables, demand),
        tables=tables,
        lost=frozenset(lost),
        generations={number: SimpleNamespace(parts=("p",)) for number in (1, 2)},
        deployments={},
        access="open",
        unmet_rules={},
        pending={},
    )


def carrying(*regions: str) -> list[SimpleNamespace]:
    """A replica in each region, which carries one region's users."""
    return [
        SimpleNamespace(
            key=SimpleNamespace(part="p", region=region),
            generations=(1,),
            clients_replicas=1,
            qps=10.0,
            own={},
            replicas_of=lambda _: 1,
        )
        for region in regions
    ]


def lost_region(name: str) -> Drain:
    return Drain(id="d", region=name, disaster=True, created_at=NOW, updated_at=NOW)


class NoStore:
    """Writes nothing; these drains hold."""

    def __init__(self, *drains: Drain) -> None:
        self.drains = drains

    @contextmanager
    def read(self):
        yield SimpleNamespace(drains=lambda: self.drains)

    @contextmanager
    def begin(self, _):
        yield SimpleNamespace(put_route=lambda _: None, drains=lambda: self.drains)


@pytest.fixture
def follow(monkeypatch):
    """Both regions serve generation 1; what is held now is 1 and 2.

    The users of `us` are to be answered in `eu` by 2.
    """
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1, 2))

    def followed(regions: Regions, shares: dict, known: tuple[int, ...] = (1,), waiting: Collection[str] = ()) -> None:
        tables = {
            region: RouteTable(model=M, region=region, revision=1, shares=(share(region, 1),), served=served(*known))
            for region in ("eu", "us")
        }
        routing.Gateways(NoStore(), regions, facts_of(tables)).follow(shares, (), waiting=waiting)

    return followed


def test_every_router_learns_before_any_gateway_sends(follow):
    regions = Regions()

    follow(regions, {"us": (share("eu", 2),), "eu": (share("eu", 2),)})

    assert {region: table.shares[0].generation for region, table in regions.tables.items()} == {"us": 2, "eu": 2}


def test_a_table_says_whether_its_model_needs_a_credential(monkeypatch):
    """Also where only that has changed: a region that has no access list yet closes the model by its table."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1))
    regions = Regions()
    before = RouteTable(model=M, region="us", revision=1, shares=(share("us", 1),), served=served(1))
    facts = facts_of({"us": before})
    facts.access = "authenticated"
    routing.Gateways(NoStore(), regions, facts).follow({"us": (share("us", 1),)}, ())
    assert regions.tables["us"].access == "authenticated"


def test_who_leaves_a_region_is_told_before_who_comes_to_it(monkeypatch):
    """Users of `br` go to `eu`, those of `eu` to `us`, which had none: each carries one region's users."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1))
    now = {"br": (share("br", 1),), "eu": (share("eu", 1),), "us": ()}
    tables = {r: RouteTable(model=M, region=r, revision=1, shares=now[r], served=served(1)) for r in now}
    regions = Regions()

    shares = {"br": (share("eu", 1),), "eu": (share("us", 1),)}
    routing.Gateways(NoStore(), regions, facts_of(tables)).follow(shares, carrying(*now))

    assert regions.told == [("eu", ("us",)), ("br", ("eu",))]


def test_no_gateway_sends_a_generation_to_a_region_that_could_not_be_told_of_it(follow):
    regions = Regions("eu")

    with pytest.raises(Unavailable, match="eu"):
        follow(regions, {"us": (share("eu", 2),), "eu": (share("eu", 2),)})

    assert regions.tables["us"].shares == (share("us", 1),)


def test_a_region_that_knew_the_generation_before_gets_its_traffic_though_it_is_away(follow):
    regions = Regions("eu")

    with pytest.raises(Unavailable, match="eu"):
        follow(regions, {"us": (share("eu", 2),), "eu": (share("eu", 2),)}, known=(1, 2))

    assert regions.tables["us"].shares == (share("eu", 2),)


def test_a_router_forgets_a_generation_only_once_no_gateway_sends_it_there(follow, monkeypatch):
    """The users of `us` were answered in `eu` by 2; all go back to 1, and the gateway of `us` does not hear of it."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1))
    regions, back = Regions("us"), {"us": (share("us", 1),), "eu": (share("eu", 1),)}
    sent = {"us": (share("eu", 2),), "eu": (share("eu", 2),)}
    tables = {
        region: RouteTable(model=M, region=region, revision=1, shares=shares, served=served(1, 2))
        for region, shares in sent.items()
    }
    gateways = routing.Gateways(NoStore(), regions, facts_of(tables))

    with pytest.raises(Unavailable, match="us"):
        gateways.follow(back, ())

    assert gateways.still_sent(back) == {("eu", 2)}
    assert regions.tables["eu"].shares == (share("eu", 1),)
    assert {found.generation for found in regions.tables["eu"].served} == {1, 2}


@pytest.mark.parametrize(("known", "held", "stored"), [((1, 2), (1,), (1,)), ((1,), (1, 2), (1,))])
def test_a_router_knows_at_least_what_the_store_says_of_it_wherever_an_attempt_ends(monkeypatch, known, held, stored):
    """What it forgets is stored before its table reaches it, what it learns afterwards."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(*held))
    table = RouteTable(model=M, region="eu", revision=1, shares=(share("eu", 1),), served=served(*known))
    written = [table]

    class Store(NoStore):
        @contextmanager
        def begin(self, _):
            yield SimpleNamespace(put_route=written.append, drains=lambda: ())

    class Ends(Regions):
        def route(self, table: RouteTable) -> None:
            super().route(table)
            raise FenceLost(table.region)

    regions = Ends()
    with pytest.raises(FenceLost):
        routing.Gateways(Store(), regions, facts_of({"eu": table})).follow({"eu": (share("eu", 1),)}, ())

    assert tuple(found.generation for found in written[-1].served) == stored
    assert {found.generation for found in regions.tables["eu"].served} >= set(stored)


def test_no_gateway_sends_a_generation_that_its_target_does_not_hold_for_routers(follow, monkeypatch):
    """A revert could not remove replicas of 2 in `eu`. They are ready, but no router learns of them any more."""
    monkeypatch.setattr(routing, "served_generations", lambda _, region, *__: served(1) if region == "us" else ())
    regions = Regions()

    with pytest.raises(Unavailable, match="users of 'us' stay where they are"):
        follow(regions, {"us": (share("eu", 2),), "eu": (share("eu", 1),)})

    assert all(table.shares != (share("eu", 2),) for table in regions.tables.values())


def test_users_whom_nothing_ready_would_answer_stay_where_they_are(follow):
    regions = Regions()

    with pytest.raises(Unavailable, match="us"):
        follow(regions, {"us": (share("eu", 2),), "eu": (share("eu", 2),)}, waiting={"us"})

    assert {region: table.shares for region, table in regions.tables.items()} == {
        "us": (share("us", 1),),
        "eu": (share("eu", 2),),
    }


def test_a_lost_region_is_promised_only_what_routers_know():
    """Half of its users were to go where no router has been told of the generation."""
    written, lost = [], RouteTable(model=M, region="gone", revision=1, shares=(share("gone", 1),), served=served(1))
    known = RouteTable(model=M, region="eu", revision=1, shares=(share("eu", 1),), served=served(1))
    facts = facts_of({"gone": lost, "eu": known}, lost={"gone"})

    class Store(NoStore):
        @contextmanager
        def begin(self, _):
            yield SimpleNamespace(put_route=lambda table: written.append(table) or table)

    half = tuple(RouteShare(to=to, generation=1, fraction=0.5) for to in ("eu", "us"))
    routing.Gateways(Store(lost_region("gone")), Regions(), facts).follow({"gone": half}, ())

    assert [table.shares for table in written] == [(share("eu", 1),)]


def test_a_lost_region_is_to_keep_what_a_gateway_out_of_reach_still_sends_to(monkeypatch):
    """Users of `us` stay on generation 2 in the lost region, whose processes hold generation 1 when it is back."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1))
    written = []
    lost = RouteTable(model=M, region="gone", revision=1, shares=(), served=served(1, 2, 3))
    away = RouteTable(model=M, region="us", revision=1, shares=(share("gone", 2),), served=())

    class Store(NoStore):
        @contextmanager
        def begin(self, _):
            yield SimpleNamespace(put_route=lambda table: written.append(table) or table)

    facts = facts_of({"gone": lost, "us": away}, lost={"gone"})
    facts.unmet_rules = {}
    with pytest.raises(Unavailable, match="us"):
        routing.Gateways(Store(lost_region("gone")), Regions("us"), facts).follow({"gone": (), "us": ()}, ())

    assert [[found.generation for found in table.served] for table in written] == [[1, 2]]


def test_no_table_is_put_in_force_by_a_worker_that_stood_still(follow):
    regions, now = Regions(), [0.0]
    with felt(ActivityHeartbeats(2.0, clock=lambda: now[0])):
        now[0] += 5.0
        with pytest.raises(Unavailable, match="stood still"):
            follow(regions, {"us": (share("eu", 2),), "eu": (share("eu", 2),)})

    assert regions.tables == {}


@pytest.mark.parametrize(
    ("stored", "lost", "told"),
    [((), (), ["eu"]), ((share("gone", 1),), ("gone",), ["eu"]), ((share("us", 1),), (), ["us", "eu"])],
    ids=["nothing answers", "a lost region answers", "a region answers"],
)
def test_users_whom_only_a_table_that_was_never_stored_answers_keep_their_answers(monkeypatch, stored, lost, told):
    """An attempt ended before it stored the table of `us`. The stored one would drop these users for a moment."""
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1))
    tables = {
        "eu": RouteTable(model=M, region="eu", revision=1, shares=(share("eu", 1),), served=served(1)),
        "us": RouteTable(model=M, region="us", revision=1, shares=stored, served=served(1)),
    }
    regions = Regions(ahead=("us",))
    store = NoStore(*(lost_region(name) for name in lost))

    routing.Gateways(store, regions, facts_of(tables, lost=lost)).follow(
        {"us": (share("eu", 1),), "eu": (share("eu", 1),)}, ()
    )

    assert regions.told == [("us", (name,)) for name in told]


@pytest.mark.parametrize(
    ("elsewhere", "then", "told"),
    [
        ((), ("us",), [("us", ("us",))]),
        ((), ("eu",), [("us", ()), ("us", ("eu",))]),
        (("us",), ("us",), [("us", ()), ("eu", ("eu",)), ("us", ("us",))]),
    ],
    ids=["its own replicas", "those of another region", "own ones that others use still"],
)
def test_users_of_a_region_whose_gateway_is_behind_keep_answers_that_nobody_shares(monkeypatch, elsewhere, then, told):
    """A run stored a table without answers for `us` when it was lost; the gateway has that of its return.

    Where capacity is shared, the order of the gateways counts.
    """
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1))
    shares = {"us": (), "eu": tuple(share(to, 1) for to in elsewhere)}
    tables = {
        name: RouteTable(model=M, region=name, revision=3 if name == "us" else 1, shares=found, served=served(1))
        for name, found in shares.items()
    }
    regions = Regions(ahead=("us",))
    wanted = {"us": tuple(share(to, 1) for to in then), "eu": (share("eu", 1),) if elsewhere else ()}

    routing.Gateways(NoStore(), regions, facts_of(tables)).follow(wanted, carrying("us", "eu"))

    assert regions.told == told


def test_shares_that_were_computed_before_a_region_was_lost_are_not_put_in_force(monkeypatch):
    monkeypatch.setattr(routing, "served_generations", lambda *_: served(1))
    table = RouteTable(model=M, region="us", revision=1, shares=(share("us", 1),), served=served(1))
    facts = facts_of({"us": table})
    regions = Regions()
    gateways = routing.Gateways(NoStore(lost_region("eu")), regions, facts)

    with pytest.raises(Unavailable, match="'eu' was lost or came back"):
        gateways.follow({"us": (RouteShare(to="us", generation=1, fraction=0.5),)}, ())

    assert regions.tables == {}
