"""Route tables, and their shares by destination."""

import pytest

from ipnext.errors import StaleWrite
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.store.tables.row import METADATA


def table(model, region, revision, *shares):
    found = tuple(RouteShare(to=to, generation=generation, fraction=fraction) for to, generation, fraction in shares)
    return RouteTable(model=model, region=region, revision=revision, shares=found, served=())


@pytest.fixture
def routed(applied, make):
    with applied.begin() as repository:
        repository.put_model(make.manifest("other"), expected_version=None)
        repository.put_route(table("ctr", "north", 1, ("north", 1, 0.5), ("south", 1, 0.25), ("south", 2, 0.25)))
        repository.put_route(table("other", "south", 1, ("south", 1, 1.0)))
    return applied


def shares(store):
    """What is sent where: by the shares' own rows, and by the tables."""
    with store.read() as repository:
        regions = ("north", "south", "west")
        by_rows = {(model, origin, to): f for to in regions for model, origin, f in repository.shares_to(to)}
        by_tables = {}
        for stored in repository.routes():
            for share in stored.shares:
                to = (stored.model, stored.region, share.to)
                by_tables[to] = by_tables.get(to, 0.0) + share.fraction
    return by_rows, by_tables


@pytest.mark.parametrize("together", [False, True])
def test_shares_follow_every_write_of_a_table(routed, together):
    def put(*tables):
        with routed.begin() as repository:
            if together:
                repository.put_routes(tables)
            else:
                for each in tables:
                    repository.put_route(each)

    steps = (
        lambda: None,
        lambda: put(table("ctr", "north", 2, ("south", 2, 1.0)), table("other", "south", 2)),
        lambda: put(table("ctr", "north", 3, ("west", 2, 1.0)), table("ctr", "west", 1, ("west", 2, 1.0))),
    )
    for step in steps:
        step()
        by_rows, by_tables = shares(routed)
        assert by_rows == by_tables
    assert by_rows == {("ctr", "north", "west"): 1.0, ("ctr", "west", "west"): 1.0}


def test_shares_go_with_the_tables(routed):
    with routed.begin("ctr") as repository:
        repository.delete_routes("ctr")
    assert shares(routed) == ({("other", "south", "south"): 1.0},) * 2


def test_of_tables_that_are_written_together_none_is_if_one_came_too_late(routed):
    late = [table("other", "south", 2), table("ctr", "north", 1, ("north", 1, 1.0))]
    with pytest.raises(StaleWrite, match="'ctr' in 'north' are at revision 1"), routed.begin() as repository:
        repository.put_routes(late)
    with routed.read() as repository:
        assert repository.route("other", "south").revision == 1


def test_the_same_tables_again_change_nothing(routed):
    before = shares(routed)
    with routed.begin() as repository:
        repository.put_routes([table("other", "south", 1, ("south", 1, 1.0))])
    assert shares(routed) == before


def test_models_that_are_routed_to_a_region_come_by_priority(routed):
    with routed.begin() as repository:
        placements = METADATA.tables["placements"]
        for model, priority in (("ctr", 1.0), ("other", 9.0)):
            columns = dict.fromkeys(("plan_id", "owner", "wishes", "replicas", "traffic", "unmet"), "[]")
            row = {**columns, "model": model, "priority": priority, "unmet_qps": 0.0, "cost_per_hour": 0.0}
            repository.connection().execute(placements.insert().values(row))
        assert repository.models_routed_to("south") == ("other", "ctr")
        assert repository.models_routed_to("north") == ("ctr",)
        assert repository.models_routed_to("west") == ()
