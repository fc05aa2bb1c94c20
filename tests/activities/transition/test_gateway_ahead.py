"""A gateway got a table, and the run that sent it ended before the store had it: a revert corrects it first."""

import pytest

from ipnext.errors import FenceLost
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason
from tests.activities.carried_out import CarriedOut
from tests.activities.planning.test_parts import BASE, DEMAND, apply, publish
from tests.fleets import two_regions

M = "ranker"
EAST, WEST = "us-east", "eu-west"
QPS = {found["region"]: found["qps"] for found in DEMAND}
BACK = {"back": True, "reason": Reason.INTERNAL_ERROR, "message": "its run was ended from outside"}


@pytest.fixture
def first_publish(house, kit, monkeypatch):
    """Execute the first wave of a first publish.

    The east answers the users of the west. The table that says so is not stored; the stored one refuses them.
    """
    house.apply_fleet(two_regions(40, None))
    carried = CarriedOut(house)
    apply(house, kit, BASE)
    change = publish(house, kit, 1, BASE)
    assert carried.placed(change, 1).feasible
    assert carried.planned(change, 1).refused is None
    route = house.infrastructure.route

    def end_after(table):
        route(table)
        if table.region == WEST and table.shares:
            raise FenceLost(table.region)

    monkeypatch.setattr(house.infrastructure, "route", end_after)
    wave = WaveInput(transition_id=change.id, model=M, generation=1, index=0, deadline_seconds=20)
    assert not carried.step("ensure_capacity", wave)
    with pytest.raises(FenceLost):
        carried.env.run(carried.transition.shift_traffic, wave)
    monkeypatch.setattr(house.infrastructure, "route", route)
    with house.store.read() as unit:
        assert not unit.route(M, WEST) or not unit.route(M, WEST).shares
    return carried, change


def test_a_revert_corrects_a_gateway_before_it_releases_what_that_one_sends_to(house, kit, first_publish):
    carried, change = first_publish
    assert house.shares(M)[WEST] == {1: 1.0}

    assert not carried.walk(change, 1, [0], **BACK)

    assert house.shares(M) == {}
    kit.check_floor(house.infrastructure, M, QPS)
    with house.store.read() as unit:
        assert unit.deployments(M) == ()
